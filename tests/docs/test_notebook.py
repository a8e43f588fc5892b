"""The notebook runs, and its stored outputs are those of its cells."""

import re

import nbformat
import pytest

from tools.run_notebook import NOTEBOOK, executed

pytestmark = pytest.mark.docs
NUMBER = re.compile(r"\d[\d,.]*")


def words_of(cell: nbformat.NotebookNode) -> list[str]:
    """The text of a cell's outputs without numbers, which depend on the machine; a picture is its kind."""
    texts = [output.get("text") or " ".join(sorted(output.get("data", {}))) for output in cell.get("outputs", [])]
    return NUMBER.sub("#", " ".join(texts)).split()


def test_the_notebook_runs_and_prints_what_it_has_stored() -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    again = executed(nbformat.read(NOTEBOOK, as_version=4))
    assert [cell.source for cell in again.cells] == [cell.source for cell in stored.cells]
    assert [words_of(cell) for cell in again.cells] == [words_of(cell) for cell in stored.cells]


def test_every_cell_was_executed_in_its_order() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_no_stored_output_is_an_error_or_a_warning() -> None:
    outputs = [output for cell in nbformat.read(NOTEBOOK, as_version=4).cells for output in cell.get("outputs", [])]
    assert len(outputs) >= 6
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
