"""The beginning of `docs/results.md`: one table and its caption, for the cell with the most complete rows.

This file chooses the cell and formats numbers. It computes none. The plot belongs to `headline_plots`.
"""

import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.measurements import ARMS, CONTROLS, DISTILLED, VITRIM
from benchmarks.names import NAMES, NONE, macs_limits, numbers, what_is_kept
from benchmarks.results import Row
from benchmarks.targets import MET, NOT_MET, OPEN, WITHIN, Target, count_verdicts

# what the second part of the table shows: key, title, whether a smaller value is better
MEASURES = (
    ("kl_dense", "KL divergence from the dense model, nats", True),
    ("agreement", "same class as the dense model, % of images", False),
    ("latency_ratio", "latency / latency of the dense model", True),
)
SHARED_DENSE_NOTE = (
    "One dense model: the intervals are over images and student seeds, not over dense models."  # of `dense_seed_shared`
)


def headline_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the cell that the page begins with. No rows if no cell has a pruned model.

    It is the cell with the most rows of pruned models that have all values of the table. If cells are equal in this,
    rows that lack the latency decide, then rows with top-1 alone. A cell with a better teacher is not taken if there
    is another one, because the teacher is not part of the method.
    """
    cells: dict[str, list[Row]] = {}
    for row in rows:
        cells.setdefault(row["cell"], []).append(row)
    with_pruned = {name: [row for row in members if row["keep"] < 1] for name, members in cells.items()}

    def completeness(name: str) -> tuple[bool, int, int, int]:
        compared = [row for row in with_pruned[name] if row.get("kl_dense") is not None]
        complete = [row for row in compared if row.get("latency_ratio") is not None]
        plain = not any(row.get("teacher") for row in cells[name])
        return plain, len(complete), len(compared), len(with_pruned[name])

    found = [name for name in with_pruned if with_pruned[name]]
    return cells[max(found, key=completeness)] if found else []


def opening(rows: Sequence[Row], targets: Sequence[Target]) -> dict[str, Any] | None:
    """Return the values of the beginning of the page. None if there is no pruned model.

    Args:
        rows: the rows of the headline cell.
        targets: its targets.
    """
    if not rows:
        return None
    notes = _Notes(rows)
    return {
        "cell": rows[0]["cell"],
        "model": rows[0]["model"],
        "dataset": rows[0]["dataset"],
        "keeps": [f"{100 * keep:g}&nbsp;%" for keep in keeps_of(rows)],
        "kept": what_is_kept(rows[0]),
        "accuracy": _accuracy(rows, notes),
        "measures": _measures(rows, notes),
        "notes": notes.texts(),
        "caption": _caption(rows),
        "commands": list(dict.fromkeys(line for row in rows for line in row["command"].split("\n"))),
        "targets": targets_line(targets),
    }


def keeps_of(rows: Sequence[Row]) -> list[float]:
    """Return the fractions to keep of pruned models, largest first."""
    return sorted({row["keep"] for row in rows if row["arm"] not in CONTROLS}, reverse=True)


def arms_of(rows: Sequence[Row]) -> list[str]:
    """Return the arms that prune, in the order of the tables."""
    return [arm for arm in ARMS if arm not in CONTROLS and any(row["arm"] == arm for row in rows)]


def controls_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of dense models that were trained on, in a fixed order."""
    return [row for arm in CONTROLS for row in rows if row["arm"] == arm]


def main_key(rows: Sequence[Row]) -> tuple[tuple[int, ...], float]:
    """Return the seeds and the top-1 of the dense model that most rows of vitrim have, or most rows without vitrim."""
    pruned = [row for row in rows if row["keep"] < 1]
    vitrim = [row for row in pruned if row["arm"] == VITRIM]
    return Counter(key_of(row) for row in vitrim or pruned or rows).most_common(1)[0][0]


def key_of(row: Row) -> tuple[tuple[int, ...], float]:
    """Return the seeds and the top-1 of the dense model. Top-1 of rows that differ in it cannot be compared."""
    return tuple(row["seeds"]), round(row["top1_dense"], 2)


def targets_line(targets: Sequence[Target]) -> str:
    """Return how many targets are met, not met, undecided and open, and which are not met."""
    if not targets:
        return ""
    counts = count_verdicts(targets)
    parts = [
        f"{counts[MET]} met",
        f"{counts[NOT_MET]} missed",
        f"{counts[WITHIN]} undecided (the target is within the 95 % interval)",
        f"{counts[OPEN]} open (not completely measured)",
    ]
    missed: dict[str, list[str]] = {}
    for target in targets:
        if target.verdict == NOT_MET:
            missed.setdefault(target.name, []).append(f"{target.keep:g}")
    listed = "; ".join(f"{name}, keep {', '.join(keeps)}" for name, keeps in missed.items())
    return ", ".join(parts) + "." + (f" Missed: {listed}." if listed else "")


