"""The text of `docs/performance.md`, made from the records of `python -m benchmarks.speed`.

This file formats numbers. It computes none.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from benchmarks.costs.ratios import Ratio
from benchmarks.results import hardware_line
from vitrim.reports.report import markdown_templates

TEMPLATES = Path(__file__).parent.parent / "templates"
HEADER = ("measured quantity", "divided by", "value [quartiles]", "limit", "within limit")
NONE = "-"
MAX_CELL = 60  # characters; a longer setting is written below the table
HOLDS = {True: "yes", False: "no", None: NONE}
COMMAND = "python -m benchmarks.speed"
Record = dict[str, Any]


def to_markdown(records: Sequence[Record], names: Sequence[str]) -> str:
    """Return the text of `performance.md`.

    Args:
        records: the measured sections.
        names: names of all sections. Those without a record are listed as not measured.
    """
    measured = {record["section"] for record in records}
    return (
        markdown_templates(TEMPLATES)
        .get_template("performance.md.jinja")
        .render(
            smoke=any(record["smoke"] for record in records),
            command=COMMAND,
            counts=[_counts(record) for record in records],
            broken=[_broken_line(ratio) for record in records for ratio in ratios_of(record) if ratio.holds is False],
            sections=[_section(record) for record in records],
            missing=[name for name in names if name not in measured],
        )
    )


def ratios_of(record: Record) -> list[Ratio]:
    """Read the lines of a record."""
    return [Ratio.from_dict(row) for row in record["ratios"]]


def points_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the points of all records."""
    return [point for record in records for point in record["points"]]


def hardware(record: Record) -> str:
    """Return hardware and versions of a record as one line."""
    return hardware_line(record["environment"])


def line_of(ratio: Ratio) -> list[str]:
    """Return one row of a table with the columns HEADER."""
    return [ratio.measure, ratio.against or NONE, value_of(ratio), limit_of(ratio), HOLDS[ratio.holds]]


def value_of(ratio: Ratio) -> str:
    """Return the median as text, with quartiles unless it is a count."""
    text = _with_unit(number(ratio.value), ratio)
    return text if ratio.low == ratio.high else f"{text} [{number(ratio.low)}, {number(ratio.high)}]"


def limit_of(ratio: Ratio) -> str:
    """Return the limit as text."""
    if ratio.limit is None:
        return NONE
    return f"at {'least' if ratio.at_least else 'most'} " + _with_unit(f"{ratio.limit:g}", ratio)


def number(value: float) -> str:
    """Format a number with three decimals, or fewer if it is large."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 0.1 or size == 0 else f"{value:.2g}"


def summary(records: Iterable[Record]) -> str:
    """Return one line: how many values are within their limits, and which are not."""
    ratios = [ratio for record in records for ratio in ratios_of(record) if ratio.holds is not None]
    broken = [ratio for ratio in ratios if not ratio.holds]
    kept = len(ratios) - len(broken)
    text = f"{kept} value{' is' if kept == 1 else 's are'} within the limit"
    if broken:
        text += f", {len(broken)} {'is' if len(broken) == 1 else 'are'} not: {'; '.join(map(_broken_line, broken))}"
    return text


def settings_of(ratios: Sequence[Ratio]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return a label for the setting of each ratio, and the text of each label, so that no long text is repeated.

    The text before the first semicolon is the main setting, with the label 1, 2, and so on. The text after it is a
    detail. A short detail is written in the table. A long one has the label 1a, 1b, and so on. Parts that all main
    settings have in common are written once, with the label "all".
    """
    settings = [_main_and_detail(ratio.setting) for ratio in ratios]
    bases = list(dict.fromkeys(base for base, _ in settings))
    parts = [base.split(", ") for base in bases]
    shared = [part for part in parts[0] if all(part in other for other in parts)] if len(bases) > 1 else []
    notes = [("all", ", ".join(shared))] if shared else []
    labels: dict[tuple[str, str], str] = {}
    for place, (base, own) in enumerate(zip(bases, parts, strict=True), start=1):
        notes.append((f"{place}", ", ".join(part for part in own if part not in shared) or "no other setting"))
        letters = iter(ascii_lowercase)
        for detail in dict.fromkeys(detail for other, detail in settings if other == base):
            if len(detail) <= MAX_CELL:
                labels[base, detail] = f"{place}; {detail}" if detail else f"{place}"
            else:
                labels[base, detail] = f"{place}{next(letters)}"
                notes.append((labels[base, detail], detail))
    return [labels[setting] for setting in settings], notes


def _main_and_detail(setting: str) -> tuple[str, str]:
    base, _, detail = setting.partition("; ")
    return base, detail


def _section(record: Record) -> dict[str, Any]:
    """Return the values that the template shows for one section."""
    ratios = ratios_of(record)
    labels, notes = settings_of(ratios)
    return {
        "name": record["section"],
        "header": [*HEADER, "setting"],
        "lines": [[*_emphasised(ratio), label] for ratio, label in zip(ratios, labels, strict=True)],
        "notes": notes,
        "points": [_point_line(point) for point in record["points"]],
        "texts": {title: text.splitlines() for title, text in record["texts"].items()},
        "hardware": hardware(record),
        "incomplete": "parts" in record,
        **{name: record[name] for name in ("commit", "date", "command")},
        "time": _time(record["seconds"]),
    }


def _emphasised(ratio: Ratio) -> list[str]:
    """Return the cells of a line. A value outside its limit is bold."""
    *cells, holds = line_of(ratio)
    return [*cells, f"**{holds}**" if ratio.holds is False else holds]


def _counts(record: Record) -> list[str]:
    verdicts = [ratio.holds for ratio in ratios_of(record)]
    return [record["section"], str(verdicts.count(True)), str(verdicts.count(False)), str(verdicts.count(None))]


def _broken_line(ratio: Ratio) -> str:
    against = f", divided by {ratio.against}" if ratio.against else ""
    return f"{ratio.section}: {ratio.measure}{against} ({value_of(ratio)}, {limit_of(ratio)})"


def _point_line(point: dict[str, Any]) -> list[str]:
    return [
        point["along"],
        point["name"],
        f"{point['x']:,.10g}",
        _time(point["seconds"]),
        _time(point["step_seconds"]),
        number(point["seconds"] / point["step_seconds"]),
        *(_bytes(point[name]) for name in ("peak_bytes", "step_peak_bytes", "model_bytes")),
    ]


def _with_unit(text: str, ratio: Ratio) -> str:
    return f"{text} {ratio.unit}" if ratio.unit else text


def _bytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    return f"{number(seconds)} s" if seconds < 120 else f"{seconds / 60:.1f} min"
