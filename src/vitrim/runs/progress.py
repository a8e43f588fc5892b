"""Progress on standard error: bars with a time estimate on a terminal, lines with a time stamp elsewhere.

Only the first process of a distributed run prints. Results are printed elsewhere, on standard output.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from vitrim.errors import visible

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}  # of a rich console: `[red]` is a name
SPEED_SECONDS = 3600.0  # steps of the last hour say how fast a task is; a step may take minutes
FIRST_LINE_SECONDS, MAX_LINE_SECONDS = 30.0, 600.0  # between lines about one task; the time doubles after each line


@cache
def console() -> "Console":
    """Return the console on standard error. It prints nothing in processes other than the first."""
    from rich.console import Console  # takes 0.1 s to import

    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", soft_wrap=True, **PLAIN)


def log(message: str) -> None:
    """Print one line on standard error. It begins with date and time, unless standard error is a terminal."""
    stamp = "" if sys.stderr.isatty() else f"{datetime.now():%Y-%m-%d %H:%M:%S} "
    console().print(stamp + visible(message))


def duration(seconds: float) -> str:
    """Return a time in one or two units, for messages: `40 s`, `12 min`, `3 h 5 min`, `2 d 4 h`."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def is_interactive() -> bool:
    """Whether this process may show progress bars: standard error is a terminal, and this is the first process."""
    return sys.stderr.isatty() and not console().quiet


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, and show a progress bar on a terminal until they end.

    Args:
        description: shown before the bar.
        total: number of items; by default `len(items)`, if there is one.
    """
    with advancing(description, total if total is not None else _length(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def advancing(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal inside the block. Elsewhere, print a line from time to time.

    From the second step on, both say how much time is left.

    Args:
        description: shown before the bar.
        total: number of steps, or None if unknown.
        done: steps done before.

    Yields:
        A function that advances the bar by a number of steps.
    """
    if not is_interactive():
        yield _Lines(description, total, done).advance
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console(), transient=True, speed_estimate_period=SPEED_SECONDS) as progress:
        task = progress.add_task(visible(description), total=total, completed=done)
        yield lambda steps: progress.advance(task, steps)


class _Lines:
    """Prints how far a task is: after half a minute, then less and less often."""

    def __init__(self, description: str, total: int | None, done: int) -> None:
        self.description, self.total, self.first, self.done = description, total, done, done
        self.started = self.printed = time.monotonic()
        self.wait = FIRST_LINE_SECONDS

    def advance(self, steps: int) -> None:
        """Note that so many steps were done."""
        self.done += steps
        now = time.monotonic()
        if now - self.printed < self.wait or self.total is None or self.done >= self.total:
            return
        left = (now - self.started) * (self.total - self.done) / max(1, self.done - self.first)
        log(f"{self.description}: {self.done:,} of {self.total:,}, about {duration(left)} left")
        self.printed, self.wait = now, min(MAX_LINE_SECONDS, 2 * self.wait)


def _length(items: Iterable[Item]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
