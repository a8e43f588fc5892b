"""The plots of a cell."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from benchmarks.document import to_markdown
from benchmarks.measurements import CONTROL
from benchmarks.plots import draw_plots


def test_the_same_rows_produce_the_same_plots(tmp_path: Path, cell_rows: list[dict[str, Any]]) -> None:
    first, second = (draw_plots("tiny", cell_rows, tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["tiny-accuracy.svg", "tiny-stages.svg"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert "vitrim" in one.read_text() and "<dc:date>" not in one.read_text()


@pytest.mark.parametrize("arms", [("vitrim",), ("scratch",), (CONTROL,)])
def test_a_cell_with_one_arm_has_a_document_and_plots(
    tmp_path: Path, cell_rows: list[dict[str, Any]], arms: tuple[str, ...]
) -> None:
    rows = [row for row in cell_rows if row["arm"] in arms]
    assert "small ViT on toys" in to_markdown(rows, [])
    draw_plots("tiny", rows, tmp_path / "plots")
