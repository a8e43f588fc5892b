"""Draw the picture of the README: dense and compressed models side by side.

    python -m tools.readme_picture

The numbers are those of the table of `vitrim demo` in README.md and of docs/results.json. Nothing is measured here.
Run it again when one of them changes. The same numbers always produce the same file.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.headline import headline_rows, key_of, main_key
from benchmarks.headline_plots import STYLE as PLOT_STYLE

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "pictures" / "result.svg"
DENSE, COMPRESSED = "#9aa4af", "#d9661f"  # each is readable on white and on black
STYLE: Any = {**PLOT_STYLE, "axes.spines.bottom": False}


class Bar(NamedTuple):
    """One model in one panel: its length as a fraction of the longest bar, and the text at its end."""

    model: str
    length: float
    text: str


def main() -> None:
    """Write the picture."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        picture = draw()
        picture.savefig(PICTURE, transparent=True, bbox_inches="tight", metadata={"Date": None, "Creator": None})


def draw() -> Figure:
    """The figure: one row for each data set, one panel for each number."""
    figure = Figure(figsize=(11, 3.9))
    panels = figure.subplots(2, 3, gridspec_kw={"hspace": 0.75, "wspace": 0.3})
    rows = (("vitrim demo: handwritten digits", demo_bars()), cell_bars())
    for row, (data, bars_of_panels) in zip(panels, rows, strict=True):
        for axes, (title, bars) in zip(row, bars_of_panels.items(), strict=True):
            draw_panel(axes, title, bars)
        row[0].annotate(data, (-0.22, 1.36), xycoords="axes fraction", fontweight="bold", fontsize=12)
    return figure


def draw_panel(axes: Axes, title: str, bars: list[Bar]) -> None:
    """Horizontal bars, with the model on the left and the number on the right of each."""
    colours = [DENSE if bar.model == "dense" else COMPRESSED for bar in bars]
    places = range(len(bars))
    axes.barh(places, [bar.length for bar in bars], color=colours, height=0.62)
    for place, bar in zip(places, bars, strict=True):
        axes.text(bar.length + 0.02, place, bar.text, va="center")
    axes.set_yticks(places, [bar.model for bar in bars])
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlim(0, 1.45)  # the numbers need space
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()


def demo_bars() -> dict[str, list[Bar]]:
    """Top-1, parameters and latency, from the table in README.md. Pruned models have the ratio to the dense latency."""
    top = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## ")[0]
    table = re.findall(r"^\| (dense|\d+ %) \|(.+)\|$", top, re.M)
    cells = {model: [cell.split() for cell in line.split("|")] for model, line in table}
    bars = {}
    for title, column, unit in (("top-1", 0, "%"), ("parameters", 1, "k")):
        numbers = {model: row[column][0] for model, row in cells.items()}
        bars[title] = _bars(
            {model: float(text) for model, text in numbers.items()}, f"{{}} {unit}", [*numbers.values()]
        )
    latency = {model: " ".join(row[3][:2]) for model, row in cells.items()}  # `9.78 ms`, `x 0.88`
    ratios = {model: 1.0 if model == "dense" else float(text.removeprefix("x ")) for model, text in latency.items()}
    return {**bars, "latency, batch 64": _bars(ratios, "{}", [*latency.values()])}


def cell_bars() -> tuple[str, dict[str, list[Bar]]]:
    """Model and data of the cell that docs/results.md begins with, and the bars of its arm `vitrim`.

    Only rows with the seeds that most rows have are shown: other rows have another dense model.
    """
    cell = headline_rows(json.loads((ROOT / "docs" / "results.json").read_text(encoding="utf-8")))
    arm = [row for row in cell if row["arm"] == "vitrim" and key_of(row) == main_key(cell)]
    arm.sort(key=lambda row: -row["keep"])
    names = [f"{100 * row['keep']:.0f} %" for row in arm]

    def bars(dense: float, values: list[float], digits: int, text: str = "{} %") -> list[Bar]:
        found = dict(zip(["dense", *names], [dense, *values], strict=True))
        return _bars(found, text, [f"{value:.{digits}f}" for value in found.values()])

    panels = {
        "top-1": bars(arm[0]["top1_dense"], [row["top1"] for row in arm], 2),
        "parameters": bars(100, [100 * row["params_ratio"] for row in arm], 1),
    }
    if all(row.get("latency_ratio") is not None for row in arm):
        title = f"latency, batch {arm[0]['latency_batch']}" if arm[0].get("latency_batch") else "latency"
        panels[title] = bars(1, [row["latency_ratio"] for row in arm], 2, "x {}")
    else:
        panels["multiply-adds (latency not measured)"] = bars(100, [100 * row["macs_ratio"] for row in arm], 1)
    return f"{arm[0]['dataset']}: {arm[0]['model']}", panels


def _bars(values: dict[str, float], text: str, numbers: list[str]) -> list[Bar]:
    longest = max(values.values())
    return [
        Bar(model, value / longest, text.format(number))
        for (model, value), number in zip(values.items(), numbers, strict=True)
    ]


if __name__ == "__main__":
    main()
