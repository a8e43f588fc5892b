"""The command `python -m benchmarks.table OUT...`, which writes `docs/results.json`, `docs/results.md` and plots.

This file reads and writes files. Numbers are computed in `results`, and formatted in `document` and `plots`.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from benchmarks.curves import merge_curves
from benchmarks.document import cells_of, read_configs, to_markdown, tuning_to_markdown
from benchmarks.measurements import CURVES, Groups, group, read_measurements
from benchmarks.results import Row, merge, read_rows, rows_to_text, to_rows
from benchmarks.run import status_of
from vitrim.errors import SettingError

CONFIGS = Path(__file__).parent / "configs"
ABLATION = "ablation.json"

app = App(
    name="benchmarks.table",
    help="Write docs/results.json, docs/results.md and docs/plots from measured cells.",
    help_format="markdown",
)


@app.default
def table(
    outputs: list[Path] | None = None,
    /,
    *,
    docs: Path = Path("docs"),
    configs: Annotated[Path, Parameter(show_default=False)] = CONFIGS,
    tuning: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
) -> None:
    """Add measured cells to the documents. Without OUT, make the documents again from results.json.

    Example: `python -m benchmarks.table runs/vit-s-cifar100`

    Parameters
    ----------
    outputs
        Folders that `python -m benchmarks.run` wrote (default: none). Other cells in results.json are kept.
    docs
        Folder of results.json, results.md and plots.
    configs
        Folder of the configurations, for the list of open cells (default: benchmarks/configs).
    tuning
        File for the tables of tuning cells, - for the screen (default: no tables of tuning cells).
    """
    found, notes = read_measurements(outputs or [])
    for note in notes:
        print(note, file=sys.stderr)
    groups = group(found)
    if tuning is not None:
        _write_tuning(groups, tuning)
        return
    refused = sorted({cell for cell, members in _tuning_of(groups).items() if members})
    if refused:
        raise SettingError(
            f"{', '.join(refused)} was measured on images split from the training set, so it is not a result. "
            "Pass --tuning FILE to write its tables."
        )
    _write_curves(outputs or [], docs)
    _write_docs(groups, [row for folder in outputs or [] for row in read_rows(folder / ABLATION)], docs, configs)


def _write_curves(outputs: Sequence[Path], docs: Path) -> None:
    """Add the curves of the cells to those of the documents."""
    if new := [row for folder in outputs for row in read_rows(folder / CURVES)]:
        docs.mkdir(parents=True, exist_ok=True)
        _write(docs / CURVES, rows_to_text(merge_curves(read_rows(docs / CURVES), new)))


def _write_docs(groups: Groups, ablation: list[Row], docs: Path, configs: Path) -> None:
    from benchmarks.headline_plots import draw_headline  # matplotlib is slow to load
    from benchmarks.plots import draw_plots

    rows = merge(read_rows(docs / "results.json"), to_rows(groups))
    measured = {(row["cell"], row["keep"]) for row in ablation}
    ablation += [row for row in read_rows(docs / ABLATION) if (row["cell"], row["keep"]) not in measured]
    curves = read_rows(docs / "curves.json")
    text = to_markdown(rows, read_configs(configs), ablation=ablation, curves=curves)
    docs.mkdir(parents=True, exist_ok=True)
    for cell, members in cells_of(rows).items():
        draw_plots(cell, members, docs / "plots")
    draw_headline(rows, curves, docs / "plots")
    _write(docs / "results.md", text)
    _write(docs / "results.json", rows_to_text(rows))
    if ablation:
        _write(docs / ABLATION, rows_to_text(ablation))
    print(f"{docs / 'results.json'}: {len(rows)} rows of {len(cells_of(rows))} cells")


def _write_tuning(groups: Groups, path: Path) -> None:
    final = sorted({cell for cell, members in _tuning_of(groups).items() if not members})
    if final or not groups:
        raise SettingError(f"--tuning needs tuning cells only, but found {', '.join(final) or 'none'}; leave it out.")
    text = tuning_to_markdown(to_rows(groups))
    if str(path) == "-":
        print(text, end="")
    else:
        _write(path, text)


def _tuning_of(groups: Groups) -> dict[str, bool]:
    """Return for each cell whether any of its measurements is for tuning."""
    found: dict[str, bool] = {}
    for (cell, _, _), members in groups.items():
        found[cell] = found.get(cell, False) or any(m.values["tuning"] for m in members)
    return found


def _write(path: Path, text: str) -> None:
    """Write atomically, because results.json may hold cells whose measurements are on another machine."""
    working = path.with_name(f"{path.name}.tmp")
    working.write_text(text, encoding="utf-8")
    os.replace(working, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
