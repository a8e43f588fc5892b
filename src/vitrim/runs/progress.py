"""Progress on standard error: bars with a time estimate on a terminal, plain lines elsewhere.

Only the first process of a distributed run speaks.
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
    from rich.console import Console  # costs 0.1 s, so not before it is needed

    return Console(stderr=True, quiet=os.environ.get("RANK", "0") != "0", soft_wrap=True, highlight=False)


def log(message: str) -> None:
    """Print one line for the person who waits."""
    console().print(message, markup=False)


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items`, with a bar on a terminal that vanishes when done."""
    with advancing(description, total if total is not None else _length(items)) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def advancing(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Show a bar with a time estimate and give the function that moves it on by so many steps."""
    if not sys.stderr.isatty() or console().quiet:
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
