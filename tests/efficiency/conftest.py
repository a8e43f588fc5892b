"""A fixture for tests that measure: garbage collection before each run, which must be fast."""

from collections.abc import Iterator

import pytest

from builders.garbage import frozen_garbage


@pytest.fixture(scope="package", autouse=True)
def _fast_collection() -> Iterator[None]:
    """All tests of this folder measure."""
    with frozen_garbage():
        yield
