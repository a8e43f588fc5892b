"""A stated residual scale is how the block adds the output of the output projection to the residual stream."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from builders.exactness import images_for, relative_distance
from builders.families_timm import build_row
from builders.families_transformers import BACKBONES
from builders.rows import EACH_KIND, ROWS
from vitrim.hooks import input_state, output_state
from vitrim.models import describe, hookable
from vitrim.structure import BlockStructure, UnitGroup

ALL_ROWS = {**ROWS, **{f"{name}, backbone": row for name, row in BACKBONES.items()}}
TOLERANCE = 1e-9  # relative
FAST = EACH_KIND | {"DINOv3, backbone"}  # one row for each kind of layout, and one without a classifier
every_family = pytest.mark.parametrize(
    "family", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in ALL_ROWS]
)
IN_WINDOWS = ("Swin", "SAM")  # the attention's projection sees tokens in another order, and padding


@lru_cache(maxsize=2)
def built(family: str) -> nn.Module:
    """The row's model. No test changes it."""
    return build_row(ALL_ROWS[family])


@cache
def stated_groups(family: str) -> dict[int, list[UnitGroup]]:
    """The groups of each block that state a residual scale."""
    blocks = describe(built(family)).blocks
    stated = {
        index: [group for group in block.groups if group.residual_scale is not None]
        for index, block in enumerate(blocks)
    }
    return {index: groups for index, groups in stated.items() if groups}


def groups_or_skip(family: str) -> dict[int, list[UnitGroup]]:
    """The groups that state a scale; skips the test if there are none."""
    return stated_groups(family) or pytest.skip("no block states a scale")


def scale_of(model: nn.Module, group: UnitGroup) -> Tensor | float:
    """The scale as a tensor `(D,)`, or 1."""
    assert group.residual_scale is not None
    return model.get_parameter(group.residual_scale) if group.residual_scale else 1.0


@contextmanager
def recording(model: nn.Module, names: list[str], outputs: dict[str, Tensor]) -> Iterator[None]:
    """A context in which the outputs of these modules are stored."""

    def store(name: str) -> Any:
        return lambda module, args, output: outputs.__setitem__(name, output)

    handles = [model.get_submodule(name).register_forward_hook(store(name)) for name in names]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def replacing(model: nn.Module, vectors: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which each of these modules returns one vector `(D,)` for every token."""

    def constant(vector: Tensor) -> Any:
        return lambda module, args, output: vector.expand_as(output)

    handles = [model.get_submodule(name).register_forward_hook(constant(vector)) for name, vector in vectors.items()]
    yield
    for handle in handles:
        handle.remove()


def added_by(model: nn.Module, block: BlockStructure, images: Tensor) -> Tensor:
    """The block's output minus its input, `(B, N, D)` or `(B, h, w, D)`."""
    states: dict[str, Tensor] = {}

    def store(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        states["added"] = output_state(output) - input_state(args, kwargs, block.state)

    handle = model.get_submodule(block.name).register_forward_hook(store, with_kwargs=True)
    model(images)
    handle.remove()
    return states["added"]


@every_family
@torch.no_grad()
def test_a_block_adds_the_scaled_outputs_of_its_output_projections(family: str) -> None:
    if any(word in family for word in IN_WINDOWS):
        pytest.skip("attention in windows: the next test holds")
    stated = groups_or_skip(family)
    model = built(family)
    structure = describe(model)
    images = images_for(structure)
    for index, groups in stated.items():
        block, outputs = structure.blocks[index], {}
        if len(groups) < len(block.groups):
            continue  # an attention of this block has no output projection in the description
        with hookable(model), recording(model, [group.output_proj for group in groups], outputs):
            added = added_by(model, block, images)
        expected = sum(scale_of(model, group) * outputs[group.output_proj] for group in groups)
        assert relative_distance(added, expected) < TOLERANCE


@every_family
@torch.no_grad()
def test_a_block_adds_scaled_vectors_where_output_projections_return_them(family: str) -> None:
    """The order of the tokens does not matter, so this holds for attention in windows too."""
    stated = groups_or_skip(family)
    model = built(family)
    structure = describe(model)
    images = images_for(structure)
    generator = torch.Generator().manual_seed(0)
    for index, groups in stated.items():
        block = structure.blocks[index]
        widths = {group.output_proj: len(model.get_submodule(group.output_proj).weight) for group in groups}
        vectors = {name: torch.randn(width, generator=generator).double() for name, width in widths.items()}
        for group in groups:
            if group.residual_scale:
                assert model.get_parameter(group.residual_scale).shape == (widths[group.output_proj],)
        zeros = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        with hookable(model):
            with replacing(model, zeros):
                without = added_by(model, block, images)
            with replacing(model, vectors):
                added = added_by(model, block, images) - without
        expected = sum(scale_of(model, group) * vectors[group.output_proj] for group in groups)
        assert relative_distance(added, torch.as_tensor(expected).expand_as(added)) < TOLERANCE
        if len(groups) == len(block.groups):
            assert without.abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "family",
    ["ViT, residual post-norm", "Swin V2", "ViT, scaling blocks in parallel", "torchvision Swin v2", "EVA-02"],
)
def test_only_known_forms_of_blocks_state_a_scale(family: str) -> None:
    assert bool(stated_groups(family)) == (family == "EVA-02")


@pytest.mark.parametrize("kind", ["heads", "neurons"])
def test_a_scale_is_named_with_the_block(kind: str) -> None:
    number = {"heads": 1, "neurons": 2}[kind]
    groups = {name: describe(build_row(ROWS[name])).blocks[1].group(kind) for name in ("DINOv3", "Swin", "Swin V2")}
    assert groups["DINOv3"].residual_scale == f"blocks.1.gamma_{number}"
    assert groups["Swin"].residual_scale == ""
    assert groups["Swin V2"].residual_scale is None
