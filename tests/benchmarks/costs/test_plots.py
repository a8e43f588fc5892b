"""The plot of the section `growth`."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks.costs.plots import draw_growth
from builders.ratios import growth_points


def test_the_same_points_produce_the_same_plot(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    for path in (first, second):
        draw_growth(growth_points("size"), path)
    assert first.read_bytes() == second.read_bytes()
    assert "compress" in first.read_text() and "<dc:date>" not in first.read_text()
