"""One thread for each test process: two workers with a thread for each core would fight over the cores.

Set before torch is imported, and inherited by the commands that tests start. With one thread, sums are also rounded
in one order wherever the tests run.
"""

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What commands measure on this machine is not kept beyond the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
