"""Standard output and standard error that may be closed, full, or a terminal that has gone.

A command goes on if its lines cannot be written. What was lost is known afterwards, see `Streams.problem`.
"""

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

STANDARD = (0, 1, 2)  # file descriptors
UNREAD = {errno.EPIPE, errno.ECONNRESET}  # the program that reads, such as `head`, has ended


class _Sink(io.FileIO):
    """A file whose errors are noted and not raised.

    Attributes:
        problem: the first error; None if everything was written.
    """

    problem: OSError | None = None

    def write(self, data: Any) -> int:
        """Write the data. After an error, the rest is dropped."""
        size = memoryview(data).nbytes
        if self.problem is not None:
            return size
        try:
            while (written := super().write(data)) is None:  # another program made the file non-blocking
                select.select([], [self], [], 1.0)
            return written
        except OSError as problem:
            self.problem = problem
            return size


class Streams:
    """The streams of a command inside `forgiving`."""

    def __init__(self, output: _Sink | None) -> None:
        self._output = output

    def problem(self) -> str:
        """Why standard output could not be written; empty if it was, or if nobody reads it any more."""
        if self._output is None:
            return ""
        sys.stdout.flush()
        problem = self._output.problem
        return "" if problem is None or problem.errno in UNREAD else str(problem.strerror)


@contextmanager
def forgiving() -> Iterator[Streams]:
    """A context in which writing to standard output and standard error raises no error.

    Letters that the encoding of a stream lacks are written as `\\xe9`. For a whole process only: `sys.stdout` and
    `sys.stderr` stay replaced.
    """
    _open_closed()
    output, errors = _replaced(sys.stdout, 1), _replaced(sys.stderr, 2)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = output or before[0], errors or before[1]
    try:
        yield Streams(output.buffer.raw if output else None)  # type: ignore[attr-defined]
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()


def _open_closed() -> None:
    """Open what is closed. Else a file of the run would get its number, and a library would print into that file."""
    for number in STANDARD:
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def _replaced(stream: Any, number: int) -> io.TextIOWrapper | None:
    """A stream to the same file descriptor that raises no error; None if the stream is something else than a file."""
    if stream is not None:
        try:
            if stream.fileno() != number:
                return None
            stream.flush()
        except (OSError, ValueError, AttributeError):
            return None
    encoding = getattr(stream, "encoding", None) or "utf-8"
    is_terminal = os.isatty(number)
    sink = _Sink(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(sink),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=is_terminal or number == 2,
    )
