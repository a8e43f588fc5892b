"""What the tests of exact cuts share: images, plans, and how far two outputs are apart."""

import torch
from torch import Tensor, nn

from builders.models import one_unit_plan, random_plan
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

EXACT = 1e-12


def images_for(structure: ViTStructure, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, structure.in_chans, *structure.img_size, generator=generator, dtype=dtype)


def removable(structure: ViTStructure) -> list[int]:
    return [index for index, block in enumerate(structure.blocks) if not block.not_prunable]


def plans(structure: ViTStructure) -> dict[str, PruningPlan]:
    """Uneven widths, one unit in every group that may be cut, and the first block that may go gone."""
    found = {"uneven": random_plan(structure, seed=1), "one unit": one_unit_plan(structure)}
    free = removable(structure)
    if free and len(structure.blocks) > 1:
        found["block removed"] = random_plan(
            structure, seed=2, blocks=tuple(i for i in range(len(structure.blocks)) if i != free[0])
        )
    return found


def relative_distance(one: Tensor, two: Tensor) -> float:
    return ((one - two).abs().max() / two.abs().max().clamp_min(1e-30)).item()


def set_fused(model: nn.Module, fused: bool) -> None:
    """Choose the attention path as each library names it."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation("sdpa" if fused else "eager")
