"""The charts of the page, as SVG that is put into it. The same numbers always make the same bytes.

Colours are variables of the page's style, so one chart serves the light and the dark scheme. Names come from files of
others: a chart is drawn with a mark in place of each name, and the name is put in afterwards, escaped. So no name is
read as a formula, and none needs a letter that the font of the layout lacks. The tables have the same numbers.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

from markupsafe import Markup

from vitrim.reports import formats
from vitrim.reports.formats import is_number
from vitrim.reports.labels import places_of
from vitrim.reports.tables import Table, between

WIDTH, HEIGHT = 360.0, 264.0  # points; narrow, so that the letters stay large on a phone
INK, MUTED, LINE, DENSE, SMALL, PAPER = (f"#0102{number:02d}" for number in range(10, 16))
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", DENSE: "dense", SMALL: "small", PAPER: "paper"}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitrim",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "ytick.major.size": 0,
    "path.simplify": False,
}
DRAWN = {  # groups of settings that change a chart; others, such as the backend, are left as they are
    "axes", "figure", "font", "grid", "legend", "lines", "markers", "patch", "path", "savefig", "svg", "text", "xtick",
    "ytick",
}  # fmt: skip
POINT = {"markersize": 8, "markeredgecolor": PAPER, "clip_on": False}
MAX_PERCENT = 100.0  # end of an axis of accuracies; what lies on it is drawn whole, see `clip_on`
MAX_LABEL = 24  # characters of a name beside a point
LETTER = 6.0  # points; about the width of a letter


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart of the page.

    Attributes:
        title: the heading.
        caption: one sentence that says how to read it.
        svg: the picture.
        table: the same numbers as text.
    """

    title: str
    caption: str
    svg: Markup
    table: Table


