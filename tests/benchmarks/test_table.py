"""The command `python -m benchmarks.table`: which files it writes and what it refuses."""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from benchmarks.curves import curve_rows, merge_curves
from benchmarks.measurements import CONTROL
from benchmarks.results import merge
from benchmarks.table import main
from builders.records import evaluation, exit_status, rows_of, write_arm, write_cell


def test_the_command_writes_the_documents_and_adds_to_them(tmp_path: Path, drawn_once: None) -> None:
    docs, configs = tmp_path / "docs", tmp_path / "none"
    out, other = (
        write_cell(tmp_path / name, ("vitrim", "paper", CONTROL), (0.7,), cell=name) for name in ("tiny", "other")
    )
    assert exit_status(main, out, "--docs", docs, "--configs", configs) == 0
    assert exit_status(main, other, "--docs", docs, "--configs", configs) == 0
    rows = json.loads((docs / "results.json").read_text())
    assert rows == merge(rows_of(out), rows_of(other))
    text = (docs / "results.md").read_text()
    plots = re.findall(r"\]\((plots/.*?)\)", text)
    assert len(plots) == 4 and all((docs / plot).is_file() for plot in plots)
    before = (docs / "results.json").read_bytes(), text
    assert exit_status(main, "--docs", docs, "--configs", configs) == 0
    assert before == ((docs / "results.json").read_bytes(), (docs / "results.md").read_text())


def test_curves_of_cells_are_added_to_those_of_the_documents(tmp_path: Path, drawn_once: None) -> None:
    docs, known = tmp_path / "docs", []
    for cell in ("tiny", "other"):
        out = write_cell(tmp_path / cell, ("vitrim", "paper"), (0.7,), cell=cell)
        write_arm(out / "epochs-1", "vitrim", 0.7, 0, cell=cell, student_epochs=1)
        known += curve_rows(out)
        (out / "curves.json").write_text(json.dumps(curve_rows(out)))
        assert exit_status(main, out, "--docs", docs, "--configs", tmp_path / "none") == 0
    rows = json.loads((docs / "curves.json").read_text())
    assert len(rows) == 6 and rows == merge_curves(known, [])
    assert {row["arm"] for row in rows} == {"vitrim"}


def test_tuning_cells_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_cell(tmp_path / "out", ("vitrim",), tuning=True)
    assert exit_status(main, out, "--docs", tmp_path / "docs") == 2
    message = capsys.readouterr().err
    assert "tiny was measured on images split from the training set" in message and message.count("\n") == 1
    assert not (tmp_path / "docs").exists()


def test_tuning_cells_have_separate_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = write_cell(tmp_path / "out", ("vitrim",), tuning=True)
    assert exit_status(main, out, "--docs", tmp_path / "docs", "--tuning", "-") == 0
    printed = capsys.readouterr().out
    assert exit_status(main, out, "--docs", tmp_path / "docs", "--tuning", tmp_path / "tuning.md") == 0
    assert (tmp_path / "tuning.md").read_text() == printed
    assert "| **vitrim** | 61.00 %" in printed and "images split from the training set" in printed
    assert not (tmp_path / "docs").exists()


@pytest.mark.parametrize("problem", ["missing", "empty", "twice", "final", "sizes", "epochs", "unknown"])
def test_what_the_user_can_correct_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], problem: str
) -> None:
    out = tmp_path / "out"
    arguments = [out, "--docs", tmp_path / "docs"]
    if problem == "empty":
        out.mkdir()
    elif problem != "missing":
        write_cell(out, ("vitrim",), (0.7,))
    if problem == "twice":
        arguments.insert(0, write_cell(tmp_path / "again", ("vitrim",), (0.7,)))
    elif problem == "final":
        arguments += ["--tuning", "-"]
    elif problem == "sizes":
        small = evaluation(50, 0, 100)
        write_arm(out, "scratch", 0.7, 0, evaluation=small, dense=small)
    elif problem == "epochs":
        write_arm(out, "vitrim", 0.7, 2, student_epochs=99)
    elif problem == "unknown":
        write_arm(out, "paper", 0.5, 0)
        path = next(out.rglob("paper/arm.json"))
        path.write_text(path.read_text().replace('"paper"', '"papier"'))
    assert exit_status(main, *arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith("benchmarks.table: ") and message.count("\n") == 1
