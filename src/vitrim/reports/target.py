"""What is said about the target of a distillation: the output that is learned in place of the dense model's.

A student of a better teacher gains because of the teacher. So the report names the command of the control: the dense
model itself, trained on by the same teacher for the same epochs.
"""

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from vitrim.errors import counted
from vitrim.evaluation import Evaluation
from vitrim.recipe import TrainRecipe, load_recipe, to_table
from vitrim.reports.report import difference_to
from vitrim.runs.environment import program
from vitrim.training.settings import TrainingSettings

MIN_GAIN = 1.0  # percentage points of the target above the dense model, below which it rarely helps
FLAGS = ("--pretrained", "--strict", "--teacher-flip")  # the options of train and compress without a value
OF_IMAGES = (  # options of the images
    *("--data", "--train-dir", "--val-dir", "--image-column", "--label-column", "--data-dir", "--limit-per-class"),
    *("--holdout", "--strict", "--class-names", "--value-range", "--num-workers"),
)
KEPT = (  # options that the control has in common with the command, besides the settings of the training
    *OF_IMAGES,
    *("--arch", "--pretrained", "--num-classes", "--img-size", "--patch-size", "--model-arg"),
    *("--mean", "--std", "--crop-pct", "--interpolation"),
    *("--teacher", "--teacher-flip"),
)


def target_row(
    dense: Evaluation, target: Evaluation, settings: TrainingSettings, *, num_teachers: int, seed: int
) -> dict[str, Any]:
    """Make the entry `target` of `report.json`.

    Args:
        dense: evaluation of the dense model.
        target: evaluation of the soft labels on the same images.
        settings: of the distillation, with the epochs of all stages.
        num_teachers: from elsewhere; 0 if the dense model is the teacher.
        seed: of the run.
    """
    row = {
        "top1": target.top1,
        "top1_low": target.low,
        "top1_high": target.high,
        **difference_to(dense, target),
        "num_teachers": num_teachers,
        "flip": settings.distillation.flip,
        "temperature": settings.distillation.temperature,
        "control": control_command(settings, sys.argv[1:] if program() == "vitrim" else (), seed=seed),
    }
    return {**row, "sentence": _sentence(row)}


def _sentence(row: dict[str, Any]) -> str:
    """Say how accurate the target is, how far it is above the dense model, and whose gain it is."""
    teachers = counted(row["num_teachers"], "teacher") if row["num_teachers"] else "the dense model"
    views = " for images and mirror images" if row["flip"] else ""
    is_low = row["difference"] < MIN_GAIN
    hint = f" A target less than {MIN_GAIN:g} point above the dense model rarely helps." if is_low else ""
    return (
        f"The students learn the mean output of {teachers}{views}: top-1 {row['top1']:.2f} % "
        f"[{row['top1_low']:.2f}, {row['top1_high']:.2f}] on the validation images. The dense model has "
        f"{row['top1'] - row['difference']:.2f} %; the difference is {row['difference']:+.2f} points "
        f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}].{hint} A gain of the students over the dense "
        "model is the teacher's. The control is the dense model, trained on by the same teacher for the same epochs:"
    )


def control_command(settings: TrainingSettings, words: Sequence[str], *, seed: int) -> str:
    """The command that trains the dense model on, with the teachers, epochs and settings of the students.

    Args:
        settings: of the distillation, with the epochs of all stages.
        words: of the command `compress`, after the program; empty if it was called from Python.
        seed: of the run.
    """
    losses = replace(settings.distillation, hidden=0.0, relations=0.0)  # of the teachers, only outputs are learned
    requested = dict(_flat(to_table(replace(settings, distillation=losses))))
    model, kept, output = _parts(words[1:]) if words[:1] == ["compress"] else ("", [], "")
    if not model:
        return f"vitrim.train(dense, data, replace(settings, epochs={settings.epochs}), teacher=teacher)"
    if "--teacher" not in {word.partition("=")[0] for word in kept}:
        kept += ["--teacher", model]
    usual = dict(_flat(to_table(load_recipe("train", kind=TrainRecipe).training)))
    epochs = requested.pop("epochs")
    if "--teacher-flip" in kept:
        del requested["distillation.flip"]
    changes = [f"--set=training.{key}={value}" for key, value in requested.items() if usual[key] != value]
    seeds = ["--seed", str(seed)] if seed else []
    folder = f"{output or f'runs/{model}'}-control"
    return shlex.join(["vitrim", "train", model, *kept, "--epochs", epochs, *changes, *seeds, "-o", folder])


def data_options(words: Sequence[str]) -> list[str]:
    """The options of the images in a command; `--data DATA` if it was called from Python.

    Args:
        words: of the command, after the program.
    """
    found = _parts(words[1:], OF_IMAGES)[1] if program() == "vitrim" else []
    return found or ["--data", "DATA"]


def _parts(words: Sequence[str], options: Sequence[str] = KEPT) -> tuple[str, list[str], str]:
    """The model that a command names, those of its options that are among `options`, and its folder."""
    model, kept, output, rest = "", list[str](), "", iter(words)
    for word in rest:
        name, has_value, value = word.partition("=")
        if not word.startswith("-"):
            model = model or word
            continue
        own = [word] if has_value or name in FLAGS else [word, next(rest, "")]
        if name in options:
            kept += own
        if name in ("-o", "--output"):
            output = value or own[-1]
    return model, kept, output.rstrip("/")


def _flat(table: dict[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """The settings of nested tables with dots in their keys, and their values as `--set` reads them."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value if isinstance(value, str) else json.dumps(value)
