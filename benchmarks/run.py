"""The command `python -m benchmarks.run CONFIG -o OUT`, which runs one cell of the benchmark.

This file reads arguments and runs one arm after the other. It also turns errors into exit statuses for all commands of
the benchmark: 0 for success, 2 for a mistake that the user can correct, 1 for a bug. torch is imported only when a cell
runs.
"""

import sys
import traceback
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from vitrim.cli import PLACE_PROBLEMS
from vitrim.errors import SettingError, UserError

if TYPE_CHECKING:
    from benchmarks.cell import Cell, Job
    from benchmarks.config import CellConfig

ROOT = Path(__file__).parent.parent


def app_of(name: str, help: str | None = None) -> App:
    """The app of a command of the benchmarks, which `status_of` runs."""
    # `status_of` itself says how to continue after Ctrl-C
    return App(name=name, help=help, help_format="markdown", suppress_keyboard_interrupt=False)


app = app_of(
    "benchmarks.run",
    "Run one cell of the benchmark: one model on one data set, for all seeds, fractions to keep and arms.",
)


@app.default
def run(
    config: Path,
    *,
    output: Annotated[Path, Parameter(name=["-o", "--output"])],
    seeds: str = "",
    keeps: str = "",
    arms: str = "",
    data: Path | None = None,
    teacher_only: bool = False,
) -> None:
    """Run a cell or a part of it. The same command continues after an interruption. Finished arms are not run again.

    Example: `python -m benchmarks.run benchmarks/configs/smoke.toml -o runs/bench-smoke --arms vitrim,paper`

    Parameters
    ----------
    config
        TOML file of the cell, for example one in benchmarks/configs.
    output
        Folder of the cell. Several processes may use it at the same time, for example with different seeds.
    seeds
        Seeds to run, e.g. 0,2 (default: all seeds of the cell).
    keeps
        Fractions of parameters and multiply-adds to keep, e.g. 0.7,0.5 (default: all fractions of the cell).
    arms
        Arms to run, e.g. vitrim,paper (default: all arms of the cell).
    data
        Folder of the images (default: the place that the configuration names, or a download).
    teacher_only
        Only measure the accuracy of the teacher of the configuration and of the dense model. No arm is run.
    """
    from benchmarks.arms import run_job
    from benchmarks.cell import open_cell
    from benchmarks.config import load_config, select

    cell_config = load_config(config)
    selected = select(cell_config, seeds=seeds, keeps=keeps, arms=arms)
    check_installed(selected.arms)
    cell = open_cell(selected, output, data, command_for(cell_config, config))
    if teacher_only:
        _measure_teacher(cell)
        return
    for job in jobs_of(selected):
        run_job(cell, job)


def _measure_teacher(cell: "Cell") -> None:
    if not cell.config.teacher.text:
        raise SettingError("--teacher-only needs a configuration with the table [teacher], which this one lacks.")
    for seed in {cell.dense_seed(seed): seed for seed in cell.config.seeds}.values():
        found = cell.target(seed)
        difference = found["top1"] - found["top1_dense"]
        print(f"teacher {found['top1']:.2f} %, dense model {found['top1_dense']:.2f} %, {difference:+.2f} points")


def jobs_of(config: "CellConfig") -> "list[Job]":
    """List the jobs of a cell, ordered by seed, fraction to keep and arm. A dense control has one job per seed."""
    from benchmarks.cell import Job
    from benchmarks.config import CONTROLS

    jobs = []
    for seed in config.seeds:
        arms = [arm for arm in config.arms if arm not in CONTROLS]
        jobs += [Job(arm=arm, seed=seed, keep=keep) for keep in config.keeps for arm in arms]
        jobs += [Job(arm=arm, seed=seed, keep=1.0) for arm in config.arms if arm in CONTROLS]
    return jobs


def command_for(config: "CellConfig", path: Path) -> str:
    """Return the command that runs the whole cell from the root of the repository."""
    absolute = path.resolve()
    shown = absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else Path(path.name)
    return f"python -m benchmarks.run {shown.as_posix()} -o runs/{config.name}"


def check_installed(arms: Sequence[str]) -> None:
    """Raise `SettingError` if an arm needs a package that is missing."""
    needing = [arm for arm in arms if arm.startswith("torch-pruning")]
    if needing and find_spec("torch_pruning") is None:
        raise SettingError(
            f"The arm {needing[0]} needs the package torch-pruning, which is not installed. "
            "Install it by `pip install -e '.[bench]'`, or choose other arms with --arms."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


def status_of(app: App, arguments: Sequence[str] | None) -> int:
    """Run a command of the benchmarks and return its exit status. A mistake of the user is printed as one sentence."""
    name = app.name[0]
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except UserError as problem:
        return _print_error(name, str(problem))
    except CycloptsError as problem:
        return _print_error(name, " ".join(str(problem).split()) + f" `python -m {name} --help` shows an example.")
    except KeyboardInterrupt:
        return _print_error(
            name, "Interrupted. The same command continues; a training continues from its last checkpoint."
        )
    except OSError as problem:
        if problem.errno in PLACE_PROBLEMS:
            return _print_error(name, f"Cannot write or read {problem.filename or 'a file'}: {problem.strerror}.")
        traceback.print_exc()
        return 1


def _print_error(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
