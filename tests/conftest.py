"""What all tests need: one thread for each process, a cache of their own, fast garbage collection, finished runs.

With more threads, two test processes would compete for the cores. With one thread, sums are also rounded in the same
order on every machine. The variable is set before torch is imported, and commands that tests start inherit it.
"""

import gc
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from builders.runs import FinishedRun

os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests with the marker `gpu` where there is no CUDA device."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu:
        import torch

        for item in on_gpu:
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Latencies that commands measure are deleted with the other files of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="module")
def _fast_collection() -> None:
    """Garbage collection skips what exists before the tests of a file: the libraries alone make a million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], FinishedRun]":
    """Returns the run with a recipe of `builders.runs.RECIPES`. It is made once; no test changes its folder."""
    from builders.runs import finish_run

    return cache(lambda name: finish_run(name, tmp_path_factory.mktemp("finished") / "run"))
