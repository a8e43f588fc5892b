"""Attributes of timm's models that count or number the blocks, and their new values after blocks were removed."""

from typing import Any

from timm.models import convit, hiera

from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure


def renumber_blocks(model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
    """Update the block numbers that the model stores, in place.

    Args:
        model: the model, after the blocks were removed.
        structure: the structure before the cut.
        plan: the plan that was applied.
    """
    _renumber_features(model, structure, plan)
    kept_blocks = [kept.block for kept in plan.blocks]
    if has_mixed_rope(model):
        model.rope.depth = len(kept_blocks)
    if isinstance(model, convit.ConVit):
        model.local_up_to_layer = sum(block < model.local_up_to_layer for block in kept_blocks)
    if isinstance(model, hiera.Hiera):
        model.reroll.schedule = {new: model.reroll.schedule[old] for new, old in enumerate(kept_blocks)}


def has_mixed_rope(model: Any) -> bool:
    """Whether the model learns rotary frequencies for each head of each block, all in one tensor `rope.freqs`."""
    return bool(getattr(model, "rope_mixed", False) or getattr(model, "rope_is_mixed", False))


def _renumber_features(model: Any, structure: ViTStructure, plan: PruningPlan) -> None:
    """Update `feature_info` and `stage_ends`. A stage ends with its last kept block."""
    kept_names = {structure.blocks[kept.block].name for kept in plan.blocks}
    all_names = [block.name for block in structure.blocks]

    def new_name(name: str) -> str | None:
        """The new name of the last kept block up to this one; None if its stage keeps no block up to this one."""
        if name not in all_names:
            return name
        stage, _, number = name.rpartition(".")
        up_to_this = [f"{stage}.{index}" for index in range(int(number) + 1)]
        position = sum(other in kept_names or other not in all_names for other in up_to_this) - 1
        return f"{stage}.{position}" if position >= 0 else None

    if isinstance(getattr(model, "feature_info", None), list):
        features: dict[str | None, dict[str, Any]] = {}
        for feature in model.feature_info:
            name = new_name(feature["module"])
            features[name] = {**feature, "module": name}
        features.pop(None, None)
        model.feature_info = list(features.values())
    if isinstance(ends := getattr(model, "stage_ends", None), list):
        names = [new_name(f"blocks.{end}") for end in ends]
        model.stage_ends = [int(name.rpartition(".")[2]) for name in names if name]