class _Notes:
    """Marks of rows whose seeds or dense model differ from those of most rows."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.common = main_key(rows)
        self.marks: dict[tuple[tuple[int, ...], float], str] = {}

    def mark(self, row: Row) -> str:
        key = key_of(row)
        if key == self.common:
            return ""
        return f"<sup>{self.marks.setdefault(key, string.ascii_lowercase[len(self.marks)])}</sup>"

    def texts(self) -> list[str]:
        return [
            f"<sup>{mark}</sup> {'seed' if len(seeds) == 1 else 'seeds'} {numbers(seeds)}, dense model {dense:.2f} %"
            for (seeds, dense), mark in self.marks.items()
        ]


def _accuracy(rows: Sequence[Row], notes: _Notes) -> list[dict[str, Any]]:
    """Return the lines of the first part. A dense model has one cell for all fractions to keep."""
    lines = [{"name": "dense model", "cells": [f"{main_key(rows)[1]:.2f}"], "is_dense": True}]
    for row in controls_of(rows):
        lines.append({"name": _name(row["arm"]), "cells": [_with_half_width(row) + notes.mark(row)], "is_dense": True})
    places = {(row["arm"], row["keep"]): row for row in rows}
    for arm in arms_of(rows):
        cells = []
        for keep in keeps_of(rows):
            if (arm, keep) not in places:
                cells.append(NONE)
                continue
            row = places[arm, keep]
            is_best = row in _best_of(rows, keep, "delta_dense", smaller=False)
            cells.append(_bold(_with_half_width(row), is_best) + notes.mark(row))
        lines.append({"name": _name(arm), "cells": cells, "is_dense": False})
    return lines


def _measures(rows: Sequence[Row], notes: _Notes) -> dict[str, Any] | None:
    """Return the second part: for each measure one column for each fraction to keep. None if none is measured."""
    found = [measure for measure in MEASURES if any(row.get(measure[0]) is not None for row in rows)]
    if not found:
        return None
    keeps, places = keeps_of(rows), {(row["arm"], row["keep"]): row for row in rows}
    lines = []
    for row in controls_of(rows):
        cells = [_value(row, key) + (notes.mark(row) if row.get(key) is not None else "") for key, _, _ in found]
        lines.append({"name": _name(row["arm"]), "cells": cells, "is_dense": True})
    for arm in arms_of(rows):
        cells = []
        for key, _, smaller in found:
            for keep in keeps:
                row = places.get((arm, keep), {})
                is_best = row in _best_of(rows, keep, key, smaller=smaller)
                text = _value(row, key)
                cells.append(_bold(text, is_best) + (notes.mark(row) if text != NONE else ""))
        if any(cell != NONE for cell in cells):
            lines.append({"name": _name(arm), "cells": cells, "is_dense": False})
    return {"titles": [title for _, title, _ in found], "lines": lines}


def _best_of(rows: Sequence[Row], keep: float, key: str, *, smaller: bool) -> list[Row]:
    """Return the pruned models with the best value. Only models with the seeds of vitrim are compared."""
    members = [row for row in rows if row["keep"] == keep and row.get(key) is not None]
    vitrim = next((row for row in members if row["arm"] == VITRIM), None)
    compared = [row for row in members if vitrim is None or key_of(row) == key_of(vitrim)]
    if not compared:
        return []
    values = [round(row[key], 4) for row in compared]
    best = min(values) if smaller else max(values)
    return [row for row, value in zip(compared, values, strict=True) if value == best]


def _name(arm: str) -> str:
    return _bold(NAMES[arm].replace(" ", "&nbsp;"), arm == VITRIM)


def _value(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return NONE
    if key == "agreement":
        return f"{value:.1f}"
    return (
        f"{value:.4f}"
        if key == "kl_dense" and value < 0.01
        else f"{value:.3f}"
        if key == "kl_dense"
        else f"{value:.2f}"
    )


def _with_half_width(row: Row) -> str:
    """Return top-1, and half the width of the 95 % interval of the difference to the dense model."""
    return f"{row['top1']:.2f}&nbsp;±&nbsp;{(row['high'] - row['low']) / 2:.2f}"


def _bold(text: str, is_bold: bool) -> str:
    return f"<b>{text}</b>" if is_bold and text != NONE else text


def _caption(rows: Sequence[Row]) -> list[str]:
    """Return the sentences of the caption: what was measured, how, where, and by which command."""
    main = next((row for row in rows if row["arm"] == VITRIM), rows[0])
    seeds = main_key(rows)[0]
    commits = list(dict.fromkeys(commit for row in rows for commit in row["commit"].split("\n")))
    hardware = list(dict.fromkeys(line for row in rows for line in row["hardware"].split("\n")))
    found = [
        f"{main['model']} on {main['dataset']}, {main['num_images']:,} test images, used for reporting only",
        f"{'seed' if len(seeds) == 1 else 'means over seeds'} {numbers(seeds)}",
        f"{main['dense_epochs']} epochs of the dense model, {main['student_epochs']} of each other model",
    ]
    text = "; ".join(found) + "."
    text = text[0].upper() + text[1:]
    notes = [text, "± is half the width of the 95 % interval of the paired difference to the dense model."]
    same = all(key_of(row) == main_key(rows) for row in rows)
    notes.append(
        f"The best pruned model of each column{'' if same else ', of those with the seeds of vitrim,'} is bold."
    )
    notes += [text for text in [macs_limits(main, keeps_of(rows))] if text]
    notes.append("In the plot, the axis of differences is linear up to 1 point, and logarithmic beyond.")
    if any(row["arm"] in CONTROLS for row in rows):
        notes.append("A dense control is the dense model, trained on for the epochs of the students.")
    if any(row["arm"] == DISTILLED for row in rows):
        notes.append("The one with the same teacher has the loss of the students, with the dense model as its teacher.")
    if any(row.get("dense_seed_shared") for row in rows):
        notes.append(SHARED_DENSE_NOTE)
    elif len(seeds) == 1:
        notes.append("One seed: the intervals are over images only.")
    timed = next((row for row in rows if row.get("latency_ratio") is not None), None)
    if timed:
        batch = "" if timed.get("latency_batch") is None else f"batch {timed['latency_batch']}"
        dense = "" if timed.get("latency_dense_ms") is None else f"dense model {timed['latency_dense_ms']:.2f} ms"
        details = ", ".join(part for part in (timed.get("latency_on"), batch, dense) if part)
        notes.append(f"Latency: paired rounds{f' ({details})' if details else ''}.")
    notes.append(f"Hardware: {'; and '.join(hardware)}.")
    return [*notes, f"Commit {', '.join(commits)}."]
