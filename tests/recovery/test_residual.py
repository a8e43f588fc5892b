"""Laws of residual scales: stated and measured scales are the same, and there is none where shapes differ."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from builders.exactness import images_for
from builders.families_timm import build_row
from builders.models import build, random_images
from builders.rows import ROWS
from vitrim.hooks import eval_mode
from vitrim.models import describe, hookable
from vitrim.recovery.blockwise import BlockIO, BlockwiseForward
from vitrim.recovery.residual import residual_scales
from vitrim.structure import BlockStructure

TOLERANCE = 1e-6  # relative
MODELS = {
    "added unchanged": lambda: build(depth=2),
    "layer scale": lambda: build("layer scale", depth=2),
    "DINOv3": lambda: build_row(ROWS["DINOv3"]),
}


@torch.no_grad()
def blocks_and_io(model: nn.Module, images: list[Tensor]) -> list[tuple[BlockStructure, BlockIO]]:
    """Every block, with its inputs and outputs and those of its output projections."""
    structure = describe(model)
    with eval_mode(model), hookable(model):
        forward = BlockwiseForward(model, structure, images)
        return [(block, forward.step(projections_of(block))) for block in structure.blocks]


def projections_of(block: BlockStructure) -> list[str]:
    return [group.output_proj for group in block.groups]


def without_statement(block: BlockStructure) -> BlockStructure:
    """The block as an adapter describes it that does not know the residual scales."""
    return replace(block, groups=tuple(replace(group, residual_scale=None) for group in block.groups))


@pytest.mark.parametrize("name", MODELS)
def test_stated_scales_are_the_parameter_or_ones(name: str) -> None:
    model = MODELS[name]()
    for block, block_io in blocks_and_io(model, [images_for(describe(model), 16)]):
        scales = residual_scales(model, block, block_io)
        assert scales is not None and list(scales) == projections_of(block)
        for group in block.groups:
            assert group.residual_scale is not None
            parameter = model.get_parameter(group.residual_scale) if group.residual_scale else torch.ones(())
            scale = scales[group.output_proj]
            assert scale.dtype == torch.float64 and scale.shape[-1] == block_io.outputs[0].shape[-1]
            assert torch.equal(scale.flatten(), parameter.to(scale).expand(scale.shape[-1]))


@pytest.mark.parametrize("name", MODELS)
def test_measured_scales_are_the_stated_ones(name: str) -> None:
    model = MODELS[name]()
    for block, block_io in blocks_and_io(model, [images_for(describe(model), 16)]):
        stated = residual_scales(model, block, block_io)
        measured = residual_scales(model, without_statement(block), block_io)
        assert stated is not None and measured is not None and stated.keys() == measured.keys()
        for projection, scale in stated.items():
            assert torch.allclose(measured[projection], scale, rtol=TOLERANCE, atol=0)
            assert measured[projection].shape == scale.shape


def test_there_are_no_scales_for_attention_in_windows() -> None:
    """The output projection sees windows, so its output has another shape than the hidden state."""
    model = build_row(ROWS["Swin"])
    for block, block_io in blocks_and_io(model, [images_for(describe(model), 4)]):
        shapes = {outputs[0].shape for outputs in block_io.projections.values()}
        assert shapes != {block_io.outputs[0].shape}
        assert residual_scales(model, block, block_io) is None
        assert residual_scales(model, without_statement(block), block_io) is None


def test_there_are_no_scales_if_the_block_adds_something_else() -> None:
    model = build(depth=1)
    ((block, block_io),) = blocks_and_io(model, [random_images(16)])
    other = replace(block_io, outputs=[outputs + 0.1 * outputs.square() for outputs in block_io.outputs])
    assert residual_scales(model, without_statement(block), other) is None


def test_too_few_tokens_are_not_enough_to_measure() -> None:
    model = build(depth=1)
    ((block, block_io),) = blocks_and_io(model, [random_images(1)])  # 5 tokens for 2 scales in each channel
    assert residual_scales(model, without_statement(block), block_io) is None
