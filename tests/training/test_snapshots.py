"""Laws of snapshots: the epochs are divided into cycles, and one cycle is the training itself."""

import pytest

from builders.runs import short_training
from vitrim.checks import MAX_SEED
from vitrim.training.snapshots import cycles_of


def test_one_cycle_is_the_training_itself() -> None:
    settings = short_training(epochs=2, warmup_epochs=5)
    (cycle,) = cycles_of(settings, 1, 7)
    assert (cycle.settings, cycle.seed, cycle.stage, cycle.result) == (settings, 7, "train", "model")


@pytest.mark.parametrize(("epochs", "snapshots", "expected"), [(9, 3, [3, 3, 3]), (11, 3, [3, 4, 4]), (2, 2, [1, 1])])
def test_no_cycle_is_longer_than_a_later_one(epochs: int, snapshots: int, expected: list[int]) -> None:
    cycles = cycles_of(short_training(epochs=epochs, warmup_epochs=3), snapshots, 0)
    assert [cycle.settings.epochs for cycle in cycles] == expected
    assert all(cycle.settings.warmup_epochs == min(3, cycle.settings.epochs - 1) for cycle in cycles)


def test_cycles_differ_in_stage_result_and_seed() -> None:
    cycles = cycles_of(short_training(epochs=6), 3, MAX_SEED)
    assert [cycle.result for cycle in cycles] == ["snapshots/1", "snapshots/2", "model"]
    assert len({cycle.seed for cycle in cycles}) == len({cycle.stage for cycle in cycles}) == 3
    assert cycles[0].seed == MAX_SEED and all(0 <= cycle.seed <= MAX_SEED for cycle in cycles)
