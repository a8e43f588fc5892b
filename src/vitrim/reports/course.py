"""The course of a run: what its trainings noted after each epoch, and how long each step took."""

from pathlib import Path
from typing import Any

from vitrim.runs.files import STAGES
from vitrim.runs.folder import SECONDS
from vitrim.runs.metric_rows import epochs_of
from vitrim.runs.seconds import read_seconds

SEARCH = "depth-search"  # prefix of the stages of trainings that only the search for the number of blocks makes
SNAPSHOT = "snapshot-"  # prefix of the stages of a training in cycles, before the last one
MAX_ROWS = 400  # of one training; longer ones are thinned out
COLUMNS = ("loss", "validation_loss", "top1")
STEPS = {  # in the order of a run: the name of a step, and the beginnings of the names of its results
    "evaluate": ("evaluation-",),
    "measure the device": ("device",),
    "score heads and neurons": ("scores",),
    "measure the rotation of heads": ("rotation",),
    "compare head widths": ("head-widths",),
    "search the number of blocks": ("depth-order", "depth-plan-", "depth-search-"),
    "plan the width": ("width-plan",),
    "refit after the width cut": ("width-recovered",),
    "distil after the width cut": ("width-distilled",),
    "plan the depth": ("depth-step",),
    "refit after the depth cut": ("depth-recovered",),
    "distil after the depth cut": ("depth-distilled",),
    "measure latency": ("report",),
}
TRAININGS = {  # the step that is a training, by its stage in `metrics.jsonl`
    "train": "train",
    "width": "distil after the width cut",
    "depth": "distil after the depth cut",
}


def curve_rows(folder: Path) -> list[dict[str, Any]]:
    """The entry `curves` of `details.json`: loss and accuracy after each epoch of each training, without the search."""
    return [
        {"stage": stage, "rows": [_curve_row(row) for row in _thinned(rows)]}
        for stage, rows in epochs_of(folder).items()
        if not stage.startswith(SEARCH)
    ]


def _curve_row(row: dict[str, Any]) -> dict[str, Any]:
    return {"epoch": row["epoch"], **{name: _number(row.get(name)) for name in COLUMNS}}


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every second row, every third row and so on, and the last one, if there are many."""
    step = -(-len(rows) // MAX_ROWS)
    return rows if step <= 1 else [row for place, row in enumerate(rows, 1) if place % step == 0 or place == len(rows)]


def _number(value: Any) -> float | None:
    """A finite number; None for anything else that a line may have."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return round(float(value), 6) if is_number and abs(value) < float("inf") else None


def second_rows(folder: Path) -> list[dict[str, Any]]:
    """The entry `seconds` of `details.json`: the seconds of each step of a run, in order.

    Those of a training are the sum over its epochs, so they have also those before an interruption. Other steps were
    measured while their results were made, see `runs.seconds`. Steps that took less than 0.005 seconds are left out.
    """
    found: dict[str, float] = {}
    for name, seconds in read_seconds(folder / SECONDS).items():
        step = _step_of(name.removeprefix(f"{STAGES}/"))
        if step:
            found[step] = found.get(step, 0.0) + seconds
    trained: dict[str, float] = {}
    for stage, rows in epochs_of(folder).items():
        whole = sum(_number(row.get("seconds")) or 0.0 for row in rows)
        training = TRAININGS.get("train" if stage.startswith(SNAPSHOT) else stage)
        if training and whole:
            trained[training] = trained.get(training, 0.0) + whole
    found |= trained
    order = ("train", *STEPS)
    rows_of_steps = [{"name": step, "seconds": round(found[step], 2)} for step in order if step in found]
    return [row for row in rows_of_steps if row["seconds"]]


def _step_of(name: str) -> str:
    """The step that a result belongs to; empty if it is not shown, such as saving a model."""
    return next((step for step, beginnings in STEPS.items() if name.startswith(beginnings)), "")
