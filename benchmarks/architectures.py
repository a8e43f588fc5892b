"""The models of a cell: the dense one before its training, and the small ones that no importance has chosen."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.config import CellConfig, ModelSettings
from vitrim.allocation import unprunable_summary
from vitrim.costs.budget import Budget
from vitrim.costs.counting import Cost, block_cost, count_cost
from vitrim.errors import BudgetError, SettingError
from vitrim.importance import Batch, Criterion, score
from vitrim.models import describe, origin_of, with_new_head
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.saving.opening import open_model
from vitrim.structure import UnitGroup, ViTStructure


def model_to_train(config: CellConfig, num_classes: int, seed: int) -> nn.Module:
    """The dense model before its training, with so many outputs: what `vitrim train` would begin with."""
    settings = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not settings.weights:
            return _open(settings, pretrained=settings.pretrained, num_classes=num_classes)
        model = open_model(settings.weights, arch=settings.architecture, **_sizes(settings))
        fits = int(origin_of(model).model_args["num_classes"]) == num_classes
        return model if fits else with_new_head(model, num_classes)


def fresh_model(config: CellConfig, num_classes: int, seed: int, **changes: Any) -> nn.Module:
    """The dense architecture with random weights; `changes` are arguments of the architecture."""
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
    """A plain model as deep as the dense one and with as many heads, as wide as the budget allows.

    Raises:
        SettingError: the architecture has no `embed_dim` that sets the width of all its blocks.
        BudgetError: the narrowest such model is above the budget.
    """
    structure = describe(dense)
    _check_width_can_be_set(config, structure)
    whole, step = count_cost(structure), 2 * structure.blocks[0].heads.count
    limit = budget.limit(whole)
    widths = range(step, structure.embed_dim + 1, step)
    fitting = bisect_left(
        widths, True, key=lambda width: not _within(count_cost(_empty(config, structure, width)), limit)
    )
    if not fitting:
        raise BudgetError(
            f"No {config.model.architecture} fits into {budget.params:.1%} of the parameters and {budget.macs:.1%} of "
            "the multiply-adds, however narrow; leave the arm timm-small out or raise keep."
        )
    return fresh_model(config, structure.num_classes, seed, embed_dim=widths[fitting - 1])


def _check_width_can_be_set(config: CellConfig, structure: ViTStructure) -> None:
    problem: SettingError | None = None
    try:
        if _empty(config, structure, structure.embed_dim).embed_dim == structure.embed_dim:
            return
    except SettingError as found:  # timm says that there is no such argument
        problem = found
    raise SettingError(
        f"The arm timm-small makes the model narrower by timm's argument embed_dim, but that does not set the width "
        f"of {config.model.architecture}; leave this arm out."
    ) from problem


def _empty(config: CellConfig, structure: ViTStructure, width: int) -> ViTStructure:
    """What a model of this width is made of, without making its weights."""
    with torch.device("meta"):
        return describe(fresh_model(config, structure.num_classes, 0, embed_dim=width))


def uniform_plan(
    dense: nn.Module, batches: Iterable[Batch], criterion: Criterion, budget: Budget, *, seed: int = 0
) -> PruningPlan:
    """Cut all blocks alike, each down to its best units by `criterion`.

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
    """For each block how many units of each group stay, by key.

    Heads get the share that the budget names, one less at a time where that leaves no room for the least neurons; all
    MLPs get the same number of neurons, and what is then left goes to the first blocks.
    """
    limit, step = budget.limit(count_cost(structure)), budget.step
    share, most = min(budget.params, budget.macs), max(block.neurons.count for block in structure.blocks)
    least = -(-budget.min_neurons // step) * step

    def counts_with(fewer: int, neurons: Sequence[int]) -> list[dict[str, int]]:
        return [
            {group.key: _count(group, share, fewer, wanted, budget) for group in block.groups}
            for block, wanted in zip(structure.blocks, neurons, strict=True)
        ]

    def fits(fewer: int, neurons: Sequence[int]) -> bool:
        return _within(_cost_of(structure, counts_with(fewer, neurons)), limit)

    depth = len(structure.blocks)
    most_heads = max(block.heads.count for block in structure.blocks)
    fewer = next((n for n in range(most_heads) if fits(n, [least] * depth)), None)
    if fewer is None:
        raise BudgetError(
            f"Cut alike in all blocks, no model fits into {budget.params:.1%} of the parameters and {budget.macs:.1%} "
            f"of the multiply-adds; raise keep or lower recipe.budget.min_neurons.{unprunable_summary(structure)}"
        )
    level = max(n for n in range(least, max(most, least) + 1, step) if fits(fewer, [n] * depth))
    neurons = [level] * depth
    for index in range(depth):
        more = [*neurons[:index], level + step, *neurons[index + 1 :]]
        neurons = more if fits(fewer, more) else neurons
    return counts_with(fewer, neurons)


def _count(group: UnitGroup, share: float, fewer: int, neurons: int, budget: Budget) -> int:
    if group.not_prunable:
        return group.count
    if group.kind == "heads":
        return min(max(round(share * group.count) - fewer, budget.min_heads), group.count)
    return min(neurons, group.count)


def _cost_of(structure: ViTStructure, counts: Sequence[dict[str, int]]) -> Cost:
    total = Cost(params=structure.params, macs=structure.macs)
    for index, kept in enumerate(counts):
        total += block_cost(structure, index, kept)
    return total


def _within(cost: Cost, limit: Cost) -> bool:
    return cost.params <= limit.params and cost.macs <= limit.macs


def _best(scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Indices of the highest scores, sorted; of equal ones the first."""
    return tuple(sorted(np.argsort(-scores, kind="stable")[:count].tolist()))
