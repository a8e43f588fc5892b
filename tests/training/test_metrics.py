"""`metrics.jsonl`: rows are added, and whatever a line has become is no error."""

from pathlib import Path
from typing import Any

import pytest

from builders.logs import logged
from builders.runs import read_lines
from vitrim.runs.damage import check_folder
from vitrim.training.metrics import Metrics


def metrics(folder: Path, stage: str = "width") -> Metrics:
    return Metrics(folder, stage, 10, is_main_process=True)


def row(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 0.5, "images_per_second": 10.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first = metrics(tmp_path)
    first.delete_after(0)
    for epoch in (1, 2, 3):
        first.add(epoch, row(10 * epoch))
    assert check_folder(tmp_path) == []
    return tmp_path


def test_rows_after_the_checkpoint_are_deleted_and_those_of_other_stages_stay(folder: Path) -> None:
    other = metrics(folder, "depth")
    other.delete_after(0)
    other.add(1, row(10))
    metrics(folder).delete_after(20)
    assert [(one["stage"], one["step"]) for one in read_lines(folder / "metrics.jsonl")] == [
        ("width", 10),
        ("width", 20),
        ("depth", 10),
    ]
    assert check_folder(folder) == []


@pytest.mark.parametrize(
    "line",
    [
        b'{"stage": "width", "ep',
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{}",
        b'{"stage": 1, "step": 2}',
        b"[" * 100_000,
        b"1" * 9_999,
    ],
    ids=["half", "not UTF-8", "list", "number", "no keys", "other type", "nested", "long number"],
)
@pytest.mark.parametrize("ended", [True, False])
def test_a_line_that_cannot_be_read_is_named_and_deleted(
    line: bytes, ended: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + line + (b"\n" if ended else b""))
    again = metrics(folder)
    again.delete_after(20)
    assert "1 line could not be read" in logged(capsys)
    again.add(3, row(30))
    assert [one["step"] for one in read_lines(file)] == [10, 20, 30]
    assert check_folder(folder) == []
