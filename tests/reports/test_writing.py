"""Laws of the written pages: both are written, and their digests are noted."""

from pathlib import Path
from typing import Any

from vitrim.reports.details import read
from vitrim.reports.page import to_html
from vitrim.reports.report import to_markdown
from vitrim.reports.writing import write_pages, write_pages_of_sizes
from vitrim.runs.damage import check_folder


def test_both_pages_are_written_and_noted(finished_run: Any, tmp_path: Path) -> None:
    report = finished_run("depth").result.report
    write_pages(tmp_path, report, {})
    assert (tmp_path / "report.md").read_text() == to_markdown(report)
    assert (tmp_path / "report.html").read_text() == to_html(report, {})
    assert check_folder(tmp_path) == []


def test_the_pages_of_several_sizes_have_the_details_of_each(finished_run: Any, tmp_path: Path) -> None:
    run = finished_run("depth")
    report = run.result.report
    name = report["models"][1]["name"]
    write_pages_of_sizes(tmp_path, report, {name: run.folder})
    assert (tmp_path / "report.html").read_text() == to_html(report, {name: read(run.folder)})
