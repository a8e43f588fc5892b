"""One report of several models that were made from the same dense model. Nothing is measured here."""

from collections.abc import Sequence
from typing import Any

from vitrim.costs.latency import Latency
from vitrim.recipe import Recipe, to_table
from vitrim.reports.latency import latency_columns
from vitrim.reports.verdict import with_verdict


def join(
    found: Sequence[dict[str, Any]], latencies: Sequence[Latency], *, recipe: Recipe, title: str, busy: str = ""
) -> dict[str, Any]:
    """Make one report of the reports of several sizes, the largest first.

    Args:
        found: reports with two models each, the dense one first.
        latencies: of the dense model and of each smaller one, timed in the same rounds.
        recipe: of all sizes together.
        title: of the report.
        busy: says that the machine was busy when latencies were measured; empty if it was not.

    Returns:
        Plain data for JSON.
    """
    first = found[0]
    rows = [dict(first["models"][0]), *({**report["models"][-1], "latency": report["latency"]} for report in found)]
    for row, columns in zip(rows, latency_columns(latencies), strict=True):
        row |= columns
    common = [note for note in first["notes"] if all(note in report["notes"] for report in found)]
    own = [
        f"{report['models'][-1]['name']}: {note}" for report in found for note in report["notes"] if note not in common
    ]
    report = {
        **first,
        "title": title,
        "models": rows,
        "stages": [stage for report in found for stage in report["stages"]],
        "latency": None,
        "busy": busy,
        "notes": [*own, *common],
        "recipe": to_table(recipe),
    }
    return with_verdict(report)
