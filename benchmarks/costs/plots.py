"""The plot of the section `growth`, as SVG. The same points always produce the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.plots import GREY, STYLE

Point = Mapping[str, Any]
PANELS = {"size": "model, by its parameters", "images": "training images", "classes": "classes"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One value of the points, and the style of its curve."""

    key: str
    name: str
    colour: str
    marker: str
    line: str = "-"


SECONDS = (
    Curve(key="seconds", name="compress", colour="#D55E00", marker="o"),
    Curve(key="step_seconds", name="as many plain training steps", colour="#0072B2", marker="s"),
)
BYTES = (
    Curve(key="peak_bytes", name="compress, peak", colour="#D55E00", marker="o"),
    Curve(key="step_peak_bytes", name="one plain training step, peak", colour="#0072B2", marker="s"),
    Curve(key="model_bytes", name="weights of the model", colour=GREY, marker="", line="--"),
)


def draw_growth(points: Sequence[Point], path: Path) -> None:
    """Draw the points and write the plot to `path`."""
    with matplotlib.rc_context(STYLE):
        figure = growth_figure(points)
        figure.savefig(path, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})


def growth_figure(points: Sequence[Point]) -> Figure:
    """Draw seconds in the upper row and bytes in the lower row, with one column for each axis that has points."""
    found = [along for along in PANELS if any(point["along"] == along for point in points)]
    figure = Figure(figsize=(1.6 + 3.2 * len(found), 6.4), layout="constrained")
    panels = figure.subplots(2, len(found), sharex="col", sharey="row", squeeze=False)
    for column, along in enumerate(found):
        chosen = sorted((point for point in points if point["along"] == along), key=lambda point: point["x"])
        for axes, curves in zip(panels[:, column], (SECONDS, BYTES), strict=True):
            _draw(axes, chosen, curves)
        _note_ratios(panels[0, column], chosen)
        _name_ticks(panels[1, column], chosen, with_names=along == "size")
        panels[1, column].set_xlabel(PANELS[along])
    panels[0, 0].set_ylabel("time")
    panels[1, 0].set_ylabel("memory without model and images")
    for axes, form in zip(panels[:, 0], (_seconds, _bytes), strict=True):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _, form=form: form(value)))
    for row in panels:
        row[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), frameon=False, fontsize=9, borderaxespad=0)
    title = (
        "compress and the same number of plain training steps. Numbers: time of compress divided by time of the steps"
    )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _draw(axes: Axes, points: Sequence[Point], curves: Sequence[Curve]) -> None:
    for curve in curves:
        axes.plot(
            [point["x"] for point in points],
            [point[curve.key] for point in points],
            color=curve.colour,
            marker=curve.marker,
            linestyle=curve.line,
            linewidth=1.8,
            label=curve.name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.12, y=0.15)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.grid(True, axis="y")


def _note_ratios(axes: Axes, points: Sequence[Point]) -> None:
    for point in points:
        axes.annotate(
            f"{point['seconds'] / point['step_seconds']:.2f}",
            (point["x"], point["seconds"]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=SECONDS[0].colour,
        )


def _name_ticks(axes: Axes, points: Sequence[Point], *, with_names: bool) -> None:
    """Put a tick at each measured point."""
    names = {point["x"]: point["name"] if with_names else f"{point['x']:,.10g}" for point in points}
    axes.set_xticks(list(names), list(names.values()), fontsize=9)
    axes.xaxis.set_minor_formatter(NullFormatter())


def _seconds(value: float) -> str:
    return f"{value:g} s"


def _bytes(value: float) -> str:
    return f"{value / 1e9:g} GB" if value >= 1e9 else f"{value / 1e6:g} MB"
