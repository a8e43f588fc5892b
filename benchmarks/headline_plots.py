"""The plots of the first sections of `docs/results.md`, as SVG. The same rows always produce the same bytes.

Plots of single cells belong to `plots`. The background is transparent. Each colour can be read on white and
on black.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.optimize import isotonic_regression

from benchmarks.headline import arms_of, controls_of, headline_rows, keeps_of
from benchmarks.measurements import CONTROL, CONTROLS, DISTILLED, VITRIM
from benchmarks.names import NAMES
from benchmarks.results import Row
from benchmarks.sections import curve_keeps, points_of_time

TEXT, GRID = "#7d8590", "#7d859055"
# Colours by Okabe and Ito, a little darker where white needs it. Markers and lines differ too.
LOOKS = {
    VITRIM: ("#D55E00", "o", "-"),
    "vitrim-whole-heads": ("#D55E00", "p", "--"),
    "paper": ("#1f7fc4", "s", "-"),
    "hard-labels": ("#1f7fc4", "^", ":"),
    "torch-pruning": ("#C2629B", "D", "--"),
    "torch-pruning-head-widths": ("#C2629B", "d", "-"),
    "random": ("#7d8590", "v", ":"),
    "magnitude": ("#009E73", "P", "-"),
    "scratch": ("#B8860B", "X", "-"),
    "timm-small": ("#B8860B", "*", ":"),
    CONTROL: ("#7d8590", "", "--"),
    DISTILLED: ("#7d8590", "", ":"),
}
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vitrim",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
}
LINEAR_POINTS = 1.0  # the axis of differences is linear up to this, and logarithmic beyond
GAP = 0.062  # between names, as a fraction of the height of a panel


class Label(NamedTuple):
    """A name at the right edge, with its colour and the point that it is joined to. `x` None: a horizontal line."""

    text: str
    colour: str
    x: float | None
    y: float


def draw_headline(rows: Sequence[Row], curves: Sequence[Row], folder: Path) -> list[Path]:
    """Write the plots of the headline cell and return their paths. Without a pruned model, there is none.

    Args:
        rows: rows of `results.json`, of all cells.
        curves: rows of `curves.json`, of all cells.
        folder: folder of the plots.
    """
    main = headline_rows(rows)
    if not main:
        return []
    curves = [row for row in curves if row["cell"] == main[0]["cell"]]
    figures: dict[str, Callable[[], Figure]] = {
        "headline": lambda: headline_figure(main),
        "headline-narrow": lambda: headline_figure(main, is_narrow=True),
    }
    timed = points_of_time(main, curves)
    if timed:
        figures["headline-time"] = lambda: time_figure(timed, main)
        figures["headline-time-narrow"] = lambda: time_figure(timed, main, is_narrow=True)
    if curves:
        figures["headline-curves"] = lambda: curves_figure(curves, main)
        figures["headline-curves-narrow"] = lambda: curves_figure(curves, main, is_narrow=True)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, draw in figures.items():
        with matplotlib.rc_context(STYLE):
            path = folder / f"{name}.svg"
            metadata = {"Date": None, "Creator": None}
            draw().savefig(path, format="svg", bbox_inches="tight", transparent=True, metadata=metadata)
        written.append(path)
    return written


def headline_figure(rows: Sequence[Row], *, is_narrow: bool = False) -> Figure:
    """Draw the difference of top-1 to the dense model, and the KL divergence from it, against the multiply-adds kept.

    Args:
        rows: the rows of the headline cell.
        is_narrow: whether the second panel is below the first one, for a narrow screen.
    """
    compared = [row for row in rows if row.get("kl_dense") is not None and row["arm"] not in CONTROLS]
    num_panels = 2 if compared else 1
    figure, panels = _panels(num_panels, is_narrow=is_narrow)
    _draw_accuracy(panels[0], rows)
    if compared:
        _draw_divergence(panels[1], rows)
    return figure


def time_figure(points: Sequence[Row], rows: Sequence[Row], *, is_narrow: bool = False) -> Figure:
    """Draw top-1 against seconds, with one panel for each fraction to keep. Nothing is interpolated.

    Args:
        points: rows with `seconds` and `top1`.
        rows: the rows of the headline cell, for the dense model.
        is_narrow: whether the panels are below each other, for a narrow screen.
    """

    def prepare(axes: Axes, shown: Sequence[Row]) -> None:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(
            FuncFormatter(lambda value, _: f"{value:g}" if _leading(value) in (2, 5) else "")
        )
        axes.set_xlabel("seconds of one seed, all steps")

    return _figure_of_keeps(points, "seconds", rows, prepare, is_narrow=is_narrow)


def curves_figure(curves: Sequence[Row], rows: Sequence[Row], *, is_narrow: bool = False) -> Figure:
    """Draw top-1 against the number of student epochs, with one panel for each fraction to keep.

    Args:
        curves: rows of `curves.json` of the headline cell.
        rows: the rows of the headline cell, for the dense model.
        is_narrow: whether the panels are below each other, for a narrow screen.
    """

    def prepare(axes: Axes, shown: Sequence[Row]) -> None:
        axes.set_xscale("function", functions=(np.log1p, np.expm1))
        axes.xaxis.set_major_locator(FixedLocator(sorted({row["student_epochs"] for row in shown})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axes.set_xlabel("student epochs (0: before training)")

    return _figure_of_keeps(curves, "student_epochs", rows, prepare, is_narrow=is_narrow)


def _figure_of_keeps(
    points: Sequence[Row],
    column: str,
    rows: Sequence[Row],
    prepare: Callable[[Axes, Sequence[Row]], None],
    *,
    is_narrow: bool,
) -> Figure:
    """Draw top-1 against a column, with one panel for each fraction to keep. `prepare` sets the horizontal axis."""
    keeps = curve_keeps(points)
    figure, panels = _panels(len(keeps), is_narrow=is_narrow)
    for axes, keep in zip(panels, keeps, strict=True):
        shown = [row for row in points if row["keep"] == keep]
        prepare(axes, shown)
        labels = [*_draw_arms(axes, shown, column), _draw_dense(axes, rows, keep)]
        _finish(axes, keep, labels)
    return figure


def _draw_accuracy(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yscale("symlog", linthresh=LINEAR_POINTS, linscale=1.0)
    arms = arms_of(rows)
    labels: list[Label] = []
    for place, arm in enumerate(arms):
        points = sorted((row for row in rows if row["arm"] == arm), key=lambda row: -row["macs_ratio"])
        shift = 0.5 * (place - (len(arms) - 1) / 2)  # bars with the same multiply-adds must not overlap
        places = [100 * row["macs_ratio"] + shift for row in points]
        values = np.array([row["delta_dense"] for row in points])
        ends = np.array([[row["low"] for row in points], [row["high"] for row in points]])
        bars = np.maximum([values - ends[0], ends[1] - values], 0)
        _draw_line(axes, arm, places, values, bars)
        labels.append(_label(arm, places[-1], float(values[-1])))
    labels.append(_draw_level(axes, 0.0, "dense model"))
    labels += [_draw_level(axes, row["delta_dense"], NAMES[row["arm"]], line="--") for row in controls_of(rows)]
    low, high = axes.get_ylim()
    marks = [-50, -20, -10, -5, -2, -1, -0.5, 0, 0.5, 1, 2, 5]
    axes.yaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    axes.set_title("top-1 minus top-1 of the dense model, points [95 %]", loc="left", fontsize=11)
    _finish_sizes(axes, rows, labels)


def _draw_divergence(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yscale("log")
    labels: list[Label] = []
    for arm in arms_of(rows):
        points = [row for row in rows if row["arm"] == arm and row.get("kl_dense") is not None]
        points.sort(key=lambda row: -row["macs_ratio"])
        if points:
            places, values = [100 * row["macs_ratio"] for row in points], [row["kl_dense"] for row in points]
            _draw_line(axes, arm, places, values, None)
            labels.append(_label(arm, places[-1], values[-1]))
    for row in controls_of(rows):
        if row.get("kl_dense") is not None:
            labels.append(_draw_level(axes, row["kl_dense"], NAMES[row["arm"]], line="--"))
    low, high = axes.get_ylim()
    marks = [number * 10.0**power for power in range(-5, 2) for number in (1, 2, 5)]
    axes.yaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_title("KL divergence from the dense model, nats (log scale)", loc="left", fontsize=11)
    _finish_sizes(axes, rows, labels)


def _draw_line(axes: Axes, arm: str, places: Sequence[float], values: Any, bars: Any) -> None:
    colour, marker, line = LOOKS[arm]
    is_main = arm == VITRIM
    axes.errorbar(
        places,
        values,
        bars,
        color=colour,
        marker=marker,
        linestyle=line,
        linewidth=2.4 if is_main else 1.3,
        markersize=8 if is_main else 5.5,
        elinewidth=1.8 if is_main else 1,
        capsize=2.5,
        zorder=6 if is_main else 5,
    )


def _draw_arms(axes: Axes, points: Sequence[Row], along: str) -> list[Label]:
    """Draw the points of each arm, joined by a line, and return their labels."""
    labels = []
    for arm in [arm for arm in LOOKS if any(row["arm"] == arm for row in points)]:
        shown = sorted((row for row in points if row["arm"] == arm), key=lambda row: row[along])
        places, values = [row[along] for row in shown], [row["top1"] for row in shown]
        _draw_line(axes, arm, places, values, None)
        labels.append(_label(arm, places[-1], values[-1]))
    return labels


def _draw_dense(axes: Axes, rows: Sequence[Row], keep: float) -> Label:
    members = [row for row in rows if row["keep"] == keep] or list(rows)
    main = next((row for row in members if row["arm"] == VITRIM), members[0])
    return _draw_level(axes, main["top1_dense"], "dense model")


def _draw_level(axes: Axes, value: float, text: str, *, line: str = "-") -> Label:
    """Draw a horizontal line and return its label."""
    axes.axhline(value, color=TEXT, linewidth=1.3 if line == "-" else 1.1, linestyle=line, zorder=2)
    return Label(text, TEXT, None, value)


def _label(arm: str, x: float, y: float) -> Label:
    return Label(NAMES[arm], LOOKS[arm][0], x, y)


def _finish_sizes(axes: Axes, rows: Sequence[Row], labels: Sequence[Label]) -> None:
    """Label the axis of multiply-adds, which falls from left to right, so that names stand where lines are apart."""
    known = [100 * row["macs_ratio"] for row in rows if row["arm"] not in CONTROLS]
    axes.set_xlim(max(known) + 6, min(known) - 4)
    axes.xaxis.set_major_locator(FixedLocator([100 * keep for keep in keeps_of(rows)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axes.set_xlabel("multiply-adds kept, %")
    axes.grid(True, axis="y")
    _label_right(axes, labels)


def _finish(axes: Axes, keep: float, labels: Sequence[Label]) -> None:
    axes.set_title(f"{100 * keep:g} % kept: top-1, %", loc="left", fontsize=11)
    axes.margins(x=0.06, y=0.06)
    axes.grid(True, axis="y")
    _label_right(axes, labels)


def _panels(number: int, *, is_narrow: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side, or one below the other for a narrow screen."""
    shape = (number, 1) if is_narrow else (1, number)
    figure = Figure(figsize=(4.6, 4.4 * number) if is_narrow else (5.0 * number, 4.3))
    panels = figure.subplots(*shape, squeeze=False, gridspec_kw={"hspace": 0.34, "wspace": 1.2})
    return figure, list(panels.flat)


def _label_right(axes: Axes, labels: Sequence[Label]) -> None:
    """Write the names at the right edge, moved apart so that they do not overlap. Call it after all limits are set."""
    right = axes.get_xlim()[1]
    screen = axes.transData.transform([(right if label.x is None else label.x, label.y) for label in labels])
    places = axes.transAxes.inverted().transform(screen)
    order = np.argsort(places[:, 1], kind="stable")
    steps = GAP * np.arange(len(labels))
    heights = isotonic_regression(places[order, 1] - steps).x + steps
    for number, height in zip(order, heights, strict=True):
        label, (x, y) = labels[number], places[number]
        axes.plot(
            [1.0 if label.x is None else x + 0.015, 1.0, 1.05],
            [y, y, height],
            color=label.colour,
            linewidth=0.7,
            transform=axes.transAxes,
            clip_on=False,
            scalex=False,
            scaley=False,
        )
        weight = "bold" if label.text == NAMES[VITRIM] else "normal"
        axes.text(
            1.06,
            height,
            label.text,
            color=label.colour,
            va="center",
            fontsize=10,
            fontweight=weight,
            transform=axes.transAxes,
        )


def _leading(value: float) -> int:
    return int(f"{value:e}"[0])
