"""Progress on standard error: bars with a time estimate on a terminal, plain lines elsewhere.

Only the first process of a distributed run prints. Results are printed elsewhere, on standard output.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


@cache
def console() -> "Console":
    """Return the console on standard error. It prints nothing in processes other than the first."""
    from rich.console import Console  # takes 0.1 s to import

    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", soft_wrap=True, highlight=False)


def log(message: str) -> None:
    """Print one line on standard error."""
    console().print(message, markup=False)


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
    """Show a progress bar on a terminal inside the block.

    Args:
        description: shown before the bar.
        total: number of steps, or None if unknown.
        done: steps done before.

    Yields:
        A function that advances the bar by a number of steps.
    """
    if not is_interactive():
        yield lambda steps: None
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    columns += [TextColumn("left"), TimeRemainingColumn()]
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(description, total=total, completed=done)
        yield lambda steps: progress.advance(task, steps)


def _length(items: Iterable[Item]) -> int | None:
    try:
        return len(items)  # type: ignore[arg-type]
    except TypeError:
        return None
