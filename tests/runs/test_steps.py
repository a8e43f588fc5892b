"""The noted steps of a run: written for people, and never an error when read."""

from pathlib import Path

import pytest

from vitrim.runs.files import FORECAST
from vitrim.runs.steps import read_steps, write_steps

STEPS = [{"text": "score", "seconds": 3.0}, {"text": "train", "seconds": 60.0, "stage": "width", "num_updates": 100}]


def test_steps_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_steps(tmp_path, "compress", STEPS, [2.5], 1.5)
    found = read_steps(tmp_path)
    assert found is not None and (found.title, found.correction) == ("compress", 1.5)
    assert [(step.text, step.took) for step in found.steps] == [("score", 2.5), ("train", None)]


def test_nothing_is_written_without_a_folder_or_steps(tmp_path: Path) -> None:
    write_steps(None, "plan", STEPS, [], 1.0)
    write_steps(tmp_path / "missing", "plan", STEPS, [], 1.0)
    write_steps(tmp_path, "plan", [], [], 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format": 1, "steps": [{"text": 1}]}', '{"steps": 3}'])
def test_a_file_of_another_form_is_no_error(content: str, tmp_path: Path) -> None:
    (tmp_path / FORECAST).write_text(content)
    assert read_steps(tmp_path) is None
    assert read_steps(tmp_path / "missing") is None
