"""Scores and a budget make a plan: pure arithmetic, solved as an integer program. It looks at no tensor.

Of all plans within the budget, the one that keeps the most importance is chosen. Heads and neurons of all blocks
compete for the same parameters and multiply-adds, so every block may end with its own widths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from vitrim.costs.budget import Budget
from vitrim.costs.counting import Cost, block_cost, count_cost
from vitrim.costs.knapsack import Options, choose
from vitrim.costs.latency_table import Times
from vitrim.errors import BudgetError, PlanMismatch, SettingError
from vitrim.importance import Scores
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import UnitGroup, ViTStructure

MAX_COMBINATIONS = 1e6
MAX_RELATIVE_GAP = 1e-5
MAX_SECONDS = 2.0
MAX_CORE_SIZE = 300
STEPS_OF_PRICES = 40


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """`size` further units of one group, the next best in order: one yes-or-no decision of the program."""

    block: int
    key: str
    size: int
    value: float
    params: int
    macs: int


def allocate(
    structure: ViTStructure,
    scores: Scores,
    budget: Budget,
    *,
    whole: Cost | None = None,
    remove_blocks: tuple[int, ...] = (),
    times: Times | None = None,
) -> PruningPlan:
    """Choose the units to keep: the most important ones that fit the budget.

    Args:
        whole: the cost of which the budget is a share; by default that of `structure`. Pass the dense model's when
            `structure` has been cut already.
        remove_blocks: blocks that go whatever their units' scores.
        times: of the parts of `structure`, for a budget in milliseconds.

    Returns:
        A plan that counts in `structure`, never above the budget, and to which no further unit could be added.

    Raises:
        BudgetError: the smallest possible model is above the budget; says how small it can be.
        PlanMismatch: the scores are of a model with other sizes.
    """
    _check_sizes(structure, scores)
    whole = whole or count_cost(structure)
    kept_blocks = _kept_blocks(structure, remove_blocks)
    least = _least_counts(structure, kept_blocks, budget)
    check_room(structure, budget, whole=whole, remove_blocks=remove_blocks, times=times)
    limit, floor = budget.limit(whole), _cost_of(structure, kept_blocks, least)
    room = Cost(params=limit.params - floor.params, macs=limit.macs - floor.macs)
    choices = {
        (block, key): _choices(structure.blocks[block].group(key), scores.group(key, block), block, start, budget)
        for (block, key), start in least.items()
    }
    counts = dict(least)
    if not budget.latency_ms:
        flat = [choice for row in choices.values() for choice in row]
        for choice, take in zip(flat, _solve(flat, room), strict=True):
            counts[choice.block, choice.key] += choice.size if take else 0
    else:
        assert times is not None
        limits = np.array([room.params, room.macs, budget.latency_ms - _least_ms(times, kept_blocks, least)])
        groups = [_options(row, least[key], times.units[key]) for key, row in choices.items()]
        for (key, row), taken in zip(choices.items(), choose(groups, limits), strict=True):
            counts[key] += sum(choice.size for choice in row[:taken])
    blocks = tuple(
        KeptBlock.of(
            index,
            {
                group.key: _best(scores.group(group.key, index), counts[index, group.key])
                for group in structure.blocks[index].groups
            },
        )
        for index in kept_blocks
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def check_room(
    structure: ViTStructure,
    budget: Budget,
    *,
    whole: Cost | None = None,
    remove_blocks: tuple[int, ...] = (),
    times: Times | None = None,
) -> None:
    """Raise what `allocate` raises where no plan fits the budget; no scores are needed for it."""
    whole, kept_blocks = whole or count_cost(structure), _kept_blocks(structure, remove_blocks)
    limit, floor = budget.limit(whole), smallest_cost(structure, budget, remove_blocks)
    if floor.params > limit.params or floor.macs > limit.macs:
        params, macs = floor.fraction_of(whole)
        raise BudgetError(
            f"The budget keeps {budget.params:.1%} of the parameters and {budget.macs:.1%} of the multiply-adds; the "
            f"smallest possible model with {len(kept_blocks)} blocks keeps {params:.2%} and {macs:.2%}. Raise --keep, "
            f"remove more blocks with --depth, or lower budget.min_neurons.{unprunable_summary(structure)}"
        )
    if not budget.latency_ms:
        return
    if times is None:
        raise SettingError("A budget in milliseconds needs the times of the model's parts; `compress` measures them.")
    least_ms = _least_ms(times, kept_blocks, _least_counts(structure, kept_blocks, budget))
    if least_ms > budget.latency_ms:
        raise BudgetError(
            f"The budget is {budget.latency_ms:.4g} ms, but the smallest possible model with {len(kept_blocks)} blocks "
            f"takes about {least_ms:.4g} ms. Raise --latency, or remove more blocks with --depth."
        )


def _kept_blocks(structure: ViTStructure, remove_blocks: Sequence[int]) -> list[int]:
    if not set(remove_blocks) <= set(range(len(structure.blocks))):
        raise PlanMismatch(f"Blocks {sorted(remove_blocks)} are to go; the model has 0..{len(structure.blocks) - 1}.")
    return [index for index in range(len(structure.blocks)) if index not in remove_blocks]


def _least_ms(times: Times, kept_blocks: Sequence[int], least: dict[tuple[int, str], int]) -> float:
    """How many milliseconds the least units take."""
    blocks = times.fixed + sum(times.blocks[index] for index in kept_blocks)
    return blocks + sum(float(times.units[key][count]) for key, count in least.items())


def _options(row: Sequence[_Choice], start: int, milliseconds: np.ndarray) -> Options:
    """A group's units beyond the least as options: none, the first step, the first two, ..."""
    steps = np.array([(choice.size, choice.value, choice.params, choice.macs) for choice in row]).reshape(-1, 4)
    sums = np.concatenate([np.zeros((1, 4)), np.cumsum(steps, axis=0)])
    time = milliseconds[start + sums[:, 0].astype(int)] - milliseconds[start]
    return Options(values=sums[:, 1], costs=np.column_stack([sums[:, 2:], time]))


