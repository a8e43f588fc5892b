"""Fixtures for tests of the benchmark: rows made once, and plots drawn once."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from builders.records import rows_of, write_cell


@pytest.fixture(scope="session")
def cell_rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of a made-up cell with all arms, two seeds and two fractions to keep. Tests must not change them."""
    return rows_of(write_cell(tmp_path_factory.mktemp("records")))


@pytest.fixture
def drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots of the same rows or points are drawn once, and then copied."""
    from benchmarks import headline_plots, plots
    from benchmarks.costs import plots as cost_plots
    from benchmarks.headline import headline_rows

    drawn: dict[str, dict[str, bytes]] = {}
    draw_plots, draw_growth = plots.draw_plots, cost_plots.draw_growth
    draw_headline = headline_plots.draw_headline

    def copied(key: str, folder: Path, draw: Callable[[], list[Path]]) -> list[Path]:
        if key not in drawn:
            drawn[key] = {path.name: path.read_bytes() for path in draw()}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in drawn[key].items():
            (folder / name).write_bytes(content)
        return [folder / name for name in drawn[key]]

    def copy_plots(cell: str, rows: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
        return copied(json.dumps([cell, rows]), folder, lambda: draw_plots(cell, rows, folder))

    def copy_headline(rows: Sequence[dict[str, Any]], curves: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
        key = json.dumps(["headline", headline_rows(rows), *curves])
        return copied(key, folder, lambda: draw_headline(rows, curves, folder))

    def copy_growth(points: Sequence[dict[str, Any]], path: Path) -> None:
        key = json.dumps(points)
        if key not in drawn:
            draw_growth(points, path)
            drawn[key] = {path.name: path.read_bytes()}
        path.write_bytes(drawn[key][path.name])

    monkeypatch.setattr(plots, "draw_plots", copy_plots)
    monkeypatch.setattr(headline_plots, "draw_headline", copy_headline)
    monkeypatch.setattr(cost_plots, "draw_growth", copy_growth)
