"""Numbers and names as the text of a page. Nothing is computed here besides fractions and changes.

Every function takes values as they are in `report.json` and `details.json`, and returns text without markup.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from vitrim.errors import visible

MINUS = "\u2212"  # as wide as a plus, so that signed numbers line up
NOTHING = "\u2013"  # in a cell without a value
CONTROL = "dense control"  # a benchmark's name of the dense model after as many epochs as the student
NAMES_OF_STAGES = {  # names in `report.json`, and plain words for them
    "dense": "Original model",
    "larger size": "Next larger size",
    "width cut": "Heads and neurons reduced",
    "width recover": "Weights refitted",
    "width distil": "Trained by the original",
    "depth cut": "Blocks removed",
    "depth recover": "Weights refitted again",
    "depth distil": "Trained again",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value can be drawn: a number that is neither infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def short(name: Any, limit: int) -> str:
    """Return a name on one line without hidden characters, cut in the middle if it is longer than `limit`."""
    text = visible(str(name))
    if len(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{text[: limit - 1 - end]}\u2026{text[len(text) - end :]}"


def model_name(row: dict[str, Any], models: Sequence[dict[str, Any]]) -> str:
    """Return what the page calls a model of a report that compares several."""
    if row is models[0]:
        return "original"
    return "original, trained longer" if row["name"] == CONTROL else str(row["name"])


def stage_name(name: Any) -> str:
    """Return the name of a stage in plain words; an unknown one as it is."""
    return NAMES_OF_STAGES.get(name, str(name))


def decimal(value: Any, decimals: int = 1) -> str:
    """Return a number with a fixed number of decimals, such as `95.6`."""
    return f"{value:,.{decimals}f}".replace("-", MINUS) if is_number(value) else NOTHING


def percents(value: Any, decimals: int = 1) -> str:
    """Return a number of percent, such as `95.6 %`."""
    return f"{decimal(value, decimals)}\u00a0%" if is_number(value) else NOTHING


def fraction(value: Any, decimals: int = 1) -> str:
    """Return a fraction in percent: 0.9 is `90.0 %`."""
    return percents(100 * value, decimals) if is_number(value) else NOTHING


def signed(value: Any, decimals: int = 1) -> str:
    """Return a number with its sign, such as `+0.3`; without one if it is rounded to 0."""
    if not is_number(value):
        return NOTHING
    text = f"{value:+,.{decimals}f}"
    return (text[1:] if not float(text.replace(",", "")) else text).replace("-", MINUS)


def change(value: Any, dense: Any) -> str:
    """Return how much a size changed, such as `-40 %`; empty if it cannot be known."""
    if not is_number(value) or not is_number(dense) or not dense:
        return ""
    return f"{signed(100 * (value / dense - 1), 0)}\u00a0%"


def count(value: Any) -> str:
    """Return a count with three or more digits and a prefix, such as `1.23 M`."""
    if not is_number(value):
        return NOTHING
    return with_prefix(value).replace(" ", "\u00a0")


def with_prefix(value: float) -> str:
    """Return a number as `count` does, with an ordinary space, for plain text."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:g}"


def size(value: Any) -> str:
    """Return a number of bytes in megabytes, or in kilobytes if it is small."""
    if not is_number(value):
        return NOTHING
    return f"{value / 1e6:.2f}\u00a0MB" if value >= 1e5 else f"{value / 1e3:.1f}\u00a0kB"


def milliseconds(value: Any) -> str:
    """Return milliseconds with at least three digits."""
    return f"{value:.{2 if value < 100 else 0}f}\u00a0ms" if is_number(value) else NOTHING


def duration(seconds: Any) -> str:
    """Return a time in the two largest units, such as `3 min 5 s`."""
    if not is_number(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def flat(table: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested tables with their keys, joined by dots."""
    if not isinstance(table, dict):
        yield where, table
        return
    for key, value in table.items():
        yield from flat(value, f"{where}.{key}" if where else str(key))


def training_name(stage: Any, num_stages: int) -> str:
    """Return the name of a training for a title; empty if there is only one."""
    known = {"width": "first stage, heads and neurons", "depth": "second stage, blocks", "train": "last snapshot"}
    return "" if num_stages < 2 else known.get(stage, short(stage, 40))
