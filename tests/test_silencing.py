"""Laws of `silence`, `gated` and `skipping`: the reference with which a pruned model is compared."""

import copy

import pytest
import torch

from builders.models import SIZES, build, random_images, random_plan
from vitrim.models import describe
from vitrim.silencing import gated, silence, skipping, unit_gate

EXACT = 1e-12


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).detach().abs().max())


@torch.no_grad()
def test_silencing_equals_zeroing_the_columns_of_the_output_projections() -> None:
    model, images = build(), random_images()
    structure = describe(model)
    plan = random_plan(structure, seed=7)
    zeroed = copy.deepcopy(model)
    for kept, block in zip(plan.blocks, zeroed.blocks, strict=True):
        width = block.attn.head_dim
        for head in set(range(SIZES["num_heads"])) - set(kept.heads):
            block.attn.proj.weight[:, head * width : (head + 1) * width] = 0
        for neuron in set(range(block.mlp.fc1.out_features)) - set(kept.neurons):
            block.mlp.fc2.weight[:, neuron] = 0
    with silence(model, plan):
        assert distance(model(images), zeroed(images)) < EXACT


def test_silencing_ends_with_its_context_after_an_error() -> None:
    model, images = build(), random_images()
    logits = model(images)
    with pytest.raises(KeyError), silence(model, random_plan(describe(model), blocks=(0, 2))):
        raise KeyError
    assert torch.equal(model(images), logits)


@torch.no_grad()
def test_gates_of_one_change_nothing() -> None:
    model, images = build(), random_images()
    groups = [group for block in describe(model).blocks for group in block.groups]
    logits = model(images)
    with gated(model, [(group, unit_gate(group, tuple(range(group.count)))) for group in groups]):
        assert torch.equal(model(images), logits)


@torch.no_grad()
def test_a_skipped_block_returns_its_input() -> None:
    model = build()
    block = describe(model).blocks[1]
    tokens = torch.randn(2, 5, SIZES["embed_dim"], dtype=torch.float64)
    with skipping(model, [block]):
        assert torch.equal(model.get_submodule(block.name)(tokens), tokens)
    assert not torch.equal(model.get_submodule(block.name)(tokens), tokens)


def test_a_gate_is_one_for_the_columns_of_kept_units() -> None:
    group = describe(build()).blocks[0].heads
    gate = unit_gate(group, (1, 3)).view(group.count, group.width)
    assert gate[[1, 3]].eq(1).all() and gate[[0, 2]].eq(0).all()
