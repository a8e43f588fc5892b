"""One command at a time in one folder: locks, who holds them, and what killed processes have left.

The system releases a lock when its process ends, however it ends. Which folder a run may use is decided in `folder`.
"""

import errno
import inspect
import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
from filelock import FileLock, Timeout

from vitrim.errors import FolderInUse
from vitrim.runs.environment import program
from vitrim.runs.files import HOLDER, LOCK, SNAPSHOTS, STAGES, delete_dead_partials, hidden_beside, write_text
from vitrim.runs.fresh import delete_if_fresh
from vitrim.runs.processes import is_main_process, this_process
from vitrim.runs.progress import log

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
NO_FILE = (errno.EISDIR, errno.ELOOP, errno.ENXIO)  # a folder, a link or a socket in its place
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}  # of a file system without flock
TRIES, SECONDS_BETWEEN_TRIES = 5, 0.02  # a lock file, or its folder, may be deleted by the process that releases it
CLOCK_SECONDS = 5  # by which the start of a process may seem to be after its note
MAX_SHOWN = 200  # characters of the command of another process

_held: dict[tuple[int, int], int] = {}  # the thread that works in a folder, by its device and inode
_warned: set[int] = set()  # devices without locks


def locking(argument: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorate a function that works in a run folder: it has the folder alone until it returns or raises.

    All processes of a distributed run call the function together. The first one holds the lock.

    Args:
        argument: name of the argument with the folder. It may be None.

    Raises:
        FolderInUse: the decorated function raises it on all processes if another command works in the folder.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)

        @wraps(function)
        def alone(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            try:
                folder = signature.bind(*arguments, **options).arguments.get(argument)
            except TypeError:  # the call itself says what is wrong
                folder = None
            if folder is None:
                return function(*arguments, **options)
            with working_in(Path(folder)):
                return function(*arguments, **options)

        return alone

    return decorate


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """As `lock_folder`, for all processes of a distributed run: the first holds the lock, and a refusal reaches all."""
    with ExitStack() as stack:
        problem: Exception | None = None
        if is_main_process():
            try:
                stack.enter_context(lock_folder(folder))
            except (FolderInUse, OSError) as found:
                problem = found
        if this_process().num_processes > 1:
            from accelerate.utils import broadcast_object_list

            problem = broadcast_object_list([problem])[0]
        if problem is not None:
            raise problem
        yield


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """A context in which no other command works in a folder, which is created if it does not exist.

    A thread may enter it again for the same folder. If the block raises before a run in the folder has a result, what
    the block left there is deleted, and the folder as well, if it did not exist before.

    Raises:
        FolderInUse: another process or thread works in the folder; the message says which. Or it is no folder.
    """
    made, lock = _acquire(folder)
    if lock is None:
        yield
        return
    with suppress(FileNotFoundError):
        before = {path.name for path in folder.iterdir()}
    key = _key(folder)
    try:
        _held[key] = threading.get_ident()
        _note_holder(folder / HOLDER)
        for place in (folder, folder / STAGES, folder / SNAPSHOTS, folder / "model"):
            delete_dead_partials(place)
        yield
    except BaseException:
        delete_if_fresh(folder, keep=before)
        raise
    finally:
        _held.pop(key, None)
        _release(lock, folder / HOLDER)
        for path in reversed(made):
            with suppress(OSError):  # it has files
                path.rmdir()


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """A context in which no other command writes a file. Its folder exists.

    Raises:
        FolderInUse: another process or thread writes it; the message says which.
    """
    holder = hidden_beside(path, HOLDER)
    lock = _try(hidden_beside(path, LOCK), holder, path)
    try:
        _note_holder(holder)
        delete_dead_partials(path.parent, path.name)
        yield
    finally:
        _release(lock, holder)


def _acquire(folder: Path) -> tuple[list[Path], FileLock | None]:
    """Create a folder and lock it. Returns the folders that were made, and the lock; None if this thread has it."""
    for attempt in range(TRIES):
        made = _make(folder)
        if _held.get(_key(folder)) == threading.get_ident():
            return made, None
        try:
            return made, _try(folder / LOCK, folder / HOLDER, folder)
        except FileNotFoundError:  # the process that made the folder has just deleted it
            if attempt == TRIES - 1:
                raise
        except BaseException:
            for path in reversed(made):
                with suppress(OSError):
                    path.rmdir()
            raise
    raise AssertionError


def _make(folder: Path) -> list[Path]:
    """Create a folder and its parents. Returns those that did not exist, from the outside."""
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder} is a file; expected a folder for the run.")
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    made = []
    for path in reversed(missing):
        with suppress(FileExistsError):  # another process was faster
            path.mkdir()
            made.append(path)
    return made


