"""Laws of the places of names: names of bars that are close cover nothing, if that is possible."""

from itertools import combinations

import pytest

from vitrim.reports.labels import Box, places_of

Bar = tuple[tuple[float, float], tuple[float, float]]


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@pytest.mark.parametrize("xs", [(100, 200, 300), (200, 212, 224, 236), (250, 251, 300), (100,)])
def test_names_cover_neither_bars_nor_each_other(xs: tuple[float, ...]) -> None:
    bars: list[Bar] = [((x, 60), (x, 160)) for x in xs]
    widths = [30.0 for _ in xs]
    chosen = places_of(bars, widths, figure_width=400)
    boxes = [place.box(*bar, width) for place, bar, width in zip(chosen, bars, widths, strict=True)]
    assert not any(overlap(one, other) for one, other in combinations(boxes, 2))
    assert not any(overlap(box, (low[0], low[1], high[0], high[1])) for box in boxes for low, high in bars)


def test_a_name_at_the_edge_stays_in_the_figure() -> None:
    place = places_of([((395, 60), (395, 160))], [60.0], figure_width=400)[0]
    assert place.side == "right"


def test_a_name_alone_stands_above_its_bar() -> None:
    place = places_of([((200, 60), (200, 160))], [60.0], figure_width=400)[0]
    assert place.is_above and place.side == "center"
