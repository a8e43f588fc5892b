"""Models of a cell: the dense model before its training, and small models that ignore the importance of units.

Training and evaluation do not belong here.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.config import CellConfig, ModelSettings
from vitrim.costs.budget import Budget, unprunable_summary
from vitrim.costs.counting import Cost, block_cost, count_cost
from vitrim.errors import BudgetError, SettingError, percent
from vitrim.importance.blocks import Batch
from vitrim.importance.criteria import score
from vitrim.models import describe, origin_of, with_new_head
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.saving.opening import open_model
from vitrim.structure import UnitGroup, ViTStructure


def model_to_train(config: CellConfig, num_classes: int, seed: int) -> nn.Module:
    """Build the dense model before its training, as `vitrim train` does.

    Args:
        config: the cell.
        num_classes: outputs of the classifier. Another classifier in the weights is replaced by a new one.
        seed: seed of the random weights.
    """
    settings = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not settings.weights:
            return _open(settings, pretrained=settings.pretrained, num_classes=num_classes)
        model = open_model(settings.weights, arch=settings.architecture, **_sizes(settings))
        fits = int(origin_of(model).model_args["num_classes"]) == num_classes
        return model if fits else with_new_head(model, num_classes)


def fresh_model(config: CellConfig, num_classes: int, seed: int, **changes: Any) -> nn.Module:
    """Build the dense architecture with random weights.

    Args:
        config: the cell.
        num_classes: outputs of the classifier.
        seed: seed of the weights.
        **changes: arguments of the architecture, instead of those of the cell.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _open(config.model, num_classes=num_classes, **changes)


def _open(settings: ModelSettings, *, num_classes: int, pretrained: bool = False, **changes: Any) -> nn.Module:
    sizes = _sizes(settings)
    sizes["model_args"] = {**sizes["model_args"], **changes}
    return open_model(settings.architecture, pretrained=pretrained, num_classes=num_classes, **sizes)


def _sizes(settings: ModelSettings) -> dict[str, Any]:
    return {"img_size": settings.img_size, "patch_size": settings.patch_size, "model_args": settings.model_args}


def narrow_model(config: CellConfig, dense: nn.Module, budget: Budget, seed: int) -> nn.Module:
    """Build a model with random weights and the largest embedding width that the budget allows.

    It has as many blocks and heads as the dense model.

    Raises:
        SettingError: the architecture has no argument `embed_dim` that sets the width of all its blocks.
        BudgetError: the narrowest such model is above the budget.
    """
    structure = describe(dense)
    _check_width_can_be_set(config, structure)
    step, limit = 2 * structure.blocks[0].heads.count, budget.limit(count_cost(structure))
    widths = range(step, structure.embed_dim + 1, step)
    fitting = bisect_left(
        widths, True, key=lambda width: not _within(count_cost(_empty(config, structure, width)), limit)
    )
    if not fitting:
        raise BudgetError(
            f"Even the narrowest {config.model.architecture} has more than {percent(budget.params, 1)} of the "
            f"parameters or {percent(budget.macs, 1)} of the multiply-adds. Leave the arm timm-small out, or raise "
            "keep."
        )
    return fresh_model(config, structure.num_classes, seed, embed_dim=widths[fitting - 1])


def _check_width_can_be_set(config: CellConfig, structure: ViTStructure) -> None:
    problem: SettingError | None = None
    try:
        if _empty(config, structure, structure.embed_dim).embed_dim == structure.embed_dim:
            return
    except SettingError as found:  # timm has no such argument for this architecture
        problem = found
    raise SettingError(
        f"The arm timm-small needs an architecture whose width is set by timm's argument embed_dim. That argument does "
        f"not set the width of {config.model.architecture}; leave this arm out."
    ) from problem


def _empty(config: CellConfig, structure: ViTStructure, width: int) -> ViTStructure:
    """Describe a model of this width without allocating its weights."""
    with torch.device("meta"):
        return describe(fresh_model(config, structure.num_classes, 0, embed_dim=width))


