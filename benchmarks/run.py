"""`python -m benchmarks.run CONFIG -o OUT`: run one cell of the benchmark. Reads arguments, and goes through the arms.

Exit status 0, 2 for what the user must change, 1 for a fault of ours. torch is imported only when a cell runs.
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
    from benchmarks.cell import Job
    from benchmarks.config import CellConfig

ROOT = Path(__file__).parent.parent

app = App(
    name="benchmarks.run",
    help="Run one cell of the benchmark: one model on one data set, with all its seeds, shares kept and arms.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `_status` says how to go on
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
) -> None:
    """Run a cell, or a part of it. Called again, it goes on where it stopped; what is finished is left as it is.

    Example: `python -m benchmarks.run benchmarks/configs/smoke.toml -o runs/bench-smoke --arms vitrim,paper`

    Parameters
    ----------
    config
        The cell: a TOML file, such as one in benchmarks/configs.
    output
        Folder of the cell; several processes may work in it at once, with different seeds, say.
    seeds
        Only these seeds of the cell, such as 0,2.
    keeps
        Only these shares, such as 0.7,0.5.
    arms
        Only these arms, such as vitrim,paper.
    data
        Where the cell's images are on this machine.
    """
    from benchmarks.arms import run_job
    from benchmarks.cell import open_cell
    from benchmarks.config import load_config, select

    whole = load_config(config)
    part = select(whole, seeds=seeds, keeps=keeps, arms=arms)
    _check_installed(part.arms)
    cell = open_cell(part, output, data, command_for(whole, config))
    for job in jobs_of(part):
        run_job(cell, job)


def jobs_of(config: "CellConfig") -> "list[Job]":
    """Seed by seed, the shares in the order of the cell, the arms in theirs; the control once for each seed."""
    from benchmarks.cell import Job
    from benchmarks.config import CONTROL

    jobs = []
    for seed in config.seeds:
        arms = [arm for arm in config.arms if arm != CONTROL]
        jobs += [Job(arm=arm, seed=seed, keep=keep) for keep in config.keeps for arm in arms]
        jobs += [Job(arm=CONTROL, seed=seed, keep=1.0)] if CONTROL in config.arms else []
    return jobs


def command_for(config: "CellConfig", path: Path) -> str:
    """What a reader types at the root of the repository to run the whole cell."""
    absolute = path.resolve()
    shown = absolute.relative_to(ROOT) if absolute.is_relative_to(ROOT) else Path(path.name)
    return f"python -m benchmarks.run {shown.as_posix()} -o runs/{config.name}"


def _check_installed(arms: Sequence[str]) -> None:
    if "torch-pruning" in arms and find_spec("torch_pruning") is None:
        raise SettingError(
            "The arm torch-pruning needs the package: `pip install -e '.[bench]'`, or choose other arms with --arms."
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a cell and leave with its exit status."""
    sys.exit(status_of(app, arguments))


def status_of(app: App, arguments: Sequence[str] | None) -> int:
    """Run a command of the benchmarks; its exit status, after a sentence on what the user must change."""
    name = app.name[0]
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except UserError as problem:
        return _complain(name, str(problem))
    except CycloptsError as problem:
        return _complain(name, " ".join(str(problem).split()) + f" `python -m {name} --help` shows an example.")
    except KeyboardInterrupt:
        return _complain(name, "Interrupted. The same command goes on; a training from its last checkpoint.")
    except OSError as problem:
        if problem.errno in PLACE_PROBLEMS:
            return _complain(name, f"Cannot write or read {problem.filename or 'a file'}: {problem.strerror}.")
        traceback.print_exc()
        return 1


def _complain(name: str, message: str) -> int:
    print(f"{name}: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
