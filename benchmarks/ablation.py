"""The command `python -m benchmarks.ablation CONFIG -o OUT`, which measures each change from `paper` to `vitrim`.

The first recipe is that of the arm `paper`, the last one that of the arm `vitrim`. Each recipe between them changes one
more setting. The effect of a change is the paired difference between two neighbouring recipes. The command works in the
folder of `benchmarks.run` and does not repeat runs that are finished there.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from benchmarks.run import app_of, command_for, status_of

if TYPE_CHECKING:
    from benchmarks.cell import Cell
    from benchmarks.config import CellConfig
    from vitrim.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference between two recipes: its name in the tables, and the settings that it changes."""

    name: str
    keys: tuple[str, ...]


CHANGES = (
    Change(name="no block removed, all epochs in one training (or the cell's depth settings)", keys=("depth",)),
    Change(name="squared scores instead of absolute scores", keys=("importance.criterion",)),
    Change(name="closed-form recovery after each pruning", keys=("recovery.enabled",)),
    Change(name="width pruned in several steps, with new scores after each step", keys=("importance.steps",)),
    Change(name="units of a layer chosen together", keys=("importance.joint",)),
    Change(name="rotation and narrow heads", keys=("heads",)),
    Change(
        name="loss on hidden states with the weight of the loss on logits, from the first stage",
        keys=("width_training.distillation", "depth_training.distillation"),
    ),
)

app = app_of("benchmarks.ablation")


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
        TOML file of the cell, for example one in benchmarks/configs.
    output
        Folder of the cell, the same as for benchmarks.run.
    seeds
        Seeds to run, e.g. 0,2 (default: all seeds of the cell).
    keeps
        Fractions of parameters and multiply-adds to keep, e.g. 0.7,0.5 (default: all fractions of the cell).
    data
        Folder of the images (default: the place that the configuration names, or a download).
    """
    from benchmarks.cell import open_cell
    from benchmarks.config import load_config, select
    from vitrim.runs.files import read_json, write_text

    cell_config = load_config(config)
    selected = select(cell_config, seeds=seeds, keeps=keeps)
    command = command_for(cell_config, config).replace("benchmarks.run", "benchmarks.ablation")
    selection = "".join(f" --{name} {value}" for name, value in (("seeds", seeds), ("keeps", keeps)) if value)
    cell = open_cell(selected, output, data, command + selection)
    rows = [row for keep in selected.keeps for row in _rows_of(cell, keep)]
    file = output / "ablation.json"
    earlier = read_json(file) if file.is_file() else []
    rows += [row for row in earlier if row["keep"] not in selected.keeps]
    write_text(output / "ablation.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")


def recipes_between(config: "CellConfig", *, keep: float, seed: int) -> "list[tuple[str, Recipe]]":
    """Return the recipes from `paper` to `vitrim`, each with the name of its change.

    Raises:
        SettingError: the cell's table `[vitrim]` changes settings that are not in `CHANGES`.
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
            f"[vitrim] of the cell {config.name} changes settings that the ablation does not know. "
            f"It knows {', '.join(k for c in CHANGES for k in c.keys)}."
        )
    return found


def _only(table: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return the nested tables with only the setting at the path `keys`."""
    key, *rest = keys
    return {key: _only(table[key], rest) if rest else table[key]}


def _rows_of(cell: "Cell", keep: float) -> list[dict[str, Any]]:
    """Return one row for each recipe with one fraction to keep: means over seeds, and differences to the row before."""
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
    """Return for each recipe the evaluations after the first pruning, before training, and at the end."""
    from benchmarks.arms import run_job
    from benchmarks.cell import Job, lock_folder, read_evaluation
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
            with lock_folder(folder):
                compress(cell.dense(seed), cell.data, recipe, folder)
        read = partial(_evaluation, folder)
        cut, end = read("width-cut"), read("final")
        recovered = read_evaluation(_stage_file(folder, "width-recover"))
        found.append({"cut": cut, "before": Evaluation.from_dict(recovered) if recovered else cut, "final": end})
    return found


def _stage_file(folder: Path, stage: str) -> Path:
    from vitrim.runs.folder import find_result, in_stages

    return find_result(folder, in_stages(f"evaluation-{stage}.json"))


def _evaluation(folder: Path, stage: str) -> Any:
    from vitrim.evaluation import Evaluation
    from vitrim.runs.files import read_json

    return Evaluation.from_dict(read_json(_stage_file(folder, stage)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
