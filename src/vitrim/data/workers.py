"""Worker processes that do not import the script that started them.

Where Python starts new processes (macOS, Windows, and Linux since Python 3.14), a worker imports the main module first.
A script without the guard `if __name__ == "__main__":` would then run again in each worker. Workers of vitrim need
nothing of the main module, so they do not import it.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext, SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any


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
