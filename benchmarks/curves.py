"""The command `python -m benchmarks.curves CONFIG -o OUT`: the arms of a cell with other numbers of student epochs.

    OUT                  the cell itself, with its own number of epochs
    OUT/epochs-E         the same cell with E student epochs, and with the dense models of OUT
    OUT/curves.json      one row for each fraction to keep, arm and number of epochs, made from these folders

`benchmarks.table` adds the rows to `docs/curves.json`.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from cyclopts import Parameter

from benchmarks.measurements import CURVES, EPOCHS_FOLDER, VITRIM, Groups, Measurement, group, read_measurements
from benchmarks.results import Row, difference, order_of, origin_of, rounded
from benchmarks.run import app_of, check_installed, command_for, jobs_of, status_of

if TYPE_CHECKING:
    from benchmarks.config import CellConfig

app = app_of("benchmarks.curves")


@app.default
def curves(
    config: Path,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    epochs: str = "1,3,10",
    arms: str = "vitrim,torch-pruning-head-widths",
    keeps: str = "",
    seeds: str = "",
    data: Path | None = None,
) -> None:
    """Run arms of a cell with several numbers of student epochs, and write OUT/curves.json.

    The same command continues after an interruption. The dense models are those of the cell.

    Example: `python -m benchmarks.curves benchmarks/configs/cifar100-small.toml -o runs/cifar100-small --keeps 0.5,0.3`

    Parameters
    ----------
    config
        TOML file of the cell, for example one in benchmarks/configs.
    output
        Folder of the cell, the same as for benchmarks.run.
    epochs
        Numbers of student epochs. Runs of the cell itself are used for its own number.
    arms
        Arms to run.
    keeps
        Fractions of parameters and multiply-adds to keep, e.g. 0.5,0.3 (default: all fractions of the cell).
    seeds
        Seeds to run, e.g. 0 (default: all seeds of the cell).
    data
        Folder of the images (default: the place that the configuration names, or a download).
    """
    from benchmarks.arms import run_job
    from benchmarks.cell import load_images, open_cell_with
    from benchmarks.config import load_config, select
    from vitrim.runs.files import write_text

    cell_config = load_config(config)
    selected = select(cell_config, seeds=seeds, keeps=keeps, arms=arms)
    check_installed(selected.arms)
    cells = {number: _with_epochs(selected, number) for number in _numbers(epochs)}
    options = {"epochs": epochs, "arms": arms, "keeps": keeps, "seeds": seeds}
    command = command_for(cell_config, config).replace("benchmarks.run", "benchmarks.curves")
    command += "".join(f" --{name} {value}" for name, value in options.items() if value)
    images = load_images(selected, data)
    for number, changed in cells.items():
        is_own = number == cell_config.student_epochs
        folder = output if is_own else output / f"{EPOCHS_FOLDER}{number}"
        shown = command_for(cell_config, config) if is_own else command
        cell = open_cell_with(images, changed, folder, shown, dense_out=output)
        for job in jobs_of(changed):
            run_job(cell, job)
        text = json.dumps(curve_rows(output), indent=1, allow_nan=False)
        write_text(output / CURVES, text + "\n")


def curve_rows(output: Path) -> list[Row]:
    """Return the rows of all arms and fractions that were run with another number of epochs than the cell's own.

    All points of a curve are means over the seeds that all of its points have, if there is such a seed. The point of
    epoch 0 is the model after pruning and recovery, before training.

    Args:
        output: folder of the cell.
    """
    folders = [path for path in sorted(output.glob(f"{EPOCHS_FOLDER}*")) if any(path.rglob("arm.json"))]
    others = [group(read_measurements([folder])[0]) for folder in folders]
    keys = {key for groups in others for key in groups}
    points: dict[int, Groups] = {_epochs_in(groups): groups for groups in others}
    own = group(read_measurements([output])[0]) if keys and any(output.glob("seed-*/**/arm.json")) else {}
    if own:
        points[_epochs_in(own)] = own
    found: list[Row] = []
    for cell, keep, arm in keys:
        curve = {number: groups[cell, keep, arm] for number, groups in points.items() if (cell, keep, arm) in groups}
        curve = _common_seeds(curve)
        first = curve.get(_epochs_in(own) if own else 0) or curve[min(curve)]
        compared = {number: groups.get((cell, keep, VITRIM), []) for number, groups in points.items()}
        found += [_row(number, members, compared[number] if arm != VITRIM else []) for number, members in curve.items()]
        found += _start(first, compared[first[0].values["student_epochs"]] if arm != VITRIM else [])
    return sorted(found, key=_order)


def merge_curves(earlier: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """Return the new rows, and the earlier rows that they do not replace.

    If a row of the arm vitrim is replaced, earlier rows lose their comparison with it.
    """
    merged = {_key(row): dict(row) for row in earlier}
    replaced = {_key(row) for row in new if row["arm"] == VITRIM and merged.get(_key(row), row) != row}
    for (cell, keep, _, number), row in merged.items():
        if (cell, keep, VITRIM, number) in replaced:
            row.update(dict.fromkeys(("vitrim_delta", "vitrim_low", "vitrim_high")))
    merged |= {_key(row): row for row in new}
    return sorted(merged.values(), key=_order)


def _numbers(text: str) -> list[int]:
    from vitrim.errors import SettingError

    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise SettingError(f"--epochs is {text!r}; expected whole numbers of at least 1, such as 1,3,10.")
    return sorted({int(word) for word in words})


def _with_epochs(config: "CellConfig", number: int) -> "CellConfig":
    from dataclasses import replace

    return replace(config, student_epochs=number)


def _epochs_in(groups: Groups) -> int:
    """Return the number of student epochs of a cell, which all its records have in common."""
    return int(next(iter(groups.values()))[0].values["student_epochs"])


def _common_seeds(curve: dict[int, list[Measurement]]) -> dict[int, list[Measurement]]:
    common = set.intersection(*({m.seed for m in members} for members in curve.values()))
    if not common:
        return curve
    return {number: [m for m in members if m.seed in common] for number, members in curve.items()}


def _row(number: int, members: list[Measurement], vitrim: list[Measurement]) -> Row:
    """Return the point of final models."""
    return _point(
        number,
        members,
        right=[m.correct for m in members],
        same=[m.same for m in members],
        divergence=[m.divergence for m in members],
        seconds=[m.values["seconds"] for m in members],
        lead=difference(members, vitrim, "correct", "correct"),
    )


def _start(members: list[Measurement], vitrim: list[Measurement]) -> list[Row]:
    """Return the point before the training. No point for arms that do not prune."""
    name = "after_recover" if members[0].after_recover is not None else "after_cut"
    if any(getattr(m, name) is None for m in members):
        return []
    steps = [m.values.get("step_seconds") for m in members]
    compared = [m.values.get("recovered_against_dense") for m in members]
    point = _point(
        0,
        members,
        right=[getattr(m, name) for m in members],
        same=[values and np.array(list(values["same"])) == "1" for values in compared],
        divergence=[m.divergence_after_recover for m in members],
        seconds=[
            found and m.values["seconds"] - found.get("distillation", 0.0)
            for m, found in zip(members, steps, strict=True)
        ],
        lead=difference(members, vitrim, name, "after_recover"),
    )
    return [point]


def _point(
    number: int,
    members: list[Measurement],
    *,
    right: list[Any],
    same: list[Any],
    divergence: list[Any],
    seconds: list[Any],
    lead: dict[str, float] | None,
) -> Row:
    from benchmarks.statistics import paired_difference

    top1 = paired_difference(np.zeros_like(right), np.array(right))
    lead = lead or {"points": None, "low": None, "high": None}  # type: ignore[dict-item]
    agreement = _mean(same)
    row = {
        **{name: members[0].values[name] for name in ("cell", "keep", "arm")},
        "student_epochs": number,
        "seeds": [m.seed for m in members],
        **{"top1": top1.points, "low": top1.low, "high": top1.high},
        "kl": _mean(divergence),
        "agreement": None if agreement is None else 100 * agreement,
        "seconds": _mean(seconds),
        **{"vitrim_delta": lead["points"], "vitrim_low": lead["low"], "vitrim_high": lead["high"]},
        **origin_of(members),
    }
    return {name: rounded(value) for name, value in row.items()}


def _mean(values: list[Any]) -> float | None:
    """Return the mean over seeds and images. None if it is unknown for one seed."""
    return None if any(value is None for value in values) else float(np.mean(values, dtype=np.float64))


def _key(row: Row) -> tuple[str, float, str, int]:
    return row["cell"], float(row["keep"]), row["arm"], row["student_epochs"]


def _order(row: Row) -> tuple[Any, ...]:
    return (*order_of(row), row["student_epochs"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
