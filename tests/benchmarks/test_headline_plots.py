"""The plots of the first sections of `results.md`."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks.headline_plots import draw_headline
from benchmarks.measurements import CONTROL
from builders.curves import curve_rows

NAMES = [f"headline{part}{width}.svg" for part in ("", "-time", "-curves") for width in ("", "-narrow")]


def test_the_same_rows_produce_the_same_plots(tmp_path: Path, cell_rows: list[dict[str, Any]]) -> None:
    rows = [row for row in cell_rows if row["arm"] in ("vitrim", "paper", CONTROL)]
    first, second = (draw_headline(rows, curve_rows(), tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == NAMES
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        text = one.read_text()
        assert ">vitrim<" in text and ">dense model<" in text and "<dc:date>" not in text


def test_names_at_the_edge_do_not_overlap(tmp_path: Path, cell_rows: list[dict[str, Any]]) -> None:
    text = draw_headline(cell_rows, [], tmp_path)[0].read_text()
    panel = text.partition('id="axes_2"')[0]
    names = re.findall(r'<text [^>]*y="([\d.]+)"[^>]*>([a-zA-Z][\w, -]+)</text>', panel)
    heights = sorted(float(y) for y, name in names if not name.startswith("multiply-adds") and "minus" not in name)
    assert len(heights) >= 11
    assert all(later - earlier > 9 for earlier, later in pairwise(heights))


def test_without_a_pruned_model_there_is_no_plot(tmp_path: Path) -> None:
    assert draw_headline([], [], tmp_path) == [] and list(tmp_path.iterdir()) == []
