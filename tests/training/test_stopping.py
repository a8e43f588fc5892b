"""A training that receives a signal ends after its update, with a checkpoint from which it goes on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builders.models import same_tensors
from builders.runs import digits, digits_model, read_lines
from builders.trainings import EVERYTHING, STEPS_PER_EPOCH
from vitrim.runs.signals import Interrupted, handled
from vitrim.training.loop import TrainingLoop
from vitrim.training.settings import TrainingSettings
from vitrim.training.state import updates_made
from vitrim.training.train import train

RARELY = TrainingSettings(**{**vars(EVERYTHING), "checkpoint_minutes": 60.0})


@pytest.fixture(autouse=True)
def _usual_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def signal_in(patch: pytest.MonkeyPatch, step: int, method: str = "update", times: int = 1) -> None:
    """Let a training receive SIGTERM while it makes the update after `step` updates."""
    original = getattr(TrainingLoop, method)

    def signalled(self: TrainingLoop, *arguments: Any) -> None:
        if self.step == step:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
        original(self, *arguments)

    patch.setattr(TrainingLoop, method, signalled)


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH - 1, 3 * STEPS_PER_EPOCH - 1])
def test_a_signal_saves_a_checkpoint_and_the_training_ends_like_an_uninterrupted_one(step: int, tmp_path: Path) -> None:
    whole = train(digits_model(), digits(), RARELY, run_dir=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), handled():
        signal_in(patch, step)
        train(digits_model(), digits(), RARELY, run_dir=tmp_path / "run")
    assert updates_made(tmp_path / "run", "train") == step + 1
    assert same_tensors(whole, train(digits_model(), digits(), RARELY, run_dir=tmp_path / "run"))
    rows = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "run")]
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]


def test_a_second_signal_ends_a_training_at_once(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), handled():
        signal_in(patch, 1, times=2)
        train(digits_model(), digits(), RARELY, run_dir=tmp_path / "run")
    assert not updates_made(tmp_path / "run", "train")


def test_without_a_folder_a_signal_ends_a_training_at_once() -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), handled():
        signal_in(patch, 1)
        train(digits_model(), digits(), RARELY)


def test_a_signal_in_an_evaluation_saves_its_result(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted), handled():
        signal_in(patch, STEPS_PER_EPOCH, "_end_epoch")
        train(digits_model(), digits(), RARELY, run_dir=tmp_path / "run")
    assert updates_made(tmp_path / "run", "train") == STEPS_PER_EPOCH
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 1
