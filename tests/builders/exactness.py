"""Helpers of the tests of exactness: images, plans, and the distance of two outputs."""

import torch
from torch import Tensor, nn

from builders.models import one_unit_plan, random_plan
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

EXACT = 1e-12


def images_for(structure: ViTStructure, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random images of the size of the model, `(count, C, h, w)`."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, structure.in_chans, *structure.img_size, generator=generator, dtype=dtype)


def removable(structure: ViTStructure) -> list[int]:
    """Indices of the blocks that can be removed."""
    return [index for index, block in enumerate(structure.blocks) if not block.not_prunable]


def plans(structure: ViTStructure) -> dict[str, PruningPlan]:
    """Three plans: uneven widths; one unit in each prunable group; without the first removable block."""
    by_name = {"uneven": random_plan(structure, seed=1), "one unit": one_unit_plan(structure)}
    blocks = removable(structure)
    if blocks and len(structure.blocks) > 1:
        by_name["block removed"] = random_plan(
            structure, seed=2, blocks=tuple(i for i in range(len(structure.blocks)) if i != blocks[0])
        )
    return by_name


def relative_distance(first: Tensor, second: Tensor) -> float:
    """The largest difference, relative to the largest value of `second`."""
    return ((first - second).abs().max() / second.abs().max().clamp_min(1e-30)).item()


def set_fused(model: nn.Module, fused: bool) -> None:
    """Choose the fused or unfused attention path, in any library."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("sdpa" if fused else "eager")
