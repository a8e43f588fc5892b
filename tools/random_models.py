"""Random weights and random plans, for checks that a pruned model computes what the silenced model computes."""

import numpy as np
import torch
from torch import nn

from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import ViTStructure


@torch.no_grad()
def randomise(model: nn.Module) -> None:
    """Give every parameter random values, in place, so that no norm or layer scale is an identity."""
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape)
        if parameter.ndim == 1:  # norms, biases, layer scale
            parameter.add_(0.3 * noise)
        else:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)


def random_plan(structure: ViTStructure, seed: int = 0, blocks: tuple[int, ...] | None = None) -> PruningPlan:
    """A plan that keeps `blocks` (default: all), each with a random number of random heads and neurons."""
    rng = np.random.default_rng(seed)
    kept = tuple(
        KeptBlock.of(
            index,
            {
                group.key: range(group.count) if group.not_prunable else random_units(rng, group.count)
                for group in structure.blocks[index].groups
            },
        )
        for index in (range(len(structure.blocks)) if blocks is None else blocks)
    )
    return PruningPlan(model=structure.model, blocks=kept)


def random_head_widths(structure: ViTStructure, plan: PruningPlan, seed: int = 0) -> PruningPlan:
    """The same plan, and heads of a random smaller width in every attention that can be narrowed."""
    rng = np.random.default_rng(seed)
    blocks = []
    for kept in plan.blocks:
        widths = {
            group.key: int(rng.integers(1, group.width))
            for group in structure.blocks[kept.block].groups
            if group.directions and group.width > 1
        }
        blocks.append(KeptBlock.of(kept.block, dict(kept.items()), widths))
    return PruningPlan(model=plan.model, blocks=tuple(blocks))


def random_units(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """A random subset of `count` units: sorted indices, at least one."""
    return tuple(sorted(rng.choice(count, size=rng.integers(1, count + 1), replace=False).tolist()))
