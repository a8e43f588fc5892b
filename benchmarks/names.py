"""The names of arms in tables and plots, and the texts of numbers.

This file formats single values. Tables belong to `document`, `headline` and `sections`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measurements import CONTROL, CONTROLS, DISTILLED, VITRIM

NONE = "-"
NAMES = {
    VITRIM: "vitrim",
    "vitrim-whole-heads": "vitrim, whole heads",
    "paper": "published method",
    "hard-labels": "published method, labels only",
    "torch-pruning": "Torch-Pruning, whole heads",
    "torch-pruning-head-widths": "Torch-Pruning, head widths",
    "random": "random",
    "magnitude": "magnitude",
    "scratch": "vitrim's widths, new weights",
    "timm-small": "narrow model, new weights",
    CONTROL: "dense control",
    DISTILLED: "dense control, same teacher",
}


def percent(value: float | None) -> str:
    """Return a percentage with two digits."""
    return NONE if value is None else f"{value:.2f} %"


def points(value: float | None) -> str:
    """Return a difference in percentage points with its sign."""
    return NONE if value is None else f"{clean(value, 2):+.2f}"


def nats(value: float | None) -> str:
    """Return a divergence with four digits."""
    return NONE if value is None else f"{value:.4f}"


def interval(row: Mapping[str, Any], *names: str) -> str:
    """Return a difference in points with its 95 % interval. The names are those of the value and of both ends."""
    values = [row.get(name) for name in names]
    return with_interval(values)


def with_interval(values: Sequence[float | None]) -> str:
    """Return a difference in points, and its low and high end if both are known."""
    measured, low, high = values
    if measured is None:
        return NONE
    ends = "" if low is None or high is None else f" [{points(low)}, {points(high)}]"
    return points(measured) + ends


def percent_with_interval(row: Mapping[str, Any], *names: str) -> str:
    """Return a percentage with its 95 % interval. The names are those of the value and of both ends."""
    values = [row.get(name) for name in names]
    if any(value is None for value in values):
        return NONE
    value, low, high = (f"{value:.2f}" for value in values)
    return f"{value} % [{low}, {high}]"


def clean(value: float, digits: int) -> float:
    """Return the rounded value, and never -0.00."""
    return round(value, digits) + 0.0


def numbers(values: Sequence[int]) -> str:
    """Return whole numbers as a list."""
    return ", ".join(str(value) for value in values)


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def by_keep(pairs: Sequence[tuple[float, str]]) -> str:
    """Return the pairs as text, such as `keep 0.7 vitrim, paper; keep 0.5 vitrim`."""
    keeps: dict[float, list[str]] = {}
    for keep, arm in pairs:
        keeps.setdefault(keep, []).append(arm)
    named = [f"keep {keep:g} {', '.join(arms)}" for keep, arms in keeps.items() if not set(arms) <= {*CONTROLS}]
    return "; ".join(named + [", ".join(arms) for arms in keeps.values() if set(arms) <= {*CONTROLS}])


def without_empty_columns(header: Sequence[str], lines: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the header and the lines of a table without the columns in which no line has a value."""
    kept = [place for place in range(len(header)) if any(line[place] != NONE for line in lines)]
    return {"header": [header[place] for place in kept], "lines": [[line[place] for place in kept] for line in lines]}


def what_is_kept(row: Mapping[str, Any]) -> str:
    """Return what the fractions to keep are fractions of."""
    if not row.get("fixed_macs"):
        return "parameters and multiply-adds"
    return "the parameters, and of the multiply-adds outside of the stem"


def macs_limits(row: Mapping[str, Any], keeps: Sequence[float]) -> str:
    """Return the sentence about multiply-adds that no method can remove. Empty if there are none."""
    if not (fixed := row.get("fixed_macs")):
        return ""
    limits = ", ".join(f"{100 * (fixed + keep * (1 - fixed)):.0f} %" for keep in keeps)
    return (
        f"No method can prune the stem, which has {100 * fixed:.1f} % of the multiply-adds. So the limits of all "
        f"multiply-adds are {limits}."
    )
