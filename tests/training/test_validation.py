"""Laws of evaluations during a training, and of the epoch that is kept."""

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, digits_model, files_in, read_lines, short_training
from builders.trainings import EVERYTHING, STEPS_PER_EPOCH, stop_at, student_and_teacher
from vitrim.data.images import ImageData
from vitrim.errors import FolderInUse
from vitrim.evaluation import evaluate
from vitrim.training import validation
from vitrim.training.settings import TrainingSettings
from vitrim.training.train import train
from vitrim.training.validation import KeptEpoch, Validated, Validation

UNSTEADY = short_training(
    epochs=6, learning_rate=3e-2, keep_epoch="best", evaluate_every=1, checkpoint_minutes=0.0, drop_path=0.2
)
CHOOSING = replace(EVERYTHING, learning_rate=3e-2, keep_epoch="best", evaluate_every=1)  # with a moving average


def misleading() -> ImageData:
    """Digits whose validation images have wrong labels, so the accuracy on them falls while the digits are learned."""
    data = digits()
    return replace(data, validation=replace(data.validation, labels=(data.validation.labels + 1) % 10))


@pytest.mark.parametrize("ema_decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.6])
def test_the_most_accurate_epoch_is_kept(ema_decay: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = replace(UNSTEADY, ema_decay=ema_decay)
    kept = train(digits_model(), misleading(), settings, run_dir=tmp_path)
    rows = read_lines(tmp_path / "metrics.jsonl")
    best = max(rows, key=lambda row: (row["top1"], -row["validation_loss"], row["epoch"]))
    found = evaluate(kept, misleading())
    assert (found.top1, found.loss) == (best["top1"], best["validation_loss"])
    noted = KeptEpoch.read(tmp_path, "train")
    assert noted is not None and (noted.best.epoch, noted.last.epoch) == (best["epoch"], 6)
    assert f"epoch {best['epoch']} of 6 is kept" in capsys.readouterr().err
    last = train(digits_model(), misleading(), replace(settings, keep_epoch="last"), run_dir=tmp_path / "last")
    assert evaluate(last, misleading()).loss == rows[-1]["validation_loss"]
    assert KeptEpoch.read(tmp_path / "last", "train") is None
    assert best["epoch"] < 6 and not same_tensors(kept, last)


def test_equal_accuracies_are_decided_by_the_loss_and_then_the_later_epoch_is_kept() -> None:
    ascending = [
        Validated(epoch=9, top1=50.0, loss=0.1),
        Validated(epoch=8, top1=60.0, loss=float("nan")),
        Validated(epoch=7, top1=60.0, loss=2.0),
        Validated(epoch=2, top1=60.0, loss=1.0),
        Validated(epoch=3, top1=60.0, loss=1.0),
        Validated(epoch=1, top1=61.0, loss=3.0),
    ]
    for worse, better in itertools.combinations(ascending, 2):
        assert better.is_better_than(worse) and not worse.is_better_than(better)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, bytes]:
    """The result of a training that was not interrupted, and its note on the kept epoch."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    student, arguments = student_and_teacher()
    result = train(student, misleading(), CHOOSING, **arguments, run_dir=folder)
    noted = KeptEpoch.read(folder, "train")
    assert noted is not None and noted.best.epoch < noted.last.epoch
    return result, files_in(folder)["train.kept-epoch.json"]


def test_a_training_that_is_interrupted_at_every_step_keeps_the_same_epoch(
    uninterrupted: tuple[nn.Module, bytes], tmp_path: Path
) -> None:
    student, arguments = student_and_teacher()
    for step in range(1, 3 * STEPS_PER_EPOCH):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, step)
            train(student, misleading(), CHOOSING, **arguments, run_dir=tmp_path)
    resumed = train(student, misleading(), CHOOSING, **arguments, run_dir=tmp_path)
    assert same_tensors(uninterrupted[0], resumed)
    assert files_in(tmp_path)["train.kept-epoch.json"] == uninterrupted[1]
    again = train(
        student, misleading(), CHOOSING, **arguments, run_dir=tmp_path
    )  # from the checkpoint of the last step
    assert same_tensors(uninterrupted[0], again)


@pytest.mark.parametrize(
    "evaluated", [pytest.param(False, marks=pytest.mark.slow), True], ids=["before it", "after it"]
)
def test_a_training_that_is_killed_at_each_evaluation_keeps_the_same_epoch(
    evaluated: bool, uninterrupted: tuple[nn.Module, bytes], tmp_path: Path
) -> None:
    student, arguments = student_and_teacher()
    after_epoch = Validation.after_epoch
    for epoch in (1, 2, 3):

        def killed(self: Validation, number: int, model: nn.Module, epoch: int = epoch) -> Any:
            found = after_epoch(self, number, model) if evaluated or number < epoch else None
            if number == epoch:
                raise KeyboardInterrupt
            return found

        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Validation, "after_epoch", killed)
            train(student, misleading(), CHOOSING, **arguments, run_dir=tmp_path)
    resumed = train(student, misleading(), CHOOSING, **arguments, run_dir=tmp_path)
    assert same_tensors(uninterrupted[0], resumed)
    assert files_in(tmp_path)["train.kept-epoch.json"] == uninterrupted[1]
    assert [row["epoch"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


@pytest.mark.parametrize("epochs", [1, 3, 10, 19, 25, 100, 1000])
def test_by_default_at_least_every_tenth_of_the_epochs_is_evaluated(epochs: int) -> None:
    interval = TrainingSettings(epochs=epochs).evaluation_interval
    assert 1 <= interval <= max(1, epochs / 10)
    assert epochs / interval < 20  # a large validation set does not take most of the time


def test_the_last_epoch_is_evaluated_too_and_none_if_the_setting_is_0(tmp_path: Path) -> None:
    for every, expected in ((2, [2, 3]), ("auto", [1, 2, 3]), (0, [])):
        folder = tmp_path / str(every)
        train(digits_model(), digits(), short_training(epochs=3, evaluate_every=every), run_dir=folder)
        assert [row["epoch"] for row in read_lines(folder / "metrics.jsonl") if "top1" in row] == expected


def test_evaluations_are_not_part_of_the_images_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed, clock = [0.0], time.monotonic

    def slow(*arguments: Any, **options: Any) -> Any:
        passed[0] += 1000
        return evaluate(*arguments, **options)

    monkeypatch.setattr(time, "monotonic", lambda: clock() + passed[0])
    monkeypatch.setattr(validation, "evaluate", slow)
    train(digits_model(), digits(), short_training(epochs=2), run_dir=tmp_path)
    assert passed[0] == 2000
    assert all(row["images_per_second"] > 60 / 1000 for row in read_lines(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("changes", "num_validation", "reason"),
    [({}, 0, "there are no validation images"), ({"evaluate_every": 0}, 50, "evaluate_every is 0")],
    ids=["no images", "no evaluations"],
)
def test_without_evaluations_the_last_epoch_is_kept_and_this_is_said(
    changes: dict[str, Any], num_validation: int, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, settings = digits(num_validation=num_validation), short_training(epochs=2, **changes)
    last = train(digits_model(), data, settings)
    assert "will be kept" not in capsys.readouterr().err
    assert same_tensors(last, train(digits_model(), data, replace(settings, keep_epoch="best"), run_dir=tmp_path))
    assert f"the last epoch will be kept, not the best one, because {reason}" in capsys.readouterr().err
    assert KeptEpoch.read(tmp_path, "train") is None


@pytest.mark.parametrize(("epochs", "every"), [(1, "auto"), (1, 3), (2, 2), pytest.param(2, 5, marks=pytest.mark.slow)])
def test_where_one_epoch_is_evaluated_nothing_is_said_of_a_choice(
    epochs: int, every: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(UNSTEADY, epochs=epochs, evaluate_every=every)
    result = train(digits_model(), digits(), settings, run_dir=tmp_path / "whole")
    for step in range(1, epochs * len(digits().train) // settings.batch_size):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, step)
            train(digits_model(), digits(), settings, run_dir=tmp_path / "resumed")
    resumed = train(digits_model(), digits(), settings, run_dir=tmp_path / "resumed")
    said = capsys.readouterr().err
    assert "optimistic" not in said and "is kept" not in said
    assert ("the last epoch will be kept, not the best one, because no other is evaluated" in said) == (epochs > 1)
    assert same_tensors(result, resumed)
    assert same_tensors(result, train(digits_model(), digits(), replace(settings, keep_epoch="last")))
    for folder in ("whole", "resumed"):
        assert KeptEpoch.read(tmp_path / folder, "train") is None
        rows = read_lines(tmp_path / folder / "metrics.jsonl")
        assert [row["epoch"] for row in rows if "top1" in row] == [epochs]


def test_a_note_on_the_only_epoch_says_nothing_of_a_choice(tmp_path: Path) -> None:
    for epochs in (1, 2):
        last = Validated(epoch=epochs, top1=50.0, loss=1.0)
        KeptEpoch(best=last, last=last, num_images=9).write(tmp_path, "train")
        assert (KeptEpoch.read(tmp_path, "train") is None) == (epochs == 1)


@pytest.mark.parametrize("keep_epoch", ["best", "last"])
def test_a_training_is_continued_with_other_evaluations_only_if_they_change_nothing(
    keep_epoch: Any, tmp_path: Path
) -> None:
    settings = replace(UNSTEADY, keep_epoch=keep_epoch)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 4)
        train(digits_model(), digits(), settings, run_dir=tmp_path)
    others = replace(settings, evaluate_every=2)
    if keep_epoch == "best":
        with pytest.raises(FolderInUse, match="with other settings"):
            train(digits_model(), digits(), others, run_dir=tmp_path)
    else:
        resumed = train(digits_model(), digits(), others, run_dir=tmp_path)
        assert same_tensors(resumed, train(digits_model(), digits(), settings))


def test_the_weights_of_the_best_epoch_are_in_the_checkpoint(tmp_path: Path) -> None:
    kept = train(digits_model(), digits(), UNSTEADY, run_dir=tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    stored = load_file(file)
    for name, value in kept.state_dict().items():
        assert torch.equal(stored[f"best.{name}"], value)
