"""The page of a run: `report.html`, made from `report.json` and `details.json`."""

import html
from collections.abc import Mapping
from typing import Any


def to_html(report: dict[str, Any], details: Mapping[str, dict[str, Any]]) -> str:
    """Make the text of `report.html`.

    Args:
        report: the content of `report.json`.
        details: the content of `details.json`, by the name of the smaller model; of `train`, by that of the only model.
    """
    return f"<!doctype html>\n<title>{html.escape(str(report['title']))}</title>\n<p>{len(details)}</p>\n"
