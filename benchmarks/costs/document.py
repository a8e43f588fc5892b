"""`docs/performance.md` from the records of `python -m benchmarks.speed`: formatting only, nothing is computed here."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from benchmarks.costs.ratios import Ratio
from benchmarks.results import hardware_line
from vitrim.report import markdown_templates

TEMPLATES = Path(__file__).parent.parent / "templates"
HEADER = ("what", "against", "measured [quartiles]", "bound", "holds")
NONE = "-"
SHORT = 60  # characters of a setting that may stand in a table
HOLDS = {True: "yes", False: "no", None: NONE}
COMMAND = "python -m benchmarks.speed"
Record = dict[str, Any]


def to_markdown(records: Sequence[Record], names: Sequence[str]) -> str:
    """`performance.md`.

    Args:
        records: what was measured. names: all sections there are; those without a record are listed as not measured.
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
    return [Ratio(**{name: value for name, value in row.items() if name != "holds"}) for row in record["ratios"]]


def points_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    return [point for record in records for point in record["points"]]


def hardware(record: Record) -> str:
    return hardware_line(record["environment"])


def line_of(ratio: Ratio) -> list[str]:
    """One row of a table, under HEADER."""
    return [ratio.measure, ratio.against or NONE, value_of(ratio), bound_of(ratio), HOLDS[ratio.holds]]


def value_of(ratio: Ratio) -> str:
    """The median, and the quartiles of what has a spread."""
    text = _with_unit(number(ratio.value), ratio)
    return text if ratio.low == ratio.high else f"{text} [{number(ratio.low)}, {number(ratio.high)}]"


def bound_of(ratio: Ratio) -> str:
    if ratio.bound is None:
        return NONE
    return f"at {'least' if ratio.at_least else 'most'} " + _with_unit(f"{ratio.bound:g}", ratio)


def number(value: float) -> str:
    """Three digits behind the point where bounds differ by hundredths, fewer where numbers are large."""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.3f}" if size >= 0.1 or size == 0 else f"{value:.2g}"


def summary(records: Iterable[Record]) -> str:
    """How many bounds hold, and which do not, in one line."""
    ratios = [ratio for record in records for ratio in ratios_of(record) if ratio.holds is not None]
    broken = [ratio for ratio in ratios if not ratio.holds]
    kept = len(ratios) - len(broken)
    text = f"{kept} bound{' holds' if kept == 1 else 's hold'}"
    if broken:
        text += f", {len(broken)} do{'es' if len(broken) == 1 else ''} not: {'; '.join(map(_broken_line, broken))}"
    return text


def settings_of(ratios: Sequence[Ratio]) -> tuple[list[str], list[tuple[str, str]]]:
    """A label for each ratio's setting, and what each label stands for, so that no long text comes twice.

    What stands before the first semicolon is one setting, 1, 2, ...; what follows tells apart the lines measured in
    it: it stands in the label where it is short, else it is 1a, 1b, ... What all settings share is said once, for all.
    """
    halves = [_halves(ratio.setting) for ratio in ratios]
    bases = list(dict.fromkeys(base for base, _ in halves))
    parts = [base.split(", ") for base in bases]
    shared = [part for part in parts[0] if all(part in other for other in parts)] if len(bases) > 1 else []
    notes = [("all", ", ".join(shared))] if shared else []
    labels: dict[tuple[str, str], str] = {}
    for place, (base, own) in enumerate(zip(bases, parts, strict=True), start=1):
        notes.append((f"{place}", ", ".join(part for part in own if part not in shared) or "nothing further"))
        letters = iter(ascii_lowercase)
        for detail in dict.fromkeys(detail for other, detail in halves if other == base):
            if len(detail) <= SHORT:
                labels[base, detail] = f"{place}; {detail}" if detail else f"{place}"
            else:
                labels[base, detail] = f"{place}{next(letters)}"
                notes.append((labels[base, detail], detail))
    return [labels[half] for half in halves], notes


def _halves(setting: str) -> tuple[str, str]:
    base, _, detail = setting.partition("; ")
    return base, detail


def _section(record: Record) -> dict[str, Any]:
    """What the template shows of one section."""
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
        **{name: record[name] for name in ("commit", "date", "command")},
        "time": _time(record["seconds"]),
    }


def _emphasised(ratio: Ratio) -> list[str]:
    """A bound that does not hold must not be overlooked."""
    *cells, holds = line_of(ratio)
    return [*cells, f"**{holds}**" if ratio.holds is False else holds]


def _counts(record: Record) -> list[str]:
    verdicts = [ratio.holds for ratio in ratios_of(record)]
    return [record["section"], str(verdicts.count(True)), str(verdicts.count(False)), str(verdicts.count(None))]


def _broken_line(ratio: Ratio) -> str:
    against = f" against {ratio.against}" if ratio.against else ""
    return f"{ratio.section}: {ratio.measure}{against} ({value_of(ratio)}, {bound_of(ratio)})"


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
