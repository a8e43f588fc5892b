"""Random generators that depend on a purpose and some numbers only, never on a global random state.

One draw for the order of an epoch, one for each step, one for each streamed image, one for mixing. What is drawn from
them is in `batches` and `augmentation`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

Purpose = Literal["epoch", "step", "image", "mix"]
_PURPOSES: tuple[Purpose, ...] = ("epoch", "step", "image", "mix")


def seed_for(purpose: Purpose, *numbers: int) -> int:
    """Return a seed of 63 bits that differs between purposes and between numbers (run seed, epoch, step or image)."""
    sequence = np.random.SeedSequence((_PURPOSES.index(purpose) + 1, len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator_for(purpose: Purpose, *numbers: int) -> torch.Generator:
    """Return a CPU generator that starts at `seed_for(purpose, *numbers)`."""
    return torch.Generator().manual_seed(seed_for(purpose, *numbers))


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block, and restore its state afterwards. timm's Mixup draws from it."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


def mixed_seed(seed: int, step: int, rank: int) -> int:
    """One seed for each (seed, step, process)."""
    return (seed * 1_000_003 + step) * 4_099 + rank
