"""Scores and a budget make a plan: which units are kept. Arithmetic only; no tensor is read.

Of all plans within the budget, the one that keeps the most importance is chosen. Heads and neurons of all blocks
compete for the same budget, so each block may end with a width of its own.
"""

from itertools import pairwise

import numpy as np

from vitrim.costs.budget import Budget, Limit, blocks_without, check_reachable, min_counts
from vitrim.costs.counting import Cost, PartCosts, count_cost
from vitrim.costs.knapsack import Options, solve
from vitrim.errors import PlanMismatch, counted
from vitrim.importance.scores import Scores
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import UnitGroup, ViTStructure


def allocate(
    structure: ViTStructure,
    scores: Scores,
    budget: Budget,
    *,
    whole: Cost | None = None,
    remove_blocks: tuple[int, ...] = (),
    times: PartCosts | None = None,
) -> PruningPlan:
    """Choose the units to keep: the most important ones that fit the budget.

    Args:
        whole: the cost of which the budget is a fraction; by default that of `structure`. Pass the dense model's cost
            when `structure` has been cut already.
        remove_blocks: indices of blocks that are removed, whatever the scores of their units.
        times: milliseconds of the parts of `structure`, for a budget in milliseconds.

    Returns:
        A plan whose indices count in `structure`. It is never above the budget, and no further unit fits.

    Raises:
        BudgetError: the smallest possible model is above the budget; says how small it can be.
        PlanMismatch: the scores are of a model with other sizes.
    """
    _check_sizes(structure, scores)
    whole = whole or count_cost(structure)
    check_reachable(structure, budget, whole=whole, remove_blocks=remove_blocks, times=times)
    limits = budget.limits(structure, whole, times)
    kept_blocks = blocks_without(structure, remove_blocks)
    keys, groups, widths = [], [], []
    for (block, key), minimum in min_counts(structure, kept_blocks, budget).items():
        group = structure.blocks[block].group(key)
        counts = _counts(group, minimum, budget)
        keys.append((block, key))
        widths.append(counts)
        groups.append(_options(scores.group(key, block), counts, [limit.costs.units[block, key] for limit in limits]))
    chosen = solve(groups, np.array([_left_for_units(limit, kept_blocks) for limit in limits]))
    count_of = {key: counts[index] for key, counts, index in zip(keys, widths, chosen, strict=True)}
    blocks = tuple(
        KeptBlock.of(
            index,
            {
                group.key: _best(scores.group(group.key, index), count_of[index, group.key])
                for group in structure.blocks[index].groups
            },
        )
        for index in kept_blocks
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def _check_sizes(structure: ViTStructure, scores: Scores) -> None:
    sizes = [{group.key: group.count for group in block.groups} for block in structure.blocks]
    scored = [
        {key: len(values) for key, values in (("heads", heads), ("neurons", neurons), *more.items()) if len(values)}
        for heads, neurons, more in zip(scores.heads, scores.neurons, scores.more or [{}] * len(sizes), strict=False)
    ]
    if sizes != scored or len(scores.heads) != len(sizes):
        raise PlanMismatch(
            f"The scores are of `{scores.model}` with {scored[:3]}... in {counted(len(scored), 'block')}. The model "
            f"`{structure.model}` has {sizes[:3]}... in {counted(len(sizes), 'block')}. Score this model again."
        )


def _counts(group: UnitGroup, minimum: int, budget: Budget) -> list[int]:
    """How many units may be kept, in rising order. The last units below one full step are never kept."""
    return list(range(minimum, group.count + 1, budget.neuron_step if group.kind == "neurons" else 1))


def _options(unit_scores: np.ndarray, counts: list[int], costs: list[np.ndarray]) -> Options:
    """One group as options of the knapsack: its best `counts[0]` units, its best `counts[1]` units, ...

    A negative exact score means that the unit harms. Keeping it is worth 0, not less.
    """
    ordered = np.sort(np.clip(np.asarray(unit_scores, dtype=np.float64), 0, None))[::-1]
    gains = np.array([float(ordered[low:high].sum()) for low, high in pairwise(counts)])
    return Options(gains=gains, costs=np.column_stack([cost[counts] for cost in costs]))


def _left_for_units(limit: Limit, kept_blocks: list[int]) -> float:
    """What is left of a limit for heads and neurons."""
    return limit.maximum - limit.costs.fixed - sum(limit.costs.blocks[index] for index in kept_blocks)


def _best(unit_scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Sorted indices of the `count` highest scores; of equal scores the first ones."""
    return tuple(sorted(np.argsort(-np.asarray(unit_scores), kind="stable")[:count].tolist()))
