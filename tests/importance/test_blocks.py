"""Laws of the importance of blocks: a block matters as much as the loss grows without it."""

import copy

import numpy as np
import pytest
from torch import nn

from builders.models import build, random_batches, same_tensors
from vitrim.errors import SettingError
from vitrim.importance.blocks import mean_loss, rank_blocks_for_removal
from vitrim.importance.criteria import score
from vitrim.models import describe
from vitrim.silencing import skipping


def loss_without(model: nn.Module, blocks: list[int]) -> float:
    """The loss of a copy of the model without these blocks."""
    shorter = copy.deepcopy(model)
    for index in sorted(blocks, reverse=True):
        del shorter.blocks[index]
    return mean_loss(shorter, random_batches())


def test_exact_scores_of_blocks_are_the_losses_without_them() -> None:
    model, batches = build(depth=3), random_batches()
    dense_loss = mean_loss(model, batches)
    changes = [loss_without(model, [index]) - dense_loss for index in range(3)]
    assert np.allclose(score(model, batches, "exact").blocks, changes, atol=1e-12)
    with skipping(model, [describe(model).blocks[1]]):
        assert mean_loss(model, batches) == pytest.approx(loss_without(model, [1]))


def test_in_each_step_the_block_whose_removal_costs_least_is_removed() -> None:
    model = build().train()
    before = copy.deepcopy(model)
    removed = rank_blocks_for_removal(model, random_batches(), 3)
    assert len(set(removed)) == 3
    for step, block in enumerate(removed):
        losses = {
            index: loss_without(model.eval(), [*removed[:step], index]) for index in {0, 1, 2, 3} - {*removed[:step]}
        }
        assert losses[block] == min(losses.values())
    assert rank_blocks_for_removal(model, random_batches(), 2) == removed[:2]
    assert rank_blocks_for_removal(model, random_batches(), 0) == []
    assert same_tensors(model, before)


@pytest.mark.parametrize("count", [4, 5])
def test_at_least_one_block_is_kept(count: int) -> None:
    with pytest.raises(SettingError, match=f"number of blocks to remove is {count}"):
        rank_blocks_for_removal(build(), random_batches(), count)
