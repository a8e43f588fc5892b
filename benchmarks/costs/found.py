"""What one measurement of a section returns. This file imports nothing that is slow to load."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.costs.ratios import Ratio


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of a measurement: lines of a table, points of a plot, and texts by their titles."""

    ratios: "Sequence[Ratio]" = ()
    points: Sequence[Mapping[str, Any]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


Parts = Mapping[str, Callable[[], Iterable[Found]]]
"""The parts of a section by name, in the order of measuring. Each is a function that measures and yields results."""