def _key(folder: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _try(file: Path, holder: Path, place: Path) -> FileLock:
    """Take a lock at once."""
    lock = FileLock(file, blocking=False, fallback_to_soft=False, thread_local=False, mode=0o666)
    for attempt in range(TRIES):
        try:
            lock.acquire()
            break
        except Timeout:  # also if the file was deleted by the process that released it
            if attempt == TRIES - 1:
                raise FolderInUse(_in_use(place, holder)) from None
            time.sleep(SECONDS_BETWEEN_TRIES)
        except (NotImplementedError, OSError) as problem:
            if isinstance(problem, OSError) and problem.errno in NO_FILE:
                raise FolderInUse(
                    f"{file} is not the lock that vitrim makes. Delete it and repeat the command."
                ) from None
            if isinstance(problem, OSError) and problem.errno not in NO_LOCKS:
                raise
            _warn_of_no_locks(place)
            break
    return lock


def _release(lock: FileLock, holder: Path) -> None:
    """Delete both files and release the lock. A process that had opened the deleted file does not get its lock."""
    try:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _warn_of_no_locks(place: Path) -> None:
    device = _key(place if place.is_dir() else place.parent)[0]
    if device not in _warned:
        _warned.add(device)
        log(f"{place} is on a file system without locks. Start no second command that writes there.")


def _note_holder(file: Path) -> None:
    """Write who works in a folder. It is only shown: the lock itself decides."""
    about = {
        "pid": os.getpid(),
        "host": platform.node(),
        "command": shlex.join([program(), *sys.argv[1:]]),
        "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
    }
    with suppress(OSError):  # a full disk is reported with the name of a result
        write_text(file, json.dumps(about) + "\n")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that works in a folder, as it has noted itself. A killed process leaves its note.

    Attributes:
        is_alive: None for a process of another machine.
    """

    pid: str
    host: str
    since: str
    command: str
    is_alive: bool | None

    def text(self) -> str:
        """Who it is, for a message."""
        return f"process {self.pid} on {self.host} since {self.since} ({self.command})"


def read_holder(folder: Path) -> Holder | None:
    """Which process works in a folder, or was killed there; None if no process does. The lock is not touched."""
    return _read_holder(folder / HOLDER)


def _read_holder(file: Path) -> Holder | None:
    about: Any = None
    with suppress(OSError, ValueError):
        about = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(about, dict):
        return None
    shown = {key: _shown(about.get(key, "?")) for key in ("pid", "host", "since", "command")}
    return Holder(**shown, is_alive=_is_alive(about) if about.get("host") == platform.node() else None)


def _is_alive(about: dict[str, Any]) -> bool:
    """Whether the process of a note runs on this machine. A later process may have its number."""
    with suppress(psutil.Error, KeyError, TypeError, ValueError, OverflowError):
        process = psutil.Process(about["pid"])
        since = datetime.strptime(about["since"], "%Y-%m-%d %H:%M:%S").timestamp()
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() < since + CLOCK_SECONDS
    return False


def _in_use(place: Path, holder: Path) -> str:
    found = _read_holder(holder)
    who = found.text() if found else "another process"
    return (
        f"{place} is in use by {who}. Wait until it ends or end it, or choose another place with -o (in Python: "
        "another folder)."
    )


def _shown(value: Any) -> str:
    """What another process wrote, without control characters, and not too long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