def smallest_cost(structure: ViTStructure, budget: Budget, remove_blocks: Sequence[int] = ()) -> Cost:
    """The cost of the smallest model that the budget's minimum widths allow, without these blocks."""
    kept = _kept_blocks(structure, remove_blocks)
    return _cost_of(structure, kept, _least_counts(structure, kept, budget))


def unprunable_summary(structure: ViTStructure) -> str:
    """A sentence on what cannot be cut, with a reason of each kind; empty if everything can."""
    reasons: dict[str, str] = {}
    for block in structure.blocks:
        for kind, not_prunable in [(group.kind, group.not_prunable) for group in block.groups] + [
            ("blocks", block.not_prunable)
        ]:
            if not_prunable:
                reasons.setdefault(kind, not_prunable)
    return f" Left whole: {'; '.join(f'{kind} ({why})' for kind, why in reasons.items())}." if reasons else ""


def _check_sizes(structure: ViTStructure, scores: Scores) -> None:
    sizes = [{group.key: group.count for group in block.groups} for block in structure.blocks]
    scored = [
        {key: len(values) for key, values in (("heads", heads), ("neurons", neurons), *more.items()) if len(values)}
        for heads, neurons, more in zip(scores.heads, scores.neurons, scores.more or [{}] * len(sizes), strict=False)
    ]
    if sizes != scored or len(scores.heads) != len(sizes):
        raise PlanMismatch(
            f"The scores are of `{scores.model}` with {scored[:3]}... in {len(scored)} blocks, the model "
            f"`{structure.model}` has {sizes[:3]}... in {len(sizes)}. Score this model again."
        )


def _least_counts(structure: ViTStructure, kept_blocks: Sequence[int], budget: Budget) -> dict[tuple[int, str], int]:
    """How many units of each group stay at any rate."""
    return {(i, group.key): _least(group, budget) for i in kept_blocks for group in structure.blocks[i].groups}


