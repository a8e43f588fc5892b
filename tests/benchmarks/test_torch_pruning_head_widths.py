"""The baseline Torch-Pruning with narrow heads: the model is within the budget, and computes what it should."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_pruning")

from benchmarks.torch_pruning import TorchPruner, gradients_for
from benchmarks.torch_pruning_head_widths import (
    HeadWidthPruner,
    HeadWidthSettings,
    narrow_by_torch_pruning,
    read_narrow_model,
    write_narrow_model,
)
from builders.models import build, random_batches, same_tensors
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost, count_cost_by_running
from vitrim.errors import BudgetError
from vitrim.models import describe

SIZES = {"patch_size": 4, "mlp_ratio": 4.0, "depth": 2}
BUDGET = Budget(params=0.6, macs=0.6, min_neurons=5)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return build(**SIZES)


@pytest.fixture(scope="module")
def narrow(dense: nn.Module) -> Any:
    return narrow_by_torch_pruning(dense, random_batches(), BUDGET)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(next(iter(random_batches()))[0])


def with_other_attention(model: nn.Module) -> nn.Module:
    """The same model with timm's plain attention instead of the fused one, or the reverse."""
    twin: Any = copy.deepcopy(model)
    for block in twin.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    return twin


def kept(before: Tensor, after: Tensor) -> Tensor:
    """Which rows of `before` are among those of `after`."""
    return (before[:, None] == after[None]).all(dim=2).any(dim=1)


@torch.no_grad()
def silenced(dense: nn.Module, narrow: Any) -> nn.Module:
    """The dense model with zeros instead of all that the narrow model lacks, and the scale of the narrow heads."""
    twin: Any = copy.deepcopy(dense)
    for block, small in zip(twin.blocks, narrow.blocks, strict=True):
        keys, small_keys = (layer.weight.chunk(3)[1] for layer in (block.attn.qkv, small.attn.qkv))
        removed = ~kept(keys, small_keys).repeat(3)
        block.attn.qkv.weight[removed] = 0
        if block.attn.qkv.bias is not None:
            block.attn.qkv.bias[removed] = 0
        block.attn.scale, block.attn.fused_attn = small.attn.scale, False
        block.mlp.fc2.weight[:, ~kept(block.mlp.fc1.weight, small.mlp.fc1.weight)] = 0
    return twin


def test_the_model_is_within_the_budget_and_close_to_it(dense: nn.Module, narrow: Any) -> None:
    assert count_cost(narrow) == count_cost_by_running(narrow)
    fractions = count_cost(narrow).fraction_of(BUDGET.limit(count_cost(dense)))
    assert 0.98 <= max(fractions) <= 1
    assert any(block.attn.head_dim < dense.blocks[0].attn.head_dim for block in narrow.blocks)


def test_the_model_computes_what_the_dense_model_computes_without_the_pruned_units(
    dense: nn.Module, narrow: Any
) -> None:
    assert torch.allclose(logits(narrow), logits(silenced(dense, narrow)))


def test_both_attentions_of_timm_compute_the_same(narrow: Any) -> None:
    assert torch.allclose(logits(narrow), logits(with_other_attention(narrow)))


def test_a_model_that_is_written_and_read_is_the_same(dense: nn.Module, narrow: Any, tmp_path: Any) -> None:
    write_narrow_model(narrow, tmp_path / "model.safetensors")
    found = read_narrow_model(dense, tmp_path / "model.safetensors")
    assert same_tensors(found, narrow) and same_tensors(dense, build(**SIZES))
    assert torch.equal(logits(found), logits(narrow))
    assert torch.allclose(logits(found), logits(with_other_attention(found)))
    assert count_cost(found) == count_cost(narrow)


@pytest.mark.slow
def test_the_same_inputs_produce_the_same_model(dense: nn.Module, narrow: Any) -> None:
    state = torch.get_rng_state()
    assert same_tensors(narrow, narrow_by_torch_pruning(dense, random_batches(), BUDGET, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_dimensions_of_all_blocks_are_ranked_together() -> None:
    dense = build(**SIZES, num_heads=2)
    settings = HeadWidthSettings(heads_fraction=0.1, dims_fraction=1.0)
    gradients, images = gradients_for(settings.criterion, dense, random_batches())
    whole = TorchPruner(dense, describe(dense), gradients, images[:1], BUDGET, settings)
    blocks = HeadWidthPruner(whole, settings).prune(0.3, 0.3).blocks
    assert sorted(block.attn.num_heads for block in blocks) == [1, 2]  # isomorphic ranking would separate these two
    assert sum(block.attn.head_dim for block in blocks) == int(0.7 * 2 * dense.blocks[0].attn.head_dim)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads_fraction": 0.5, "ranking": "local", "criterion": "l2"},
        pytest.param({"heads_fraction": 0.5}, marks=pytest.mark.slow),
        pytest.param({"ranking": "local", "criterion": "l2"}, marks=pytest.mark.slow),
        pytest.param({"dims_fraction": 0.0}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_meet_the_budget(dense: nn.Module, changes: dict[str, Any]) -> None:
    found = narrow_by_torch_pruning(dense, random_batches(), BUDGET, settings=HeadWidthSettings(**changes))
    assert max(count_cost(found).fraction_of(BUDGET.limit(count_cost(dense)))) <= 1
    assert torch.allclose(logits(found), logits(with_other_attention(found)))


def test_minimum_widths_are_kept_and_smaller_budgets_are_refused(dense: nn.Module) -> None:
    smallest = narrow_by_torch_pruning(dense, random_batches(), Budget(params=0.36, macs=0.36, min_neurons=5))
    assert all(block.attn.head_dim >= 1 and block.mlp.fc1.out_features >= 5 for block in smallest.blocks)
    with pytest.raises(BudgetError, match="smallest model is above the budget"):
        narrow_by_torch_pruning(dense, random_batches(), Budget(params=0.1, macs=0.1))
