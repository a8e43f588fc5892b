"""Where the names of bars in a chart stand, so that they cover neither bars nor each other. Nothing is drawn here.

All numbers are points of the figure, from its lower left corner.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

HEIGHT_OF_NAME = 11
MIN_LEFT = 30  # of a name
Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(frozen=True)
class Place:
    """Where a name stands.

    Attributes:
        is_above: whether it is above the bar, not below it.
        right: from the end of the bar to the right.
        up: from the end of the bar upwards.
        side: which side of the name is there.
    """

    is_above: bool
    right: float
    up: float
    side: Literal["left", "center", "right"]

    def box(self, low: Sequence[float], high: Sequence[float], width: float) -> Box:
        """The box of a name of this width, for a bar between two ends."""
        x, y = high if self.is_above else low
        left = x + self.right - width * {"left": 0.0, "center": 0.5, "right": 1.0}[self.side]
        return left, y + self.up, left + width, y + self.up + HEIGHT_OF_NAME


PLACES = (  # the best first
    *(Place(True, 0, 5 + 12 * level, "center") for level in range(2)),
    *(Place(False, 0, -14 - 12 * level, "center") for level in range(2)),
    Place(True, -4, 5, "right"),
    Place(True, 4, 5, "left"),
    Place(True, 0, 29, "center"),
)


def places_of(
    ends: Sequence[tuple[Sequence[float], Sequence[float]]], widths: Sequence[float], *, figure_width: float
) -> list[Place]:
    """Choose a place for the name of each bar, the first where it covers nothing if there is one.

    Args:
        ends: the lower and the upper end of each bar, as x and y.
        widths: of the names.
        figure_width: names should not go beyond it.
    """
    occupied: list[Box] = [(low[0] - 2, low[1], high[0] + 2, high[1]) for low, high in ends]
    chosen = []
    for (low, high), width in zip(ends, widths, strict=True):
        boxes = [place.box(low, high, width) for place in PLACES]
        badness = [_badness(box, occupied, figure_width) for box in boxes]
        best = badness.index(min(badness))
        occupied.append(boxes[best])
        chosen.append(PLACES[best])
    return chosen


def _badness(box: Box, occupied: Sequence[Box], figure_width: float) -> float:
    """How far a name is outside the figure, and how many bars and names it covers."""
    left, bottom, right, top = box
    covered = [one for one in occupied if left < one[2] and one[0] < right and bottom < one[3] and one[1] < top]
    return max(0.0, right - figure_width) + max(0.0, MIN_LEFT - left) + 100 * len(covered)
