"""Reads `metrics.jsonl`, which has one row for each epoch and each event. `training.metrics` writes it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrim.runs.files import METRICS


def row_in(line: str) -> dict[str, Any] | None:
    """A row of the file; None if the line is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("stage"), str)
    is_row = is_row and ("event" in row or isinstance(row.get("step"), int))
    return row if is_row and "\ufffd" not in line else None


def rows_in(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a run, in order; none without the file. Lines that cannot be read are left out."""
    file = folder / METRICS
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n") if file.is_file() else []
    yield from filter(None, map(row_in, lines))


def epochs_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the epochs of each training of a run, by its stage."""
    found = dict[str, list[dict[str, Any]]]()
    for row in rows_in(folder):
        if "event" not in row and isinstance(row.get("epoch"), int):
            found.setdefault(row["stage"], []).append(row)
    return found
