"""Laws of what is said about the target of a distillation."""

import shlex
from dataclasses import replace
from typing import Any

import pytest

from builders.runs import short_training
from vitrim.cli import app
from vitrim.losses import DistillationSettings
from vitrim.recipe import TrainRecipe, load_recipe
from vitrim.reports.target import FLAGS, KEPT, control_command

COMMAND = ["compress", "runs/a", "--data=./my photos", "--strict", "--keep", "0.7", "--teacher", "b", "-o", "runs/c/"]


def options_of(command: str) -> dict[str, Any]:
    """The type of each option of a command."""
    arguments = app[command].assemble_argument_collection()
    return {name: one.hint for one in arguments for name in one.names if name.startswith("--")}


def test_the_options_that_the_control_keeps_are_options_of_train() -> None:
    assert set(KEPT) <= options_of("train").keys()


def test_options_without_a_value_are_known() -> None:
    flags = {name for name, hint in options_of("compress").items() if hint is bool and not name.startswith("--no-")}
    assert flags == set(FLAGS)


def test_the_control_has_the_images_teachers_and_settings_of_the_command() -> None:
    settings = replace(load_recipe("train", kind=TrainRecipe).training, epochs=7, drop_path=0.25)
    settings = replace(settings, distillation=DistillationSettings(flip=True, hidden=0.0))
    words = shlex.split(control_command(settings, [*COMMAND, "--teacher-flip"], seed=3))
    assert words == [
        *("vitrim", "train", "runs/a", "--data=./my photos", "--strict", "--teacher", "b", "--teacher-flip"),
        *("--epochs", "7", "--set=training.drop_path=0.25", "--set=training.distillation.hidden=0.0"),
        *("--seed", "3", "-o", "runs/c-control"),
    ]


def test_without_a_teacher_the_dense_model_is_that_of_the_control() -> None:
    flipped = short_training(distillation=DistillationSettings(flip=True))
    words = shlex.split(control_command(flipped, ["compress", "runs/a", "--data", "x"], seed=0))
    assert words[:7] == ["vitrim", "train", "runs/a", "--data", "x", "--teacher", "runs/a"]
    assert "--set=training.distillation.flip=true" in words


@pytest.mark.parametrize("words", [(), ("script.py",), ("compress",)])
def test_without_a_command_line_the_call_in_python_is_named(words: tuple[str, ...]) -> None:
    assert control_command(short_training(epochs=4), words, seed=0).startswith("vitrim.train(dense, data, ")
