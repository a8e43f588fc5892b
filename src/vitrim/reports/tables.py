"""Tables of the page: header and cells as text, and which columns have numbers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitrim.reports import formats

NUMBER = re.compile(rf"[-+{formats.MINUS}]?[\d.,]+([ \u00a0]\S+)?( \([^)]*\))?|{formats.NOTHING}|")
MAX_CLASSES = 100  # all of them are in the table; of more classes, those that changed most
WORST, BEST = 50, 50


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table of the page. The first cell of a row names the row.

    Attributes:
        caption: what the table shows.
        header: names of the columns.
        rows: the cells, as text.
        bars: for each row a fraction from -1 to 1 that is drawn as a bar in an additional column; may be empty.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[float] = ()

    @property
    def signed_bars(self) -> bool:
        """Whether bars go to both sides of a middle line."""
        return min(self.bars, default=0.0) < 0

    @property
    def numeric(self) -> list[bool]:
        """For each column, whether all of its cells are numbers."""
        return [
            number > 0 and all(NUMBER.fullmatch(row[number]) for row in self.rows) for number in range(len(self.header))
        ]


def class_tables(classes: Sequence[dict[str, Any]]) -> list[Table]:
    """Make the tables of the accuracy of each class, the worst changes first.

    Args:
        classes: see `details.json`. Without `top1`, there is one model only.

    Returns:
        One table up to 100 classes; else one of the 50 worst and one of the 50 best.
    """
    rows = [row for row in classes if formats.is_number(row.get("dense_top1"))]
    if not rows:
        return []
    is_pair = all(formats.is_number(row.get("top1")) for row in rows)
    values = [row["top1"] - row["dense_top1"] if is_pair else row["dense_top1"] for row in rows]
    order = sorted(range(len(rows)), key=lambda number: values[number])
    largest = max(map(abs, values)) or 1.0
    header = ["Class", "Images", *(["Before", "After", "Change"] if is_pair else ["Accuracy"])]

    def table(caption: str, numbers: Sequence[int]) -> Table:
        cells = [_class_cells(rows[number], is_pair) for number in numbers]
        return Table(caption=caption, header=header, rows=cells, bars=[values[number] / largest for number in numbers])

    worst, best = ("largest losses", "largest gains") if is_pair else ("lowest", "highest")
    if len(rows) <= MAX_CLASSES:
        return [table(f"Accuracy of each class, {worst} first", order)]
    return [
        table(f"The {WORST} classes with the {worst}, of {len(rows):,}", order[:WORST]),
        table(f"The {BEST} classes with the {best}, of {len(rows):,}", order[::-1][:BEST]),
    ]


def _class_cells(row: dict[str, Any], is_pair: bool) -> list[str]:
    cells = [str(row.get("name", "")), f"{row.get('num_images', 0):,}", formats.percents(row["dense_top1"])]
    if is_pair:
        cells += [formats.percents(row["top1"]), formats.signed(row["top1"] - row["dense_top1"])]
    return cells


def confusion_table(confusions: Sequence[dict[str, Any]]) -> Table | None:
    """Make the table of pairs of classes that one model confuses more often than the other; None without pairs.

    Of a single model, the entries have no `small`. The table then has one column of numbers.
    """
    is_pair = any("small" in row for row in confusions)
    rows = []
    for row in confusions:
        before, after = row.get("dense") or 0, row.get("small") or 0
        names = [str(row.get(key, "")) for key in ("label", "predicted")]
        changes = [f"{after:,}", formats.signed(after - before, 0)] if is_pair else []
        rows.append([*names, f"{before:,}", *changes])
    header = ["Correct class", "Taken for", *(["Before", "After", "Change"] if is_pair else ["Images"])]
    more = "more often, or less often: number of images" if is_pair else "most often"
    return Table(caption=f"Which classes are confused {more}", header=header, rows=rows) if rows else None


def sizes_table(models: Sequence[dict[str, Any]]) -> Table:
    """Make the table that compares all models of a report with the first one."""
    dense = models[0]
    rows = []
    for row in models:
        rows.append(
            [
                formats.model_name(row, models),
                formats.percents(row.get("top1")),
                formats.NOTHING if row is dense else formats.signed(difference(row, dense)),
                *(
                    _with_change(text(row.get(key)), row.get(key), dense.get(key), row is dense)
                    for key, text in (
                        ("params", formats.count),
                        ("macs", formats.count),
                        ("latency_ms", formats.milliseconds),
                        ("file_bytes", formats.size),
                    )
                ),
            ]
        )
    header = ["Model", "Accuracy", "Change (points)", "Parameters", "Multiply-adds", "Time for one batch", "File"]
    return Table(caption="The original model and the compressed models", header=header, rows=rows)


def difference(row: dict[str, Any], dense: dict[str, Any]) -> float | None:
    """Return the accuracy of a model minus that of the dense one, in points; None if it cannot be known."""
    if formats.is_number(row.get("difference")):
        return float(row["difference"])
    if not formats.is_number(row.get("top1")) or not formats.is_number(dense.get("top1")):
        return None
    return float(row["top1"] - dense["top1"])


def _with_change(text: str, value: Any, dense: Any, is_dense: bool) -> str:
    percent = "" if is_dense else formats.change(value, dense)
    return f"{text} ({percent})" if percent else text


def search_table(search: dict[str, Any]) -> Table | None:
    """Make the table of the sizes that a search tried; None if there are none."""
    tries = search.get("tries") or []
    if not tries:
        return None
    optional = {  # a column that no row has a value for is left out
        "latency_ratio": ("Time compared to the original", 0),
    }
    used = [key for key in optional if any(formats.is_number(one.get(key)) for one in tries)]
    header = ["Size tried", "Training", "Change (points)", "Worst plausible change", "Within the limit"]
    rows = [
        [
            str(one.get("name", "")),
            {"short": "short test", "full": "full"}.get(one.get("kind"), str(one.get("kind", ""))),
            formats.signed(one.get("difference"), 2),
            formats.signed(one.get("low"), 2),
            "\u2713 yes" if one.get("passes") else "\u2717 no",
            *(formats.fraction(one.get(key), optional[key][1]) for key in used),
        ]
        for one in tries
    ]
    header += [optional[key][0] for key in used]
    return Table(caption="The sizes that were tried, in this order", header=header, rows=rows)


def statistics_table(models: Sequence[dict[str, Any]]) -> Table | None:
    """Make the table of differences with intervals and p-values; None if no model has them."""
    rows = [
        [
            formats.model_name(row, models),
            formats.signed(row["difference"], 2),
            between(row.get("difference_low"), row.get("difference_high"), sign=True),
            f"{row['difference_p_value']:.3g}" if formats.is_number(row.get("difference_p_value")) else formats.NOTHING,
            formats.decimal(row.get("latency_ratio"), 3),
            between(row.get("latency_ratio_low"), row.get("latency_ratio_high"), 3),
        ]
        for row in models[1:]
        if formats.is_number(row.get("difference"))
    ]
    header = [
        "Model",
        "Accuracy difference (points)",
        "95 % interval",
        "p-value",
        "Latency ratio",
        "95 % interval of it",
    ]
    return Table(caption="Differences to the original model", header=header, rows=rows) if rows else None


def between(low: Any, high: Any, decimals: int = 2, *, sign: bool = False) -> str:
    """Return both ends of an interval, such as `93.10 to 96.20`."""
    if not formats.is_number(low) or not formats.is_number(high):
        return formats.NOTHING
    text = formats.signed if sign else formats.decimal
    return f"{text(low, decimals)} to {text(high, decimals)}"