def _least(group: UnitGroup, budget: Budget) -> int:
    if group.not_prunable:
        return group.count
    if group.kind == "heads":
        return min(budget.min_heads, group.count)
    rounded = -(-budget.min_neurons // budget.step) * budget.step
    return min(rounded, group.count)


def _cost_of(structure: ViTStructure, kept_blocks: Sequence[int], counts: dict[tuple[int, str], int]) -> Cost:
    total = Cost(params=structure.params, macs=structure.macs)
    for index in kept_blocks:
        total += block_cost(structure, index, {key: count for (block, key), count in counts.items() if block == index})
    return total


def _choices(group: UnitGroup, unit_scores: np.ndarray, block: int, start: int, budget: Budget) -> list[_Choice]:
    """The units beyond the least, best first, in steps of the wanted multiple."""
    step = budget.step if group.kind == "neurons" else 1
    # a negative exact score says that the unit harms; keeping it is worth nothing, not less
    ordered = np.sort(np.clip(np.asarray(unit_scores, dtype=np.float64), 0, None))[::-1]
    edges = list(range(start, group.count + 1, step))  # a rest below one step never stays: widths are round
    return [
        _Choice(
            block=block,
            key=group.key,
            size=high - low,
            value=float(ordered[low:high].sum()),
            params=(high - low) * group.params,
            macs=(high - low) * group.macs,
        )
        for low, high in pairwise(edges)
    ]


def _best(unit_scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest scores, sorted; of equal ones the first."""
    return tuple(sorted(np.argsort(-np.asarray(unit_scores), kind="stable")[:count].tolist()))


def _solve(choices: list[_Choice], room: Cost) -> np.ndarray:
    """Which choices to take so that their value is greatest and their cost within `room`; `(len(choices),)` of bool.

    Choices of equal cost are taken best first, so only *how many* of each cost is open. Blocks of one size have two
    costs, a head's and a neuron's: every number of heads is tried, which is exact. Models whose blocks differ in size
    have more, and go to an integer program.
    """
    values = np.array([choice.value for choice in choices])
    costs = np.array([(choice.params, choice.macs) for choice in choices], dtype=np.int64).reshape(-1, 2)
    unique, member_of = np.unique(costs, axis=0, return_inverse=True)
    ranked = [_ranked(values, np.flatnonzero(member_of == kind)) for kind in range(len(unique))]
    rare_first = sorted(range(len(unique)), key=lambda kind: len(ranked[kind]))
    ranked, unit_costs = [ranked[kind] for kind in rare_first], [unique[kind] for kind in rare_first]
    taken = np.zeros(len(choices), dtype=bool)
    if not choices:
        return taken
    if np.prod([len(members) + 1.0 for members in ranked[:-1]]) <= MAX_COMBINATIONS:
        counts = _try_all(values, ranked, unit_costs, room)
        for members, count in zip(ranked, counts, strict=True):
            taken[members[:count]] = True
    else:
        taken = _integer_program(values, costs, room)
    return _fill(taken, values, costs, room)  # worthless units too: removing them would save nothing that is wanted


def _ranked(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """These indices, the most valuable first, of equal ones the first."""
    return members[np.argsort(-values[members], kind="stable")]


def _try_all(
    values: np.ndarray, ranked: Sequence[np.ndarray], unit_costs: Sequence[np.ndarray], room: Cost
) -> tuple[int, ...]:
    """The best number of choices of each cost: all numbers of the rare costs, filled up with the most frequent one."""
    worth = [np.concatenate([[0.0], np.cumsum(values[members])]) for members in ranked]
    sizes = [len(members) + 1 for members in ranked[:-1]]
    grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes))  # (rare, combinations)
    left = np.array([[room.params], [room.macs]]) - sum(
        (np.outer(cost, count) for cost, count in zip(unit_costs, grid, strict=False)), np.zeros((2, 1), dtype=np.int64)
    )
    fits = (left >= 0).all(axis=0)
    filled = np.clip((left // np.maximum(unit_costs[-1], 1)[:, None]).min(axis=0), 0, len(ranked[-1]))
    total = worth[-1][filled] + sum(value[count] for value, count in zip(worth, grid, strict=False))
    best = int(np.argmax(np.where(fits, total, -np.inf)))
    return (*grid[:, best].tolist(), int(np.broadcast_to(filled, fits.shape)[best]))


def _integer_program(values: np.ndarray, costs: np.ndarray, room: Cost) -> np.ndarray:
    """The knapsack with two weights; `(len(values),)` of bool.

    At the right prices of a parameter and of a multiply-add, the choices that are worth more than they cost fill the
    room but for a rest; the value that is lost there is at most `gap`. A choice whose worth less its cost is further
    from zero than that is taken, or left, in every better solution. The others, the core (Balas and Zemel 1980), are
    left to an integer program where they are few.
    """
    weights, limits = costs / costs.mean(axis=0), np.array([room.params, room.macs]) / costs.mean(axis=0)
    prices = _prices(values, weights, limits)
    profit = values - weights @ prices
    rounded = _fill(_within(profit > 0, values, costs, room), values, costs, room)
    bound = prices @ limits + profit.clip(0).sum()
    gap = bound - values[rounded].sum()
    core, taken = np.flatnonzero(np.abs(profit) <= gap), profit > gap
    if gap <= MAX_RELATIVE_GAP * bound or len(core) > MAX_CORE_SIZE:
        return rounded  # as good as the best, or among thousands of units that are worth the same
    result = milp(
        -values[core] / (values.mean() or 1.0),
        constraints=LinearConstraint(csr_array(weights[core].T), ub=limits - weights[taken].sum(axis=0)),
        integrality=np.ones(len(core)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": MAX_RELATIVE_GAP, "time_limit": MAX_SECONDS},
    )
    if result.x is not None:
        taken[core] = result.x > 0.5
    better = _fill(_within(taken, values, costs, room), values, costs, room)
    return better if values[better].sum() >= values[rounded].sum() else rounded


def _prices(values: np.ndarray, weights: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """The least prices `(2,)` at which what is worth more than it costs fits into the limits, by nested bisection."""
    most = [(values / np.maximum(weights[:, i], 1e-12)).max(initial=0.0) for i in range(2)]

    def used(first: float, second: float, which: int) -> float:
        return weights[values > first * weights[:, 0] + second * weights[:, 1], which].sum()

    def second_price(first: float) -> float:
        return _bisect(lambda price: used(first, price, 1) <= limits[1], most[1])

    first = _bisect(lambda price: used(price, second_price(price), 0) <= limits[0], most[0])
    return np.array([first, second_price(first)])


def _bisect(fits: Callable[[float], bool], high: float) -> float:
    """The least price up to `high` that makes things fit."""
    low = 0.0
    if fits(low):
        return low
    for _ in range(STEPS_OF_PRICES):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def _within(taken: np.ndarray, values: np.ndarray, costs: np.ndarray, room: Cost) -> np.ndarray:
    """Without the least valuable choices while they are too many: the solver tolerates a little too much."""
    taken = taken.copy()
    while np.any(costs[taken].sum(axis=0) > (room.params, room.macs)):
        taken[np.flatnonzero(taken)[np.argmin(values[taken])]] = False
    return taken


def _fill(taken: np.ndarray, values: np.ndarray, costs: np.ndarray, room: Cost) -> np.ndarray:
    """Add what still fits, the most valuable for its cost first."""
    taken = taken.copy()
    left = np.array([room.params, room.macs]) - costs[taken].sum(axis=0)
    for index in np.argsort(-values / (costs / costs.mean(axis=0)).sum(axis=1), kind="stable"):
        if not taken[index] and np.all(costs[index] <= left):
            taken[index] = True
            left = left - costs[index]
    return taken
