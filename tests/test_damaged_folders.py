"""Damaged runs: the same command ends with the right result, or says which file to delete, and that works.

Each result is compared with that of a run that was not damaged, bit for bit. Every file of a finished run and of one
that was stopped is damaged in every way.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from builders.damage import DAMAGES, flip_a_bit, remove
from builders.models import same_tensors
from builders.runs import digits, digits_model, files_in, short_recipe, short_training
from vitrim.errors import UserError
from vitrim.importance.criteria import ImportanceSettings
from vitrim.pipeline import Compressed, compress
from vitrim.recipe import HeadSettings
from vitrim.runs.damage import check_folder
from vitrim.training.loop import TrainingLoop

TRAINING = short_training(
    epochs=2, drop_path=0.1, ema_decay=0.9, checkpoint_minutes=0.0, evaluate_every=1, keep_epoch="best"
)
RECIPE = short_recipe(
    blocks=1,
    heads=HeadSettings(),  # heads are rotated, and their widths compared
    importance=ImportanceSettings(num_images=20, batch_size=20, steps=1),
    width_training=TRAINING,
    depth_training=TRAINING,
)


class Stopped(BaseException):
    """Ends a run as a signal would."""


class Runs(NamedTuple):
    """Folders of a finished run and of one that was stopped in its last training, and the result."""

    finished: Path
    stopped: Path
    result: Compressed


def run(folder: Path) -> Compressed:
    return compress(digits_model(depth=3), digits(40, 30), RECIPE, folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    update = TrainingLoop.update

    def stopping(loop: TrainingLoop, *arguments: Any) -> None:
        if loop.job.stage == "depth" and loop.step == 3:
            raise Stopped
        update(loop, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(TrainingLoop, "update", stopping)
        run(folder / "stopped")
    shutil.copytree(folder / "stopped", folder / "finished")
    return Runs(folder / "finished", folder / "stopped", run(folder / "finished"))


def assert_is_result(found: Compressed, expected: Compressed) -> None:
    assert same_tensors(found.model, expected.model) and found.plan == expected.plan
    rows = [
        [
            (row["name"], row["top1"], row["params"], row["macs"])
            for row in [*result.report["models"], *result.report["stages"]]
        ]
        for result in (found, expected)
    ]
    assert rows[0] == rows[1] and found.report["notes"] == expected.report["notes"]


def run_as_told(folder: Path, max_deleted: int = 1) -> Compressed:
    """Run, and delete what a message says to delete, so many times at most."""
    for _ in range(max_deleted + 1):
        try:
            return run(folder)
        except UserError as problem:
            named = re.search(r"(\S+) is (?:damaged|no regular file).*Delete it and repeat", str(problem))
            assert named, problem
            remove(Path(named[1]))
    raise AssertionError(f"{max_deleted} files were deleted, and there is another message")


def damaged(folder: Path, to: Path, damage: Callable[[Path], object], names: list[str]) -> Path:
    shutil.copytree(folder, to)
    for name in names:
        damage(to / name)
    return to


@pytest.mark.parametrize(
    ("which", "damage"),
    [
        pytest.param(which, damage, marks=[] if (which, damage) == ("stopped", "flipped") else pytest.mark.slow)
        for which in ("finished", "stopped")
        for damage in DAMAGES
    ],
)
def test_a_run_with_all_results_damaged_ends_as_if_nothing_was(
    which: str, damage: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = runs.finished if which == "finished" else runs.stopped
    names = [name for name in files_in(source) if not name.endswith("digests.json")]
    folder = damaged(source, tmp_path / "run", DAMAGES[damage], names)
    assert_is_result(run_as_told(folder, max_deleted=len(names)), runs.result)
    if damage == "flipped":
        text = capsys.readouterr().err
        for name in ("scores.safetensors", "stages/width-plan.json", "stages/width-distilled/model.safetensors"):
            assert re.search(rf"{name}.* is damaged: its content is not what vitrim wrote.*made again", text), name
        assert which == "finished" or "depth.checkpoint.safetensors is damaged" in text
    assert [found for found in check_folder(folder) if found.kind != "missing"] == []


def _names(which: str) -> list[str]:
    """The names of the files in the runs above, which the collection of tests cannot make."""
    models = [f"stages/{stage}-{kind}" for stage in ("width", "depth") for kind in ("recovered", "distilled")] + [
        "model"
    ]
    files = [f"{model}/{name}" for model in models for name in ("config.json", "model.safetensors", "modeling.py")]
    parts = (
        "dense",
        "width-cut",
        "width-recover",
        "width-distil",
        "depth-cut",
        "depth-recover",
        "depth-distil",
        "final",
    )
    files += [f"stages/evaluation-{part}.json" for part in parts]
    files += [f"stages/{name}.json" for name in ("device", "head-widths", "width-plan", "depth-step")]
    files += [
        "stages/seconds.json",
        "stages/rotation.safetensors",
        "scores.safetensors",
        "metrics.jsonl",
        "run.json",
        "recipe.toml",
        "forecast.json",
    ]
    files += ["width.kept-epoch.json", "depth.kept-epoch.json", "digests.json", "model/digests.json"]
    if which == "finished":
        files += ["report.json", "report.md", "report.html", "details.json", "plan.json"]
        return [*files, "stages/width-distilled/digests.json"]
    return [*files, "width.checkpoint.safetensors", "depth.checkpoint.safetensors"]


@pytest.mark.parametrize(
    ("which", "name"),
    [
        pytest.param(which, name, marks=[] if (which, name) == ("finished", "digests.json") else pytest.mark.slow)
        for which in ("finished", "stopped")
        for name in _names(which)
    ],
)
def test_a_run_with_one_flipped_bit_ends_as_if_nothing_was(
    which: str, name: str, runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = runs.finished if which == "finished" else runs.stopped
    if not (source / name).is_file():
        assert which == "stopped"
        pytest.skip("a stage that the stopped run has not reached")
    folder = damaged(source, tmp_path / "run", flip_a_bit, [name])
    assert_is_result(run_as_told(folder), runs.result)


def test_the_files_of_the_finished_run_are_all_damaged_one_by_one(runs: Runs) -> None:
    of_models = {name for name in files_in(runs.finished) if name.startswith("stages/") and "digests" in name}
    assert files_in(runs.finished).keys() - of_models <= set(_names("finished"))
    assert files_in(runs.stopped).keys() - of_models <= set(_names("stopped"))


@pytest.mark.slow
def test_a_result_is_made_again_if_what_it_was_made_from_has_become_another(runs: Runs, tmp_path: Path) -> None:
    """A remade training differs on a GPU, so what follows from it is made again."""
    folder = shutil.copytree(runs.finished, tmp_path / "run")
    for name in ("stages/width-distilled", "report.json"):
        remove(folder / name)
    update = TrainingLoop.update

    def rounding_otherwise(loop: TrainingLoop, *arguments: Any) -> None:
        update(loop, *arguments)
        with torch.no_grad():
            loop.model.head.bias[0] += 1e-6

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "update", rounding_otherwise)
        found = run(folder)
    assert not same_tensors(found.model, runs.result.model)
    assert found.plan == runs.result.plan
    again = run(folder)
    assert same_tensors(again.model, found.model) and again.report == found.report
    assert check_folder(folder) == []