def uniform_plan(
    dense: nn.Module, batches: Iterable[Batch], criterion: str, budget: Budget, *, seed: int = 0
) -> PruningPlan:
    """Return a plan that prunes all blocks by the same fraction, and keeps the best units of each block.

    Args:
        dense: the model to prune.
        batches: calibration images and labels.
        criterion: how units are ranked within a block.
        budget: limits for parameters and multiply-adds, and minimum widths.
        seed: seed of the criterion `random`.

    Raises:
        BudgetError: the smallest model that the budget's minimum widths allow is above the budget.
    """
    structure = describe(dense)
    scores = score(dense, batches, criterion, seed=seed)
    blocks = tuple(
        KeptBlock.of(index, {key: _best(scores.group(key, index), count) for key, count in counts.items()})
        for index, counts in enumerate(uniform_counts(structure, budget))
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def uniform_counts(structure: ViTStructure, budget: Budget) -> list[dict[str, int]]:
    """Return how many units to keep in each group of each block, by the key of the group.

    1. Every block keeps the budget's fraction of its heads. If the minimum number of neurons does not fit then, every
       block keeps one head less, and so on.
    2. Every block keeps the same number of neurons, as many as fit.
    3. The first blocks keep one more step of neurons, as long as this fits.

    Raises:
        BudgetError: the minimum widths do not fit.
    """
    limit, step, depth = budget.limit(count_cost(structure)), budget.neuron_step, len(structure.blocks)
    fraction, max_neurons = min(budget.params, budget.macs), max(block.neurons.count for block in structure.blocks)
    min_neurons = -(-budget.min_neurons // step) * step

    def counts_with(fewer_heads: int, neurons: Sequence[int]) -> list[dict[str, int]]:
        return [
            {group.key: _count(group, fraction, fewer_heads, num_neurons, budget) for group in block.groups}
            for block, num_neurons in zip(structure.blocks, neurons, strict=True)
        ]

    def fits(fewer_heads: int, neurons: Sequence[int]) -> bool:
        return _within(_cost_of(structure, counts_with(fewer_heads, neurons)), limit)

    max_heads = max(block.heads.count for block in structure.blocks)
    fewer_heads = next((n for n in range(max_heads) if fits(n, [min_neurons] * depth)), None)
    if fewer_heads is None:
        raise BudgetError(
            f"With the same fraction kept in all blocks, no model has at most {percent(budget.params, 1)} of the "
            f"parameters and {percent(budget.macs, 1)} of the multiply-adds. Raise keep, or lower "
            "recipe.budget.min_neurons."
            f"{unprunable_summary(structure)}"
        )
    counts = range(min_neurons, max(max_neurons, min_neurons) + 1, step)
    even = counts[bisect_left(counts, True, key=lambda count: not fits(fewer_heads, [count] * depth)) - 1]
    neurons = [even] * depth
    for index in range(depth):
        more = [*neurons[:index], even + step, *neurons[index + 1 :]]
        neurons = more if fits(fewer_heads, more) else neurons
    return counts_with(fewer_heads, neurons)


def _count(group: UnitGroup, fraction: float, fewer_heads: int, num_neurons: int, budget: Budget) -> int:
    """Return how many units of one group to keep."""
    if group.not_prunable:
        return group.count
    if group.kind == "heads":
        return min(max(round(fraction * group.count) - fewer_heads, budget.min_heads), group.count)
    return min(num_neurons, group.count)


def _cost_of(structure: ViTStructure, counts: Sequence[dict[str, int]]) -> Cost:
    total = Cost(params=structure.params, macs=structure.macs)
    for index, kept in enumerate(counts):
        total += block_cost(structure, index, kept)
    return total


def _within(cost: Cost, limit: Cost) -> bool:
    return cost.params <= limit.params and cost.macs <= limit.macs


def _best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Return the sorted indices of the highest scores. Of equal scores, the first ones are kept."""
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))
