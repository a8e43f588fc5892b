"""Which numbers of worker processes the data loaders of a computation have."""

from typing import Any

import pytest

from vitrim.data import batches


def counted_workers(patch: pytest.MonkeyPatch) -> list[int]:
    """Note the number of workers of every data loader that is made while `patch` holds."""
    counts: list[int] = []
    loader = batches.DataLoader

    def counting(*arguments: Any, **options: Any) -> Any:
        counts.append(options["num_workers"])
        return loader(*arguments, **options)

    patch.setattr(batches, "DataLoader", counting)
    return counts