class _Drawing:
    """A figure, and the texts that are put into its SVG afterwards."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure
        self.texts: list[str] = []
        self.tips: list[str] = []

    def axes(self, left: float, *, right: float = 10, top: float = 26, above: str = "", bottom: float = 40) -> Any:
        """Add axes with margins in points. `above` is the name of the vertical axis, written above it."""
        width, height = (72 * inches for inches in self.figure.get_size_inches())
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        axes = self.figure.add_axes(box)
        axes.patch.set_visible(False)
        if above:
            axes.set_title(above, loc="left", fontsize=11, color=MUTED, pad=9, x=-left / (width - left - right))
        return axes

    def mark(self, text: Any, limit: int = MAX_LABEL) -> str:
        """Return what is drawn in place of a text."""
        self.texts.append(formats.short(text, limit))
        return f"@{len(self.texts) - 1}@"

    def tip(self, text: str) -> str:
        """Return the id of an element that shows a text under the pointer."""
        self.tips.append(text)
        return f"tip{len(self.tips) - 1}"

    def svg(self, name: str, title: str, caption: str) -> Markup:
        """Write the figure as SVG for a page that has no other element whose id begins with `name`."""
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        for pattern in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->"):
            text = re.sub(pattern, "", text, flags=re.S)
        used = set(re.findall(r"#([\w-]+)[\")]", text))

        def new_id(found: re.Match[str]) -> str:
            return f' id="{name}-{found[1]}"' if found[1] in used else ""

        text = re.sub(r'<g id="tip(\d+)">', r"<g><title>@t\1@</title>", text)
        text = re.sub(r' id="([^"]*)"', new_id, text)
        text = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", text).replace("xlink:href", "href")
        for colour, variable in VARIABLES.items():
            text = text.replace(colour, f"var(--{variable})")
        text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
        text = re.sub(r"font-family:[^;\"]*;?", "", text)
        texts = {"": self.texts, "t": self.tips}
        text = re.sub(r"@(t?)(\d+)@", lambda found: escape(texts[found[1]][int(found[2])]), text)
        head = (
            f'<svg viewBox="0 0 {self._points()}" role="img" aria-labelledby="{name}-title {name}-about">'
            f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-about">{escape(caption)}</desc>'
        )
        text = re.sub(r"\s*\n\s*", "\n", re.sub(r"^<svg[^>]*>", "", text))
        return Markup(head + text.strip())

    def _points(self) -> str:
        return " ".join(f"{72 * inches:g}" for inches in self.figure.get_size_inches())


@contextmanager
def _drawing(width: float = WIDTH, height: float = HEIGHT) -> Iterator[_Drawing]:
    """Open a figure of `width` x `height` points, in the style of the page."""
    import matplotlib  # here, because only pages need it
    from matplotlib.figure import Figure

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key.split(".")[0] in DRAWN}
    with matplotlib.rc_context({**defaults, **STYLE}):
        yield _Drawing(Figure(figsize=(width / 72, height / 72), dpi=72))


def accuracy_chart(name: str, models: Sequence[dict[str, Any]], key: str) -> Chart | None:
    """Draw accuracy over size or over latency, with 95 % intervals.

    Args:
        name: with which ids of this chart begin.
        models: entries of `report.json`, the dense one first.
        key: `params` or `latency_ms`.

    Returns:
        The chart; None with fewer than two models that have both numbers.
    """
    shown = [row for row in models if is_number(row.get("top1")) and is_number(row.get(key))]
    if len(shown) < 2:
        return None
    in_ms = key == "latency_ms"
    unit, what = (1.0, "Time for one batch (ms)") if in_ms else _unit(max(row[key] for row in shown))
    title = "Accuracy and speed" if in_ms else "Accuracy and size"
    caption = (
        f"Each point is a model: further left is {'faster' if in_ms else 'smaller'}, higher is more accurate. The bar "
        "shows the range of accuracies that other images could plausibly give. The vertical axis does not start at 0."
    )
    text_of = formats.milliseconds if in_ms else formats.count
    with _drawing() as drawing:
        axes = drawing.axes(38, above="Accuracy (%)")
        for row in shown:
            is_dense = row is models[0] or row["name"] == formats.CONTROL
            look = {
                "color": DENSE if is_dense else SMALL,
                "marker": "s" if row is models[0] else "D" if is_dense else "o",
            }
            called = formats.short(_called(row, models), 60)
            tip = f"{called}: {formats.percents(row['top1'], 2)}, {text_of(row[key])}"
            low, high = _ends(row)
            axes.plot([row[key] / unit] * 2, [low, high], color=look["color"], linewidth=1.6)
            axes.plot(row[key] / unit, row["top1"], **look, **POINT, gid=drawing.tip(tip))
        axes.set_xlim(0, 1.12 * max(row[key] for row in shown) / unit)
        ends = [end for row in shown for end in _ends(row)]
        spread = max(max(ends) - min(ends), 0.5)
        axes.set_ylim(min(ends) - 0.2 * spread, min(max(ends) + 0.12 * spread, MAX_PERCENT))
        axes.set_xlabel(what)
        _label_bars(drawing, axes, [(row[key] / unit, *_ends(row), _called(row, models)) for row in shown])
        svg = drawing.svg(name, title, caption)
    header = ["Model", "Time for one batch" if in_ms else "Parameters", "Accuracy", "Likely range"]
    rows = [
        [_called(row, models), text_of(row[key]), formats.percents(row["top1"], 2), between(*_ends(row))]
        for row in shown
    ]
    return Chart(title=title, caption=caption, svg=svg, table=Table(caption=title, header=header, rows=rows))


def _called(row: dict[str, Any], models: Sequence[dict[str, Any]]) -> str:
    """What a chart calls a model. A name that is only a percentage is the kept fraction, and no accuracy."""
    name = formats.model_name(row, models)
    return f"{name} kept" if re.fullmatch(r"[\d.]+ %", name) else name


def _unit(largest: float) -> tuple[float, str]:
    """By which parameters are divided, and the label of the axis."""
    return (1e6, "Parameters (millions)") if largest >= 1e6 else (1e3, "Parameters (thousands)")


def _ends(row: dict[str, Any]) -> tuple[float, float]:
    """The interval of the accuracy; the accuracy itself where there is none."""
    known = is_number(row.get("top1_low")) and is_number(row.get("top1_high"))
    return (row["top1_low"], row["top1_high"]) if known else (row["top1"], row["top1"])


def _label_bars(drawing: _Drawing, axes: Any, bars: Sequence[tuple[float, float, float, str]]) -> None:
    """Write the name of each bar above or below it.

    Args:
        bars: the place of each on the horizontal axis, its lower and upper end, and its name.
    """
    ends = [(axes.transData.transform((x, low)), axes.transData.transform((x, high))) for x, low, high, _ in bars]
    widths = [LETTER * len(formats.short(name, MAX_LABEL)) for *_, name in bars]
    for (x, low, high, name), place in zip(bars, places_of(ends, widths, figure_width=WIDTH), strict=True):
        style: Any = {"textcoords": "offset points", "ha": place.side, "fontsize": 11}
        axes.annotate(drawing.mark(name), (x, high if place.is_above else low), (place.right, place.up), **style)


def stages_chart(name: str, stages: Sequence[dict[str, Any]]) -> Chart | None:
    """Draw the accuracy after each stage, from top to bottom.

    Args:
        name: with which ids of this chart begin.
        stages: entries of `report.json` of one model.

    Returns:
        The chart; None with fewer than two stages.
    """
    shown = [row for row in stages if is_number(row.get("top1"))]
    if len(shown) < 2:
        return None
    title = "Accuracy after each stage"
    caption = (
        "The stages follow each other from top to bottom. Each point is the accuracy after a stage: further right is "
        "more accurate. The horizontal axis does not start at 0."
    )
    values = [row["top1"] for row in shown]
    names = [formats.stage_name(row.get("name", "")) for row in shown]
    spread = max(max(values) - min(values), 1.0)
    with _drawing(height=60 + 27 * len(shown)) as drawing:
        axes = drawing.axes(158, right=48, top=6)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        axes.plot(values, range(len(shown)), color=LINE, linewidth=2.5, zorder=1)
        for number, (value, stage) in enumerate(zip(values, names, strict=True)):
            look: Any = {"color": DENSE, "marker": "s"} if not number else {"color": SMALL, "marker": "o"}
            tip = drawing.tip(f"{formats.short(stage, 60)}: {formats.percents(value, 2)}")
            axes.plot(value, number, **look, **POINT, gid=tip)
            axes.text(1.04, number, formats.decimal(value), transform=axes.get_yaxis_transform(), va="center_baseline")
        axes.set_yticks(range(len(shown)), [drawing.mark(stage, 27) for stage in names])
        axes.tick_params(axis="y", labelcolor=INK, pad=8)
        axes.set_ylim(len(shown) - 0.5, -0.6)
        axes.set_xlim(min(values) - 0.08 * spread, min(max(values) + 0.08 * spread, MAX_PERCENT))
        axes.set_xlabel("Accuracy (%)")
        svg = drawing.svg(name, title, caption)
    rows = [
        [stage, formats.percents(row["top1"], 2), formats.count(row.get("params")), formats.count(row.get("macs"))]
        for stage, row in zip(names, shown, strict=True)
    ]
    header = ["After stage", "Accuracy", "Parameters", "Multiply-adds"]
    return Chart(title=title, caption=caption, svg=svg, table=Table(caption=title, header=header, rows=rows))


def curves_chart(name: str, stage: str, rows: Sequence[dict[str, Any]], key: str) -> Chart | None:
    """Draw how the loss or the accuracy changed during a training.

    Args:
        name: with which ids of this chart begin.
        stage: name of the training, in plain words.
        rows: one for each epoch, see `details.json`.
        key: `loss` or `top1`.

    Returns:
        The chart; None if fewer than two epochs have the number.
    """
    lines = {"Training loss": "loss", "Validation loss": "validation_loss"} if key == "loss" else {"Accuracy (%)": key}
    found = {label: _points(rows, column) for label, column in lines.items()}
    found = {label: points for label, points in found.items() if len(points) > 1}
    if not found:
        return None
    title = f"{'Loss' if key == 'loss' else 'Accuracy'} during training{f': {stage}' if stage else ''}"
    caption = (
        "Lower is better: the loss is the error that training reduces, and a line that still falls at the right end "
        "means that more epochs may help."
        if key == "loss"
        else "Higher is better: accuracy on images that the model was not trained on. One epoch uses every image once."
    )
    height = HEIGHT + 50 * (len(found) - 1)
    part = (height - 66) / len(found)  # the two losses are computed in different ways, so each has its own axis
    with _drawing(height=height) as drawing:
        for number, (label, points) in enumerate(found.items()):
            top, is_last = 26 + number * part, number == len(found) - 1
            bottom = 40 if is_last else height - top - part + 34
            axes = drawing.axes(38, above=label, top=top, bottom=bottom)
            axes.tick_params(axis="x", labelbottom=is_last)
            tip = drawing.tip(f"{label}: {points[0][1]:.4g} at first, {points[-1][1]:.4g} at the end")
            axes.plot(*zip(*points, strict=True), color=SMALL, linewidth=2, gid=tip, clip_on=False)
            axes.set_xlim(0, max(row[0] for line in found.values() for row in line) * 1.02)
            if key == "top1":
                values = [value for _, value in points]
                margin = max(0.1 * (max(values) - min(values)), 0.5)
                axes.set_ylim(min(values) - margin, min(max(values) + margin, MAX_PERCENT))
            axes.yaxis.get_major_locator().set_params(nbins=3 if len(found) > 1 else 6)
            axes.yaxis.get_major_formatter().set_useOffset(False)  # whole numbers, not `+1.95` above the axis
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("Epoch")
        svg = drawing.svg(name, title, caption)
    header = ["Epoch", "Training loss", "Validation loss", "Accuracy"]
    cells = [
        [
            f"{row.get('epoch', '')}",
            *(formats.decimal(row.get(column), 4) for column in ("loss", "validation_loss")),
            formats.percents(row.get("top1"), 2),
        ]
        for row in rows
    ]
    return Chart(title=title, caption=caption, svg=svg, table=Table(caption=title, header=header, rows=cells))


def _points(rows: Sequence[dict[str, Any]], column: str) -> list[tuple[float, float]]:
    """Epoch and value of the rows that have both."""
    return [(row["epoch"], row[column]) for row in rows if is_number(row.get(column)) and is_number(row.get("epoch"))]


def reliability_chart(name: str, calibration: dict[str, Any]) -> Chart | None:
    """Draw how often a model is right when it states a confidence.

    Args:
        name: with which ids of this chart begin.
        calibration: see `details.json`; `dense`, and `small` if there is a smaller model.

    Returns:
        The chart; None without images.
    """
    found = {
        model: [
            one
            for one in calibration[model].get("bins", ())
            if one.get("count") and is_number(one.get("accuracy")) and is_number(one.get("confidence"))
        ]
        for model in ("dense", "small")
        if calibration.get(model)
    }
    if not any(found.values()):
        return None
    largest = max(one["count"] for bins in found.values() for one in bins)
    names = {"dense": "original" if "small" in found else "model", "small": "compressed"}
    title = "Stated confidence and accuracy"
    caption = (
        "Images are grouped by how sure the model says it is; larger marks stand for more images. On the dashed line, "
        "the model is right as often as it says. Below the line, it is right less often: it is too sure. Above the "
        "line, it is right more often: it is not sure enough."
    )
    with _drawing(height=280) as drawing:
        axes = drawing.axes(38, above="Right (%)")
        axes.plot([0, 100], [0, 100], color=MUTED, linestyle="--", linewidth=1)
        for model, bins in found.items():
            look: Any = {"color": DENSE, "marker": "s"} if model == "dense" else {"color": SMALL, "marker": "o"}
            points = [(100 * one["confidence"], 100 * one["accuracy"]) for one in bins]
            axes.plot(*zip(*points, strict=True), **look, linewidth=1, markersize=3, label=names[model])
            for (x, y), one in zip(points, bins, strict=True):
                tip = f"{names[model]}, {one['count']} images: {x:.0f} % sure, {y:.0f} % right"
                size = 3 + 7 * (one["count"] / largest) ** 0.5
                axes.plot(x, y, **look, markersize=size, clip_on=False, linestyle="none", gid=drawing.tip(tip))
        axes.legend(frameon=False, labelcolor=INK, fontsize=11, loc="upper left")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xlabel("Stated confidence (%)")
        svg = drawing.svg(name, title, caption)
    rows = [
        [names[model], between(100 * one.get("low", 0), 100 * one.get("high", 0), 0), f"{one['count']:,}",
         formats.fraction(one["confidence"]), formats.fraction(one["accuracy"])]
        for model, bins in found.items() for one in bins
    ]  # fmt: skip
    header = ["Model", "Confidence (%)", "Images", "Mean confidence", "Right"]
    return Chart(title=title, caption=caption, svg=svg, table=Table(caption=title, header=header, rows=rows))
