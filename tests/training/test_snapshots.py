"""Laws of snapshots: the epochs are divided into cycles, and one cycle is the training itself."""

from pathlib import Path

import pytest
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, digits_model, read_lines, short_training
from builders.trainings import stop_at
from vitrim.checks import MAX_SEED
from vitrim.ensembles import evaluate_ensemble
from vitrim.errors import SettingError
from vitrim.pipeline import fit
from vitrim.recipe import TrainRecipe
from vitrim.runs.files import read_json
from vitrim.saving.checkpoint import load
from vitrim.training.snapshots import cycles_of
from vitrim.verifying import verify


def test_one_cycle_is_the_training_itself() -> None:
    settings = short_training(epochs=2, warmup_epochs=5)
    (cycle,) = cycles_of(settings, 1, 7)
    assert (cycle.settings, cycle.seed, cycle.stage, cycle.result) == (settings, 7, "train", "model")


@pytest.mark.parametrize(("epochs", "snapshots", "expected"), [(9, 3, [3, 3, 3]), (11, 3, [3, 4, 4]), (2, 2, [1, 1])])
def test_no_cycle_is_longer_than_a_later_one(epochs: int, snapshots: int, expected: list[int]) -> None:
    cycles = cycles_of(short_training(epochs=epochs, warmup_epochs=3), snapshots, 0)
    assert [cycle.settings.epochs for cycle in cycles] == expected
    assert all(cycle.settings.warmup_epochs == min(3, cycle.settings.epochs - 1) for cycle in cycles)


def test_cycles_differ_in_stage_result_and_seed() -> None:
    cycles = cycles_of(short_training(epochs=6), 3, MAX_SEED)
    assert [cycle.result for cycle in cycles] == ["snapshots/1", "snapshots/2", "model"]
    assert len({cycle.seed for cycle in cycles}) == len({cycle.stage for cycle in cycles}) == 3
    assert cycles[0].seed == MAX_SEED and all(0 <= cycle.seed <= MAX_SEED for cycle in cycles)


def snapshots_in(folder: Path) -> list[nn.Module]:
    return [load(folder / "snapshots" / "1"), load(folder / "model")]


def test_training_with_snapshots_resumes_bit_for_bit_and_keeps_models_that_teach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = short_training(epochs=3, checkpoint_minutes=0.0, ema_decay=0.9, drop_path=0.2, evaluate_every=0)
    recipe = TrainRecipe(training=training, snapshots=2)
    whole = fit(digits_model(), digits(), recipe, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 4)  # in the second cycle: the first has one epoch of three updates
        fit(digits_model(), digits(), recipe, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    resumed = fit(digits_model(), digits(), recipe, tmp_path / "run")
    assert "train: resuming at step 4 of 6" in capsys.readouterr().err
    assert same_tensors(resumed, whole)
    models = snapshots_in(tmp_path / "run")
    assert all(same_tensors(*pair) for pair in zip(models, snapshots_in(tmp_path / "whole"), strict=True))
    assert not same_tensors(*models)
    report = read_json(tmp_path / "run" / "report.json")
    assert report["snapshots"]["top1"] == evaluate_ensemble(models, digits()).top1
    assert report["snapshots"]["command"] in (tmp_path / "run" / "report.md").read_text()
    stages = [
        (row["stage"], row["epoch"]) for row in read_lines(tmp_path / "whole" / "metrics.jsonl") if "epoch" in row
    ]
    assert stages == [("snapshot-1", 1), ("train", 1), ("train", 2)]
    assert all(check.holds is not False for check in verify(tmp_path / "run", digits()))


def test_more_snapshots_than_epochs_are_refused() -> None:
    with pytest.raises(SettingError, match="snapshots is 3, but there are 2 epochs"):
        TrainRecipe(training=short_training(epochs=2), snapshots=3)
