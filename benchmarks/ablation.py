"""`python -m benchmarks.ablation CONFIG -o OUT`: from the published method to the default recipe, one change at a time.

The first recipe is the arm `paper`, the last one the arm `vitrim`; each one between takes over one more setting. What a
change is worth is the paired difference between two neighbours. It works in the folder of `benchmarks.run`, and what
that has finished is not run again.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import App, Parameter

from benchmarks.run import command_for, status_of

if TYPE_CHECKING:
    from benchmarks.cell import Cell
    from benchmarks.config import CellConfig
    from vitrim.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between two recipes: what it is called, and the settings that are taken over."""

    name: str
    keys: tuple[str, ...]


CHANGES = (
    Change(name="no block removed, so all epochs are one training (or what the cell sets for depth)", keys=("depth",)),
    Change(name="squared scores instead of absolute ones", keys=("importance.criterion",)),
    Change(name="closed-form recovery behind each cut", keys=("recovery.enabled",)),
    Change(name="narrowed in steps, scored anew after each", keys=("importance.steps",)),
    Change(
        name="hidden states weigh as much as the soft output, from the first stage on",
        keys=("width_training.distillation", "depth_training.distillation"),
    ),
)

app = App(name="benchmarks.ablation", help_format="markdown", suppress_keyboard_interrupt=False)


@app.default
def ablation(
    config: Path,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    seeds: str = "",
    keeps: str = "",
    data: Path | None = None,
) -> None:
    """Measure each change from the published method to the default recipe, and write OUT/ablation.json.

    Example: `python -m benchmarks.ablation benchmarks/configs/smoke.toml -o runs/bench-smoke`

    Parameters
    ----------
    config
        The cell: a TOML file, such as one in benchmarks/configs.
    output
        Folder of the cell, the same as that of benchmarks.run.
    seeds
        Only these seeds of the cell, such as 0,2.
    keeps
        Only these shares, such as 0.7,0.5.
    data
        Where the cell's images are on this machine.
    """
    from benchmarks.cell import open_cell
    from benchmarks.config import load_config, select
    from vitrim.runs.files import read_json, write_text

    whole = load_config(config)
    part = select(whole, seeds=seeds, keeps=keeps)
    command = command_for(whole, config).replace("benchmarks.run", "benchmarks.ablation")
    given = "".join(f" --{name} {value}" for name, value in (("seeds", seeds), ("keeps", keeps)) if value)
    cell = open_cell(part, output, data, command + given)
    rows = [row for keep in part.keeps for row in _rows_of(cell, keep)]
    file = output / "ablation.json"
    earlier = read_json(file) if file.is_file() else []
    rows += [row for row in earlier if row["keep"] not in part.keeps]
    write_text(output / "ablation.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")


def recipes_between(config: "CellConfig", *, keep: float, seed: int) -> "list[tuple[str, Recipe]]":
    """The recipes from `paper` to `vitrim`, each with what is new in it.

    Raises:
        SettingError: the cell's own changes go beyond what the ablation takes apart.
    """
    from benchmarks.config import merged, recipe_for
    from vitrim.errors import SettingError
    from vitrim.recipe import Recipe, from_table, to_table

    first, last = (recipe_for(config, arm, keep=keep, seed=seed) for arm in ("paper", "vitrim"))
    table, goal = to_table(first), to_table(last)
    found = [("the published method", first)]
    for change in CHANGES:
        for key in change.keys:
            table = merged(table, _only(goal, key.split(".")))
        found.append((change.name, from_table(Recipe, table)))
    if found[-1][1] != last:
        raise SettingError(
            f"[vitrim] of the cell {config.name} changes more than {', '.join(k for c in CHANGES for k in c.keys)}, so "
            "no sequence of the ablation's changes leads there."
        )
    return found


def _only(table: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """The part of nested tables that a dotted name means."""
    key, *rest = keys
    return {key: _only(table[key], rest) if rest else table[key]}


def _rows_of(cell: "Cell", keep: float) -> list[dict[str, Any]]:
    """One row for each recipe at one share kept: means over seeds, and paired differences to the row before."""
    from benchmarks.statistics import paired_difference

    seeds = cell.config.seeds
    measured = [_measure(cell, keep, seed) for seed in seeds]
    rows: list[dict[str, Any]] = []
    for index, (name, _) in enumerate(recipes_between(cell.config, keep=keep, seed=seeds[0])):
        row: dict[str, Any] = {"cell": cell.config.name, "keep": keep, "name": name, "seeds": list(seeds)}
        for when in ("cut", "before", "final"):
            row[when] = float(np.mean([runs[index][when].top1 for runs in measured]))
        for when in ("before", "final") if index else ():
            now, earlier = (np.stack([runs[i][when].correct for runs in measured]) for i in (index, index - 1))
            gain = paired_difference(earlier, now)
            row[f"{when}_gain"] = [gain.points, gain.low, gain.high]
        rows.append(row | {"command": cell.command, "commit": cell.commit})
    return rows


def _measure(cell: "Cell", keep: float, seed: int) -> list[dict[str, Any]]:
    """For each recipe the evaluations after the first cut, before any training, and at the end."""
    from benchmarks.arms import run_job
    from benchmarks.cell import Job, alone_in, read_evaluation
    from vitrim.evaluation import Evaluation
    from vitrim.pipeline import compress
    from vitrim.runs.progress import log

    recipes = recipes_between(cell.config, keep=keep, seed=seed)
    found = []
    for index, (name, recipe) in enumerate(recipes):
        ends = {0: "paper", len(recipes) - 1: "vitrim"}
        if index in ends:
            job = Job(arm=ends[index], seed=seed, keep=keep)
            run_job(cell, job)
            folder = cell.folder(job)
        else:
            folder = cell.out / f"seed-{seed}" / f"keep-{keep:g}" / f"change-{index}"
            log(f"seed {seed}, keep {keep:g}: {name}")
            with alone_in(folder):
                compress(cell.dense(seed), cell.data, recipe, folder)
        read = partial(_evaluation, folder)
        cut, end = read("width-cut"), read("final")
        recovered = read_evaluation(folder / "evaluation-width-recover.json")
        found.append({"cut": cut, "before": Evaluation.from_dict(recovered) if recovered else cut, "final": end})
    return found


def _evaluation(folder: Path, stage: str) -> Any:
    from vitrim.evaluation import Evaluation
    from vitrim.runs.files import read_json

    return Evaluation.from_dict(read_json(folder / f"evaluation-{stage}.json"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and leave with the exit status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
