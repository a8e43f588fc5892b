"""Laws of the forward pass block by block: it computes what an ordinary forward pass computes."""

import pytest
import torch
from torch import Tensor, nn

from builders.models import build, has_hooks, random_images
from vitrim.hooks import recorded_states
from vitrim.models import describe
from vitrim.recovery.blockwise import BlockwiseForward

IMAGES = [random_images(3), random_images(2, seed=1)]
VARIANTS = ("class token", "layer scale", "registers")


@pytest.fixture(params=VARIANTS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return build(request.param, depth=3)


def projections_of(model: nn.Module, index: int) -> list[str]:
    return [group.output_proj for group in describe(model).blocks[index].groups]


@torch.no_grad()
def test_each_step_returns_the_hidden_states_of_an_ordinary_pass(model: nn.Module) -> None:
    structure = describe(model)
    forward = BlockwiseForward(model, structure, IMAGES)
    before: list[Tensor] = []
    for index, block in enumerate(structure.blocks):
        assert forward.position == index
        names = projections_of(model, index)
        block_io = forward.step(names)
        for batch, images in enumerate(IMAGES):
            with recorded_states(model, [block.name, *names]) as states:
                model(images)
            assert torch.equal(block_io.outputs[batch], states[block.name])
            for name in names:
                assert torch.equal(block_io.projections[name][batch], states[name])
            if index:
                assert torch.equal(block_io.inputs[batch], before[batch])
        before = block_io.outputs
    assert not has_hooks(model)


@torch.no_grad()
def test_logits_after_the_last_block_are_those_of_the_model(model: nn.Module) -> None:
    structure = describe(model)
    forward = BlockwiseForward(model, structure, IMAGES)
    for _ in structure.blocks:
        forward.step()
    for logits, images in zip(forward.logits(), IMAGES, strict=True):
        assert torch.equal(logits, model(images))


@pytest.mark.parametrize("keep", [True, False])
@torch.no_grad()
def test_inputs_of_a_projection_are_those_of_an_ordinary_pass(model: nn.Module, keep: bool) -> None:
    """Also if the output of the projection before it in the block is cached."""
    forward = BlockwiseForward(model, describe(model), IMAGES)
    forward.step()
    first, second = projections_of(model, 1)
    for _ in forward.inputs_of(first, [], keep=keep):
        pass
    forward.cache_output(first, first)
    inputs = list(forward.inputs_of(second, [first], keep=False))
    for found, images in zip(inputs, IMAGES, strict=True):
        with recorded_states(model, ["blocks.0", first, second]) as states:
            model(images)
        assert torch.equal(model.get_submodule(second)(found.values), states[second])
        assert torch.equal(found.state, states["blocks.0"])
        assert torch.equal(found.earlier[first], states[first])


@torch.no_grad()
def test_a_cached_output_is_not_computed_again() -> None:
    """A change of the layer after its output was cached has no effect until the block has passed."""
    model = build(depth=2)
    forward = BlockwiseForward(model, describe(model), IMAGES)
    first, second = projections_of(model, 0)
    for _ in forward.inputs_of(first, [], keep=True):
        pass
    forward.cache_output(first, first)
    before = [found.values for found in forward.inputs_of(second, [], keep=False)]
    model.get_submodule(first).weight.zero_()
    after = [found.values for found in forward.inputs_of(second, [], keep=False)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
