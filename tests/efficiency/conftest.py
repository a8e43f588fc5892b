"""A fixture for tests that measure: garbage collection before each run, which must be fast."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def _frozen_garbage() -> Iterator[None]:
    """Measurements collect garbage before each run. Frozen objects are skipped, which makes that fast."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
