"""The two plots of a cell, as SVG. The same rows always produce the same bytes.

The plot of the growth of costs belongs to `costs.plots`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from benchmarks.document import slug
from benchmarks.measurements import ARMS, CONTROLS, VITRIM
from benchmarks.names import NAMES
from benchmarks.results import Row

# Colours by Okabe and Ito, which colour-blind people can tell apart. Markers differ too.
LOOKS = {
    VITRIM: ("#D55E00", "o"),
    "vitrim-whole-heads": ("#8C2D04", "p"),
    "paper": ("#0072B2", "s"),
    "hard-labels": ("#009E73", "^"),
    "torch-pruning": ("#CC79A7", "D"),
    "torch-pruning-head-widths": ("#E69F00", "d"),
    "random": ("#808080", "v"),
    "magnitude": ("#2E9BD6", "P"),
    "scratch": ("#B8860B", "X"),
    "timm-small": ("#5D3A9B", "*"),
}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vitrim",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#777777",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}
DENSE, GREY = "#222222", "#777777"
Label = tuple[str, str, float, float | None]  # text, colour, height, x of the last point


def draw_plots(cell: str, rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write both plots of one cell and return their paths. A cell without a pruned model has no plots."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if all(row["arm"] in CONTROLS for row in rows):
        return written
    for name, draw in (("accuracy", accuracy_figure), ("stages", stages_figure)):
        with matplotlib.rc_context(STYLE):
            figure = draw(rows)
            path = folder / f"{slug(cell)}-{name}.svg"
            figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
        written.append(path)
    return written


def accuracy_figure(rows: Sequence[Row]) -> Figure:
    """Draw top-1 against the multiply-adds kept. Bars are intervals of the paired difference to the dense teacher."""
    figure = Figure(figsize=(8, 5))
    axes = figure.subplots()
    labels: list[Label] = []
    arms = [arm for arm in ARMS if arm not in CONTROLS and any(row["arm"] == arm for row in rows)]
    for place, arm in enumerate(arms):
        points = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["macs_ratio"])
        shift = 0.9 * (place - (len(arms) - 1) / 2)  # bars with the same multiply-adds must not overlap
        percents = [100 * row["macs_ratio"] + shift for row in points]
        _draw_arm(axes, arm, percents, points)
        labels.append((arm, LOOKS[arm][0], points[-1]["top1"], percents[-1]))
    labels += _draw_dense(axes, rows)
    axes.margins(x=0.06, y=0.08)
    left, right = axes.get_xlim()
    wider = max(0, 24 - (right - left)) / 2  # with one fraction to keep, the axis would show only the shifts
    axes.set_xlim(left - wider, right + wider)
    axes.grid(True, axis="y")
    axes.set_xlabel("multiply-adds kept, % of the dense model (arms are shifted sideways so that bars do not overlap)")
    note = "Bars: 95 % interval of the paired difference to the dense teacher. Numbers: top-1 at the largest size."
    axes.set_title(note, loc="left", fontsize=8, color="#555555")
    axes.set_ylabel("top-1, %")
    figure.suptitle(_title(rows), x=axes.get_position().x0, y=0.965, ha="left", fontsize=12)
    _label_right(axes, labels)
    return figure


def stages_figure(rows: Sequence[Row]) -> Figure:
    """Draw top-1 of vitrim after pruning, after recovery and at the end, and of other arms right after pruning.

    There is one panel for each fraction to keep.
    """
    keeps = sorted({row["keep"] for row in rows if row["arm"] not in CONTROLS}, reverse=True)
    others = [arm for arm in ARMS[1:] if any(row["arm"] == arm and row["top1_after_cut"] is not None for row in rows)]
    names = ["vitrim, final", "vitrim, after recovery", "vitrim, after pruning"]
    names += [f"{arm}, after pruning" for arm in others]
    figure = Figure(figsize=(2 + 2.9 * len(keeps), 1.2 + 0.33 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(keeps), sharex=True, sharey=True, squeeze=False)[0]
    for axes, keep in zip(panels, keeps, strict=True):
        _draw_stages(axes, {row["arm"]: row for row in rows if row["keep"] == keep}, others)
        axes.set_title(f"keep {keep:g}", loc="left", fontsize=10)
        axes.set_xlabel("top-1, %")
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
    left, right = panels[0].get_xlim()
    panels[0].set_xlim(left - 0.14 * (right - left), right + 0.05 * (right - left))  # space for the numbers
    panels[0].set_yticks(range(len(names)), names)
    panels[0].get_yticklabels()[0].set_fontweight("bold")
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(_title(rows), x=0.01, ha="left", fontsize=12)
    return figure


def _draw_arm(axes: Axes, arm: str, percents: list[float], points: Sequence[Row]) -> None:
    colour, marker = LOOKS[arm]
    top1 = np.array([row["top1"] for row in points])
    delta, low, high = (np.array([row[name] for row in points]) for name in ("delta_dense", "low", "high"))
    bars = np.maximum([delta - low, high - delta], 0)
    is_main = arm == VITRIM
    axes.plot(percents, top1, color=colour, linewidth=2.4 if is_main else 1, alpha=1 if is_main else 0.45, zorder=4)
    axes.errorbar(
        percents,
        top1,
        bars,
        fmt=marker,
        color=colour,
        markersize=9 if is_main else 6,
        elinewidth=2 if is_main else 1,
        capsize=3 if is_main else 2,
        zorder=6 if is_main else 5,
    )


def _draw_dense(axes: Axes, rows: Sequence[Row]) -> list[Label]:
    """Draw lines for the dense teacher and the dense controls, and return their labels."""
    labels: list[Label] = []
    teacher = next((row for row in rows if row["arm"] == VITRIM), rows[0])["top1_dense"]
    axes.axhline(teacher, color=DENSE, linewidth=1.2, zorder=2)
    labels.append(("dense teacher", DENSE, teacher, None))
    for row in rows:
        if row["arm"] in CONTROLS:
            axes.axhline(row["top1"], color=GREY, linewidth=1.2, linestyle="--", zorder=2)
            labels.append((NAMES[row["arm"]], GREY, row["top1"], None))
    return labels


def _label_right(axes: Axes, labels: Sequence[Label]) -> None:
    """Write labels at the right edge, moved apart so that they do not overlap."""
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    gap = 0.052 * (top - bottom)
    ranked = sorted(labels, key=lambda label: label[2])
    steps = gap * np.arange(len(ranked))
    heights = isotonic_regression(np.array([label[2] for label in ranked]) - steps).x + steps
    text_at = right + 0.05 * (right - left)
    for (text, colour, value, last), height in zip(ranked, heights, strict=True):
        start = right if last is None else last + 0.012 * (right - left)
        corner = right if last is None else max(right - 0.01 * (right - left), start)
        axes.plot(
            [start, corner, text_at],
            [value, value, height],
            color=colour,
            linewidth=0.7,
            alpha=0.6,
            clip_on=False,
            zorder=1,
            scalex=False,
            scaley=False,
        )
        axes.text(
            text_at + 0.008 * (right - left),
            height,
            f"{text} {value:.1f}",
            color=colour,
            va="center",
            fontweight="bold" if text == VITRIM else "normal",
        )


def _draw_stages(axes: Axes, arms: dict[str, Row], others: Sequence[str]) -> None:
    """Draw one panel: three points of vitrim joined by a line, and one point for each other arm."""
    vitrim = arms.get(VITRIM)
    dense = (vitrim or next(iter(arms.values())))["top1_dense"]
    axes.axvline(dense, color=DENSE, linewidth=1.2, zorder=2)
    axes.annotate("dense", (dense, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=8)
    axes.axhline(2.5, color="#cccccc", linewidth=0.8)
    if vitrim:
        values = [vitrim["top1"], vitrim["top1_after_recover"], vitrim["top1_after_cut"]]
        shown = [(value, place) for place, value in enumerate(values) if value is not None]
        colour, marker = LOOKS[VITRIM]
        axes.plot(*zip(*shown, strict=True), color=colour, marker=marker, markersize=8, linewidth=1.8, zorder=5)
        for value, place in shown:
            _note_value(axes, value, place, colour, weight="bold")
    for place, arm in enumerate(others, start=3):
        value = arms.get(arm, {}).get("top1_after_cut")
        if value is not None:
            colour, marker = LOOKS[arm]
            axes.plot([value], [place], color=colour, marker=marker, markersize=7, linestyle="none", zorder=5)
            _note_value(axes, value, place, colour)


def _note_value(axes: Axes, value: float, place: int, colour: str, *, weight: str = "normal") -> None:
    """Write the number to the left of its point, because the line of the dense model is on the right."""
    axes.annotate(
        f"{value:.1f}",
        (value, place),
        xytext=(-8, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=8,
        color=colour,
        fontweight=weight,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        zorder=4,
    )


def _title(rows: Sequence[Row]) -> str:
    counts = sorted({len(row["seeds"]) for row in rows})
    seeds = "1 seed" if counts == [1] else f"{' or '.join(str(count) for count in counts)} seeds"
    return f"{rows[0]['model']}, {rows[0]['dataset']}, {seeds}"
