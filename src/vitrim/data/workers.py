"""Worker processes that decode images: how many, and how they start.

They do not import the script that started them.
Where Python starts new processes (macOS, Windows, and Linux since Python 3.14), a worker imports the main module first.
A script without the guard `if __name__ == "__main__":` would then run again in each worker. Workers of vitrim need
nothing of the main module, so they do not import it.
"""

import math
import multiprocessing
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from vitrim.checks import MAX_WORKERS, check_size, checked
from vitrim.data.files.decoding import num_cores
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import SettingError

NumWorkers = int | Literal["auto"]
SHARED_MEMORY = Path("/dev/shm")  # on Linux, finished batches of workers wait here; a container may have little
BATCHES_PER_WORKER = 3  # that wait: two that the loader asks for ahead, and the one in use


def check_num_workers(num_workers: NumWorkers) -> None:
    """Raise SettingError unless it is `auto` or a number from 0."""
    if num_workers != "auto":
        check_size("num_workers", checked(num_workers, NumWorkers, "num_workers"), MAX_WORKERS)
    if num_workers != "auto" and num_workers < 0:
        raise SettingError(f"num_workers is {num_workers}; expected a whole number from 0, or auto.")


def choose_num_workers(
    num_workers: NumWorkers, preprocessing: Preprocessing, batch_size: int, num_batches: int, num_parts: int
) -> int:
    """Number of decoding processes of one part of `num_parts`.

    `auto` is the part's cores, limited by the batches and by the free shared memory. The workers have the priority of
    this process: with a lower one, they would get no core while other programs run.
    """
    if num_workers != "auto":
        return num_workers
    found = min(max(1, num_cores() // num_parts), num_batches)
    if SHARED_MEMORY.is_dir():
        bytes_per_value = 4 if preprocessing.steps and preprocessing.steps.as_float else 1
        bytes_per_image = preprocessing.channels * math.prod(preprocessing.img_size) * bytes_per_value
        bytes_per_worker = BATCHES_PER_WORKER * batch_size * bytes_per_image
        found = min(found, shutil.disk_usage(SHARED_MEMORY).free // num_parts // bytes_per_worker)
    return found


def ignore_interruption(worker: int) -> None:
    """Let a worker go on after a signal that the main process handles too, which ends its workers.

    Ctrl-C and SIGHUP reach all processes of a terminal; a batch system may send SIGTERM to all processes of a job. The
    second SIGTERM ends the worker: it may be of the main process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def worker_context(num_workers: int) -> BaseContext | None:
    """How a data loader starts its workers; None for a copy of this process (`fork`), or if there are no workers."""
    if num_workers == 0 or multiprocessing.get_start_method() == "fork":
        return None
    return _Context()


class _Process(SpawnProcess):
    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _empty_main_module():
            return SpawnProcess._Popen(process_obj)


class _Context(SpawnContext):
    Process = _Process


@contextmanager
def _empty_main_module() -> Iterator[None]:
    """A context in which multiprocessing finds no file of the main module, so it tells the worker to import none."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
