"""Laws of checkpoints: a resumed training ends like an uninterrupted one, and other checkpoints are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from benchmarks.costs.cases import jpegs
from builders.models import same_tensors
from builders.runs import Stopped, digits, digits_model, read_lines, short_training
from builders.trainings import (
    ALL_TERMS,
    EVERYTHING,
    STEPS_PER_EPOCH,
    max_difference,
    save_only_at,
    stop_at,
    student_and_teacher,
)
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import FolderInUse, NonFiniteLoss
from vitrim.training.loop import TrainingLoop
from vitrim.training.train import train


@pytest.fixture(scope="module")
def uninterrupted() -> nn.Module:
    """The result of a training that was not interrupted."""
    student, arguments = student_and_teacher()
    return train(student, digits(), EVERYTHING, **arguments)


@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (0, 1, 8))])
def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(
    step: int, uninterrupted: nn.Module, tmp_path: Path
) -> None:
    student, arguments = student_and_teacher()
    data = digits()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step)
        train(student, data, EVERYTHING, **arguments, run_dir=tmp_path)
    torch.rand(7)  # a new process has another random state
    resumed = train(student, data, EVERYTHING, **arguments, run_dir=tmp_path)
    assert not same_tensors(uninterrupted, student)
    assert same_tensors(uninterrupted, resumed)


def test_a_training_that_is_interrupted_at_every_step_ends_the_same(tmp_path: Path) -> None:
    student, arguments = student_and_teacher()
    settings = short_training(epochs=2, checkpoint_minutes=0.0, drop_path=0.2)
    uninterrupted = train(student, digits(), settings, **arguments)
    for step in range(1, 2 * STEPS_PER_EPOCH):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, step)
            train(student, digits(), settings, **arguments, run_dir=tmp_path)
    assert same_tensors(uninterrupted, train(student, digits(), settings, **arguments, run_dir=tmp_path))


def test_streamed_images_train_the_same_with_any_number_of_workers_and_after_a_stop(tmp_path: Path) -> None:
    images = jpegs(tmp_path, 40, 10, side=16)
    settings = short_training(epochs=3, checkpoint_minutes=0.0, augmentation=AugmentationSettings())
    uninterrupted = train(digits_model(), images, replace(settings, num_workers=0))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)  # in the middle of the second epoch
        train(digits_model(), images, replace(settings, num_workers=2), run_dir=tmp_path / "run")
    resumed = train(digits_model(), images, replace(settings, num_workers=2), run_dir=tmp_path / "run")
    assert same_tensors(uninterrupted, resumed)


@pytest.mark.parametrize(("saved", "stopped"), [(2, 4), (4, 8), (-1, 7)], ids=["epoch ended", "twice", "no checkpoint"])
def test_metrics_have_one_line_for_each_epoch_after_a_resume(saved: int, stopped: int, tmp_path: Path) -> None:
    model, settings = digits_model(), short_training(epochs=3, checkpoint_minutes=0.0)
    uninterrupted = train(model, digits(), settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        save_only_at(patch, saved)
        stop_at(patch, stopped)
        train(model, digits(), settings, run_dir=tmp_path)
    resumed = train(model, digits(), settings, run_dir=tmp_path)
    assert same_tensors(uninterrupted, resumed)
    assert [row["epoch"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_finished_training_is_read_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = digits_model(), short_training()
    first = train(model, digits(), settings, run_dir=tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    stop_at(monkeypatch, STEPS_PER_EPOCH, Stopped)
    assert same_tensors(first, train(model, digits(), settings, run_dir=tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_stages_write_to_the_same_metrics_and_do_not_affect_each_other(tmp_path: Path) -> None:
    model, settings = digits_model(), short_training(epochs=2)
    alone = train(model, digits(), settings, stage="second")
    train(model, digits(), settings, run_dir=tmp_path, stage="first")
    assert same_tensors(alone, train(model, digits(), settings, run_dir=tmp_path, stage="second"))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [(row["stage"], row["epoch"]) for row in rows] == [("first", 1), ("first", 2), ("second", 1), ("second", 2)]


@pytest.mark.parametrize(
    ("changes", "seed", "num_images"),
    [({"learning_rate": 2e-3}, 0, 60), ({"distillation": ALL_TERMS}, 0, 60), ({}, 1, 60), ({}, 0, 59)],
    ids=["settings", "losses", "seed", "data"],
)
def test_a_checkpoint_of_another_training_is_refused(
    changes: dict[str, Any], seed: int, num_images: int, tmp_path: Path
) -> None:
    train(digits_model(), digits(), short_training(), run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FolderInUse, match="another seed or other data"):
        train(digits_model(), digits(num_images), short_training(**changes), run_dir=tmp_path, seed=seed)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(digits_model(), digits(), short_training(), run_dir=tmp_path / "new")
    with pytest.raises(FolderInUse, match="another model or teacher"):
        train(digits_model(seed=1), digits(), short_training(), run_dir=tmp_path / "new")


def test_the_checkpoint_is_a_safetensors_file_without_pickle(tmp_path: Path) -> None:
    train(digits_model(), digits(), short_training(ema_decay=0.9), run_dir=tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["digests.json", "metrics.jsonl", "train.checkpoint.safetensors"]
    with safe_open(tmp_path / "train.checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["identity"])["seed"] == 0
        assert {name.partition(".")[0] for name in file.keys()} == {"model", "ema", "optimizer"}  # noqa: SIM118


def test_a_loss_that_stays_not_a_number_is_reported_with_its_step_and_the_checkpoint_is_kept(
    uninterrupted: nn.Module, tmp_path: Path
) -> None:
    student, arguments = student_and_teacher()
    bad_step = 4
    with pytest.MonkeyPatch.context() as patch:
        terms = TrainingLoop.loss_terms

        def with_nan(self: TrainingLoop, *args: Any) -> dict[str, torch.Tensor]:
            found = terms(self, *args)
            return {**found, "soft": found["soft"] * torch.nan} if self.step == bad_step else found

        patch.setattr(TrainingLoop, "loss_terms", with_nan)
        message = rf"step {bad_step} \(epoch 2\) of train.*last good checkpoint is .*train"
        with pytest.raises(NonFiniteLoss, match=message):
            train(student, digits(), EVERYTHING, **arguments, run_dir=tmp_path)
    with safe_open(tmp_path / "train.checkpoint.safetensors", framework="pt") as file:
        assert int(file.metadata()["step"]) == bad_step
        assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert ["event" in row for row in rows] == [False, True, True]
    goes_on = train(student, digits(), EVERYTHING, **arguments, run_dir=tmp_path)  # with a quarter of the learning rate
    assert 0 < max_difference(uninterrupted, goes_on) < 0.1
