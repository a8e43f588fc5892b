"""`vitrim watch`: prints where a run stands, again and again in a terminal."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from vitrim.watching import Progress, Step, Training

SECONDS_BETWEEN = 2.0  # two looks at the files


def watch(
    run: Annotated[Path, Parameter(help="folder of a run of train or compress")],
    *,
    once: Annotated[bool, Parameter(help="print once and end (default: until the run ends, in a terminal)")] = False,
    as_json: Annotated[
        bool, Parameter(name="--json", help="print once, as JSON for scripts (default: as text)")
    ] = False,
) -> None:
    """Show where a run stands: its steps, the training, the time left, and whether a process works on it.

    Example: `vitrim watch runs/flowers-small`

    Only the files of the run are read. Nothing is written there. Ctrl-C ends the command, not the run.
    """
    from vitrim.cli.tables import print_line
    from vitrim.watching import watch as watch_run

    found = watch_run(run)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    elif once or not sys.stdout.isatty() or found.status != "running":
        for line in lines_of(found):
            print_line(line)
    else:
        _watch_live(run)


def _watch_live(run: Path) -> None:
    """Print again and again until the run ends, or until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from vitrim.errors import visible
    from vitrim.runs.progress import PLAIN
    from vitrim.watching import watch as watch_run

    def picture() -> tuple[Text, bool]:
        found = watch_run(run)
        return Text("\n".join(map(visible, lines_of(found)))), found.status == "running"

    text, goes_on = picture()
    with Live(text, console=Console(**PLAIN), auto_refresh=False) as live:
        try:
            while goes_on:
                time.sleep(SECONDS_BETWEEN)
                text, goes_on = picture()
                live.update(text, refresh=True)
        except KeyboardInterrupt:
            return


def lines_of(found: "Progress") -> Iterator[str]:
    """Where a run stands, in lines."""
    from vitrim.runs.progress import duration

    yield f"{found.title}: {found.status}{f', {found.process}' if found.process else ''}"
    yield from _lines_inside(found)
    if found.result:
        yield found.result
        if found.report:
            yield f"report: {found.report}"
    ago = f"last update {duration(found.seconds_since_update)} ago"
    if found.status == "interrupted":
        command = f": {found.command}" if found.command else ""
        yield f"no process works on it, {ago}; the same command continues it{command}"
    elif found.status == "running":
        left = f"about {duration(found.seconds_left)} left, " if found.seconds_left else ""
        yield f"{left}{ago}"
    yield from (f"warning: {event}" for event in found.events)


def _lines_inside(found: "Progress", margin: str = "  ") -> Iterator[str]:
    """The steps of a run, its training, and the run in it."""
    width = max((len(step.text) for step in found.steps), default=0)
    for number, step in enumerate(found.steps, 1):
        state = _state(step, is_running=found.status == "running")
        yield f"{margin}{number:>{len(str(len(found.steps)))}}. {step.text:<{width}}  {state}"
    if found.training is not None:
        yield f"{margin}{_training(found.training)}"
    if found.part is not None:
        yield f"{margin}{found.part.title}:"
        yield from _lines_inside(found.part, margin + "  ")


def _state(step: "Step", *, is_running: bool) -> str:
    from vitrim.runs.progress import duration

    if step.state == "done":
        return f"done in {duration(step.seconds)}" if step.seconds else "done"
    if step.state == "to do":
        return f"about {duration(step.seconds)}"
    return f"{duration(step.seconds)} of about {duration(step.expected)}" if is_running else "not done"


def _training(found: "Training") -> str:
    of_all = f" of {found.num_epochs}" if found.num_epochs else ""
    accuracy = ""
    if found.top1 is not None and found.best_top1 is not None:
        best = f" (best {found.best_top1:.2f} % in epoch {found.best_epoch})" if found.top1 < found.best_top1 else ""
        accuracy = f", validation top-1 {found.top1:.2f} %{best}"
    return (
        f"{found.stage}: epoch {found.epoch}{of_all}, loss {found.loss:.4f}{accuracy}, "
        f"{found.images_per_second:.0f} images/s"
    )
