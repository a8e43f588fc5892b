"""Runs commands of vitrim and notes how they end.

A command runs in a fork of this process, which has imported everything. So a case takes tenths of a second, and not the
seconds of the imports.
"""

import contextlib
import errno
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_UNTIL_HANG = 180.0
WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree")
PYTHON = [sys.executable, "-m", "vitrim"]
PRELOADED = (
    *("vitrim", "vitrim.cli", "vitrim.pipeline", "vitrim.exporting.export", "vitrim.saving.opening", "timm"),
    *("transformers", "sklearn.datasets", "accelerate", "torchvision", "vitrim.saving.fitting", "PIL.Image"),
    "vitrim.models.any_model",
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its exit status; minus the number of the signal that ended it; None if it did not end in time.
        output: standard output.
        errors: standard error.
        seconds: how long it ran.
    """

    status: int | None
    output: str
    errors: str
    seconds: float

    @property
    def has_traceback(self) -> bool:
        """Whether it printed a traceback, or called itself a bug."""
        return any(word in self.errors + self.output for word in ("Traceback (most recent", "This is a bug in vitrim"))

    @property
    def message(self) -> str:
        """The last line of standard error."""
        lines = self.errors.strip().splitlines()
        return lines[-1] if lines else ""


def preload() -> None:
    """Import what commands import, so that forks need not."""
    import importlib

    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


class Running:
    """A command in a fork of this process, as the leader of a process group of its own."""

    def __init__(self, words: Sequence[str], folder: Path, fault: Callable[[], Any] | None = None) -> None:
        """Start it.

        Args:
            words: of the command line, without `vitrim`.
            folder: current folder of the command.
            fault: called in the fork, before the command.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.files = [folder / ".stdout", folder / ".stderr"]
        self.began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(list(words), folder, fault)

    def kill(self, number: int = signal.SIGKILL, *, group: bool = True) -> None:
        """Send a signal to the process, and to those that it started."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def has_ended(self) -> bool:
        """Whether the process has ended. Its status can still be read."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float = SECONDS_UNTIL_HANG) -> Ended:
        """Wait for the end. After so many seconds the process is killed."""
        until = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < until:
            time.sleep(0.005)
        hangs = not self.has_ended()
        if hangs:
            self.kill()
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        texts = [file.read_text(errors="replace") if file.exists() else "" for file in self.files]
        took = time.monotonic() - self.began
        return Ended(status=None if hangs else code, output=texts[0], errors=texts[1], seconds=took)

    def _run(self, words: list[str], folder: Path, fault: Callable[[], Any] | None) -> None:
        status = 1
        try:
            os.setsid()
            os.chdir(folder)
            for number, file in enumerate([Path("/dev/null"), *self.files]):
                opened = os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC if number else os.O_RDONLY, 0o666)
                os.dup2(opened, number)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
            sys.argv = ["vitrim", *words]
            from vitrim.cli import main

            if fault:
                fault()
            main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(status)


def run(words: Sequence[str], folder: Path, fault: Callable[[], Any] | None = None, **options: float) -> Ended:
    """Run a command in a fork and wait for its end; arguments as of `Running`."""
    return Running(words, folder, fault).wait(**options)


# Faults, which a fork sets up for itself


def at_write(number: int, action: Callable[[], Any], below: Path) -> Callable[[], None]:
    """A fault: `action` is called before write number `number` below a folder, and before each later one.

    A write is the opening of a file for writing, a rename, a removal, or a new folder.
    """

    def set_up() -> None:
        counted = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal counted
            if _is_write(event, arguments, below):
                counted += 1
                if counted >= number:
                    action()

        sys.addaudithook(hook)

    return set_up


def count_writes(note: Path, below: Path) -> Callable[[], None]:
    """A fault that does nothing but to append one byte to a file at each write below a folder."""
    file = os.open(note, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return at_write(1, lambda: os.write(file, b"."), below)


def _is_write(event: str, arguments: tuple[Any, ...], below: Path) -> bool:
    if event == "open":
        path, mode, flags = arguments
        is_writing = bool(set("wax+") & set(mode)) if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))
        if not is_writing:
            return False
    elif event not in WRITES:
        return False
    path = arguments[0]
    return isinstance(path, str | os.PathLike) and str(below) in os.path.abspath(os.fspath(path))


def end_by_kill() -> None:
    """End this process at once, as `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def full_disk() -> None:
    """Raise what a full disk raises."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def small_files(num_bytes: int) -> Callable[[], None]:
    """A fault: no file may become larger. A write then fails in its middle."""

    def set_up() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    return set_up
