"""Scores and a budget make a plan: pure arithmetic, solved as an integer program. It looks at no tensor.

Of all plans within the budget, the one that keeps the most importance is chosen. Heads and neurons of all blocks
compete for the same parameters and multiply-adds, so every block may end with its own widths.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_matrix

from vitrim.cost import Cost, count_cost
from vitrim.errors import BudgetError, PlanMismatch, SettingError
from vitrim.importance import Scores
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import UNIT_KINDS, UnitGroup, UnitKind, ViTStructure


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that the result may cost, as shares of the dense model, and the least that each block keeps.

    Attributes:
        params, macs: shares in (0, 1].
        min_heads, min_neurons: what every block that stays keeps (or all it has, if that is less).
        multiple_of: neurons are kept in multiples of this, for hardware that likes round widths.
    """

    params: float = 0.7
    macs: float = 0.7
    min_heads: int = 1
    min_neurons: int = 16
    multiple_of: int = 1

    def __post_init__(self) -> None:
        for name, share in (("parameters", self.params), ("multiply-adds", self.macs)):
            if not 0 < share <= 1:
                raise BudgetError(f"The budget for {name} is {share:g}; expected a share above 0 and at most 1, such as 0.7.")
        if self.min_heads < 1 or self.min_neurons < 1 or self.multiple_of < 1:
            raise SettingError("budget.min_heads, budget.min_neurons and budget.multiple_of must be at least 1.")

    def limit(self, whole: Cost) -> Cost:
        """The budget in numbers, rounded down."""
        return Cost(params=int(self.params * whole.params), macs=int(self.macs * whole.macs))


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """`size` further units of one group, the next best in order: one yes-or-no decision of the program."""

    block: int
    kind: UnitKind
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
) -> PruningPlan:
    """Choose the units to keep: the most important ones that fit the budget.

    Args:
        whole: the cost of which the budget is a share; by default that of `structure`. Pass the dense model's when
            `structure` has been cut already.
        remove_blocks: blocks that go whatever their units' scores.

    Returns:
        A plan that counts in `structure`, never above the budget, and to which no further unit could be added.

    Raises:
        BudgetError: the smallest possible model is above the budget; says how small it can be.
        PlanMismatch: the scores are of a model with other sizes.
    """
    _check_sizes(structure, scores)
    kept_blocks = [index for index in range(len(structure.blocks)) if index not in remove_blocks]
    whole = whole or count_cost(structure)
    least = {(i, kind): _least(structure.blocks[i].group(kind), kind, budget) for i in kept_blocks for kind in UNIT_KINDS}
    limit, floor = budget.limit(whole), _cost_of(structure, least)
    if floor.params > limit.params or floor.macs > limit.macs:
        params, macs = floor.share_of(whole)
        raise BudgetError(
            f"The budget keeps {budget.params:.1%} of the parameters and {budget.macs:.1%} of the multiply-adds, but the "
            f"smallest possible model keeps {params:.2%} and {macs:.2%}. Raise the budget or remove more blocks."
        )
    choices = [
        choice
        for (block, kind), start in least.items()
        for choice in _choices(structure.blocks[block].group(kind), scores.group(kind, block), block, kind, start, budget)
    ]
    taken = _solve(choices, Cost(params=limit.params - floor.params, macs=limit.macs - floor.macs))
    counts = dict(least)
    for choice, take in zip(choices, taken, strict=True):
        counts[choice.block, choice.kind] += choice.size if take else 0
    blocks = tuple(
        KeptBlock(
            block=index,
            heads=_best(scores.heads[index], counts[index, "heads"]),
            neurons=_best(scores.neurons[index], counts[index, "neurons"]),
        )
        for index in kept_blocks
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def smallest_cost(structure: ViTStructure, budget: Budget, num_blocks_removed: int = 0) -> Cost:
    """The cost of the smallest model that the budget's minimum widths allow, its last blocks removed."""
    kept = range(len(structure.blocks) - num_blocks_removed)
    return _cost_of(structure, {(i, k): _least(structure.blocks[i].group(k), k, budget) for i in kept for k in UNIT_KINDS})


def _check_sizes(structure: ViTStructure, scores: Scores) -> None:
    sizes = [(block.heads.count, block.neurons.count) for block in structure.blocks]
    scored = [(len(heads), len(neurons)) for heads, neurons in zip(scores.heads, scores.neurons, strict=True)]
    if sizes != scored:
        raise PlanMismatch(
            f"The scores are of `{scores.model}` with (heads, neurons) {scored[:3]}... in {len(scored)} blocks, the model "
            f"`{structure.model}` has {sizes[:3]}... in {len(sizes)}. Score this model again."
        )


def _least(group: UnitGroup, kind: UnitKind, budget: Budget) -> int:
    """How many units of a group stay at any rate."""
    if group.locked:
        return group.count
    if kind == "heads":
        return min(budget.min_heads, group.count)
    rounded = -(-budget.min_neurons // budget.multiple_of) * budget.multiple_of
    return min(rounded, group.count)


def _cost_of(structure: ViTStructure, counts: dict[tuple[int, UnitKind], int]) -> Cost:
    total = Cost(params=structure.params, macs=structure.macs)
    for (index, kind), count in counts.items():
        block = structure.blocks[index]
        total += Cost(params=count * block.group(kind).params, macs=count * block.group(kind).macs)
        if kind == "heads":  # once a block
            total += Cost(params=block.params, macs=block.macs)
    return total


def _choices(
    group: UnitGroup, unit_scores: np.ndarray, block: int, kind: UnitKind, start: int, budget: Budget
) -> list[_Choice]:
    """The units beyond the least, best first, in steps of the wanted multiple."""
    step = budget.multiple_of if kind == "neurons" else 1
    # a negative exact score says that the unit harms; keeping it is worth nothing, not less
    ordered = np.sort(np.clip(np.asarray(unit_scores, dtype=np.float64), 0, None))[::-1]
    edges = [*range(start, group.count, step), group.count]
    return [
        _Choice(
            block=block,
            kind=kind,
            size=high - low,
            value=float(ordered[low:high].sum()),
            params=(high - low) * group.params,
            macs=(high - low) * group.macs,
        )
        for low, high in zip(edges, edges[1:], strict=False)
    ]


def _best(unit_scores: np.ndarray, count: int) -> tuple[int, ...]:
    """Indices of the `count` highest scores, sorted; of equal ones the first."""
    return tuple(sorted(np.argsort(-np.asarray(unit_scores), kind="stable")[:count].tolist()))


def _solve(choices: list[_Choice], room: Cost) -> np.ndarray:
    """Which choices to take: the exact optimum of a knapsack with two weights.

    The linear relaxation leaves a few choices in doubt. Its reduced costs prove which others cannot be otherwise in
    any better solution than the rounded one; an integer program settles what is left.
    """
    if not choices:
        return np.zeros(0, dtype=bool)
    values = np.array([choice.value for choice in choices])
    values = values / (values.mean() or 1.0)
    weights = np.array([[choice.params, choice.macs] for choice in choices], dtype=np.float64).T  # (2, choices)
    limits = np.array([room.params, room.macs], dtype=np.float64)
    scale = np.maximum(weights.mean(axis=1), 1.0)
    weights, limits = weights / scale[:, None], limits / scale
    relaxed = linprog(-values, A_ub=weights, b_ub=limits, bounds=(0, 1), method="highs")
    assert relaxed.status == 0, relaxed.message
    taken = _fill(relaxed.x > 1 - 1e-9, values, weights, limits)
    prices = np.maximum(-relaxed.ineqlin.marginals, 0)
    reduced = values - prices @ weights
    slack = -relaxed.fun - values @ taken
    doubtful = np.flatnonzero(np.abs(reduced) <= slack + 1e-9)
    if len(doubtful):
        sure = reduced > 0
        sure[doubtful] = False
        better = _settle(choices, values, weights, limits, sure, doubtful)
        if better is not None and values @ better > values @ taken:
            taken = _fill(better, values, weights, limits)
    return taken


def _settle(
    choices: list[_Choice],
    values: np.ndarray,
    weights: np.ndarray,
    limits: np.ndarray,
    sure: np.ndarray,
    doubtful: np.ndarray,
) -> np.ndarray | None:
    constraints = [LinearConstraint(weights[:, doubtful], ub=limits - weights[:, sure].sum(axis=1))]
    ordered = _orders(choices, doubtful)
    if ordered is not None:
        constraints.append(ordered)
    result = milp(
        -values[doubtful],
        constraints=constraints,
        integrality=np.ones(len(doubtful)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "time_limit": 20.0},
    )
    if result.x is None:
        return None
    taken = sure.copy()
    taken[doubtful[result.x > 0.5]] = True
    return taken


def _orders(choices: list[_Choice], doubtful: np.ndarray) -> LinearConstraint | None:
    """A group's last, smaller step may be taken only after the full one before it: widths stay round."""
    rows = [
        (later, earlier)
        for earlier, later in zip(range(len(doubtful)), range(1, len(doubtful)), strict=False)
        if _same_group(choices[doubtful[earlier]], choices[doubtful[later]])
    ]
    if not rows:
        return None
    data = np.tile([1.0, -1.0], len(rows))
    columns = np.array(rows).flatten()
    matrix = csr_matrix((data, (np.repeat(np.arange(len(rows)), 2), columns)), shape=(len(rows), len(doubtful)))
    return LinearConstraint(matrix, ub=0)


def _same_group(a: _Choice, b: _Choice) -> bool:
    return (a.block, a.kind) == (b.block, b.kind) and a.size != b.size


def _fill(taken: np.ndarray, values: np.ndarray, weights: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Add what still fits, the most valuable for its weight first."""
    taken = taken.copy()
    room = limits - weights[:, taken].sum(axis=1)
    for index in np.argsort(-values / weights.sum(axis=0), kind="stable"):
        if not taken[index] and np.all(weights[:, index] <= room + 1e-9):
            taken[index] = True
            room = room - weights[:, index]
    return taken
