"""Writes the pages of a run: `report.md` and `report.html`. They are written again whenever a command is repeated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrim.reports.details import read
from vitrim.reports.page import to_html
from vitrim.reports.report import to_markdown
from vitrim.runs.digests import write_text_noted
from vitrim.runs.files import PAGE
from vitrim.runs.processes import is_main_process

MARKDOWN = "report.md"


def write_pages_of_sizes(folder: Path, report: dict[str, Any], runs: Mapping[str, Path]) -> None:
    """Write both pages of a run whose models are those of other runs. Only the first process writes.

    Args:
        folder: of the run.
        report: the content of its `report.json`.
        runs: the folder of the run of each smaller model, by the name of the model. Its `details.json` is read.
    """
    write_pages(folder, report, {name: read(path) for name, path in runs.items()})


def write_pages(folder: Path, report: dict[str, Any], details: Mapping[str, dict[str, Any]]) -> None:
    """Write both pages. Only the first process writes.

    Args:
        folder: of the run.
        report: the content of `report.json`.
        details: the content of `details.json`, by the name of the smaller model; of `train`, by that of the only model.
    """
    if is_main_process():
        write_text_noted(folder / MARKDOWN, to_markdown(report))
        write_text_noted(folder / PAGE, to_html(report, details))
