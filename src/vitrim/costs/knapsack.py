"""The multiple-choice knapsack: one option of each group, the largest value within any number of limits.

A group is one attention or one MLP. Its options are numbers of units to keep. Each limit is one column of the costs:
parameters, multiply-adds, milliseconds. Nothing here knows what a column means.
"""

import heapq
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

MAX_COMBINATIONS = 1e6  # numbers of units that are tried one by one
MAX_OPTIONS = 48  # of one group, where the relaxed problem starts
MAX_OPEN_OPTIONS = 8  # of one group, for the integer program
MAX_NODES = 10  # of the integer program: the same on every machine, unlike a time limit
MAX_PRICING_ROUNDS = 30
MAX_RELATIVE_GAP = 1e-9  # between the value of a solution and the upper bound on it
MAX_SECONDS = 10.0  # for one integer program; `MAX_NODES` ends it long before
TINY = 1e-12


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """What may be chosen for one group: option 0 is the smallest one, and each step up adds some units.

    Attributes:
        gains: value of each step up, `(n - 1,)`, not negative.
        costs: of each option, `(n, limits)`, not falling. They need not be in proportion to the values.
    """

    gains: np.ndarray
    costs: np.ndarray

    @cached_property
    def values(self) -> np.ndarray:
        """Value of each option, `(n,)`; the smallest one counts as 0."""
        return np.concatenate([[0.0], np.cumsum(self.gains)])


def solve(groups: Sequence[Options], limits: np.ndarray) -> list[int]:
    """Choose one option of each group so that the sum of values is largest and the costs are within the limits.

    Groups whose steps all cost the same are solved exactly, if there are few different costs. Plain Vision Transformers
    are of this kind: a head costs the same in every block, and so does a neuron. Other problems go to an integer
    program on the options that the prices of the relaxed problem leave open (Balas and Zemel 1980).

    Args:
        groups: at least one option each. The smallest options together must be within the limits.
        limits: maximum sum of each column of costs, `(limits,)`.

    Returns:
        The index of the chosen option of each group. No group can move one option up within the limits.
    """
    base = _total_cost(groups, [0] * len(groups))
    chosen = _enumerated(groups, limits - base)
    if chosen is None:
        chosen = _integer_program(groups, limits)
    return _filled(groups, chosen, limits)


# Exact: every number of steps of each cost


def _enumerated(groups: Sequence[Options], left: np.ndarray) -> list[int] | None:
    """The best numbers of steps, or None where steps of one group differ in cost or the combinations are too many.

    Steps of equal cost are taken best first, so only the *number* of steps of each cost is open. All numbers of the
    rarer costs are tried; the most frequent cost fills what is left.
    """
    steps = [_equal_steps(group) for group in groups]
    if any(step is None for step in steps):
        return None
    values = np.concatenate([group.gains for group in groups] or [np.zeros(0)])
    group_of = np.repeat(np.arange(len(groups)), [len(group.gains) for group in groups])
    if not len(values):
        return [0] * len(groups)
    costs = np.array(steps)[group_of]  # (steps, limits)
    unique, member_of = np.unique(costs, axis=0, return_inverse=True)
    ranked = [_by_value(values, np.flatnonzero(member_of.ravel() == kind)) for kind in range(len(unique))]
    rare_first = sorted(range(len(unique)), key=lambda kind: len(ranked[kind]))
    ranked, unit_costs = [ranked[kind] for kind in rare_first], [unique[kind] for kind in rare_first]
    if np.prod([len(members) + 1.0 for members in ranked[:-1]]) > MAX_COMBINATIONS:
        return None
    counts = _best_counts([values[members] for members in ranked], unit_costs, left)
    chosen = np.concatenate([members[:count] for members, count in zip(ranked, counts, strict=True)])
    return np.bincount(group_of[chosen], minlength=len(groups)).tolist()


def _equal_steps(group: Options) -> np.ndarray | None:
    """The cost of every step `(limits,)`; None where steps differ in cost, or where a later step is worth more."""
    steps, gains = np.diff(group.costs, axis=0), group.gains
    if not len(steps):
        return np.zeros(group.costs.shape[1])
    return steps[0] if (steps == steps[0]).all() and (np.diff(gains) <= 0).all() else None


def _by_value(values: np.ndarray, members: np.ndarray) -> np.ndarray:
    """These indices, the largest value first; of equal values the first index."""
    return members[np.argsort(-values[members], kind="stable")]


def _best_counts(ranked: Sequence[np.ndarray], unit_costs: Sequence[np.ndarray], left: np.ndarray) -> tuple[int, ...]:
    """How many steps of each cost to take.

    Args:
        ranked: values of the steps of each cost, in falling order. The last cost is the most frequent one.
        unit_costs: cost of one step, `(limits,)` each.
        left: what the steps may cost together, `(limits,)`.
    """
    worth = [np.concatenate([[0.0], np.cumsum(values)]) for values in ranked]
    sizes = [len(values) + 1 for values in ranked[:-1]]
    grid = np.indices(sizes).reshape(len(sizes), math.prod(sizes))  # (rare costs, combinations)
    rest = left[:, None] - sum(
        (np.outer(cost, count) for cost, count in zip(unit_costs, grid, strict=False)), np.zeros((len(left), 1))
    )
    fits = (rest >= 0).all(axis=0)
    last = unit_costs[-1][:, None]
    most = np.where(last > 0, rest // np.where(last > 0, last, 1), np.inf).min(axis=0)
    filled = np.clip(most, 0, len(ranked[-1])).astype(int)
    total = worth[-1][filled] + sum(value[count] for value, count in zip(worth, grid, strict=False))
    best = int(np.argmax(np.where(fits, total, -np.inf)))
    return (*grid[:, best].tolist(), int(np.broadcast_to(filled, fits.shape)[best]))


# Prices, then an integer program on what they leave open


def _integer_program(groups: Sequence[Options], limits: np.ndarray) -> list[int]:
    """A solution within `MAX_RELATIVE_GAP` of the best one, or the best that is found in `MAX_SECONDS`.

    A price is what one unit of a limit costs in value. The profit of an option is its value minus its priced cost. At
    the right prices, taking the option of largest profit in each group almost fills the limits. The loss against the
    optimum is at most `gap`. So options more than `gap` below their group's best can be dropped.
    """
    prices, bound = _prices(groups, limits)
    profits = [group.values - group.costs @ prices for group in groups]
    rounded = _filled(groups, _within(groups, [int(np.argmax(profit)) for profit in profits], limits), limits)
    gap = bound - _total_value(groups, rounded)
    if gap <= MAX_RELATIVE_GAP * abs(bound):
        return rounded
    offered = [_nearest(profit, index, gap) for profit, index in zip(profits, rounded, strict=True)]
    found = _best_of(groups, offered, limits)
    if found is None:
        return rounded
    better = _filled(groups, _within(groups, found, limits), limits)
    return better if _total_value(groups, better) >= _total_value(groups, rounded) else rounded


def _prices(groups: Sequence[Options], limits: np.ndarray) -> tuple[np.ndarray, float]:
    """Prices of one unit of each cost `(limits,)`, and an upper bound on the value of any solution.

    They are the dual solution of the relaxed problem. It is solved on a few options of each group; options that are
    better at the prices found are added until there are none (column generation).
    """
    offered = [set(_spread(len(group.values)).tolist()) for group in groups]
    scale = np.maximum(_total_cost(groups, [len(group.gains) for group in groups]), TINY)
    prices, bound = np.zeros(len(limits)), math.inf
    for _ in range(MAX_PRICING_ROUNDS):
        rows = [np.array(sorted(indices)) for indices in offered]
        values, matrix, one_of_each = _columns(groups, rows, scale)
        size = np.abs(values).max(initial=0.0) or 1.0
        found = linprog(
            -values / size, A_ub=matrix, b_ub=limits / scale, A_eq=one_of_each, b_eq=np.ones(len(groups)), bounds=(0, 1)
        )
        if found.x is None:
            break
        now = np.maximum(-found.ineqlin.marginals, 0) * size / scale
        profits = [group.values - group.costs @ now for group in groups]
        upper = float(now @ limits) + sum(float(profit.max()) for profit in profits)
        if upper < bound:
            prices, bound = now, upper
        best = [int(np.argmax(profit)) for profit in profits]
        if bound + found.fun * size <= MAX_RELATIVE_GAP * abs(bound):
            break
        if all(index in indices for index, indices in zip(best, offered, strict=True)):
            break
        for index, indices in zip(best, offered, strict=True):
            indices.add(index)
    return prices, bound


def _best_of(groups: Sequence[Options], rows: Sequence[np.ndarray], limits: np.ndarray) -> list[int] | None:
    """The best solution among the options `rows` of each group; None where the solver finds none.

    Values and costs are counted from the first option of each group, so that the solver sees numbers of one size.
    """
    parts = [
        Options(
            gains=np.diff(group.values[indices]),
            costs=group.costs[indices] - group.costs[indices[0]],
        )
        for group, indices in zip(groups, rows, strict=True)
    ]
    left = limits - _total_cost(groups, [indices[0] for indices in rows])
    scale = np.maximum(np.max([part.costs[-1] for part in parts], axis=0), TINY)
    values, matrix, one_of_each = _columns(parts, [np.arange(len(indices)) for indices in rows], scale)
    with _quiet_standard_output():
        found = _milp_over(values, matrix, one_of_each, left / scale)
    if found is None:
        return None
    chosen = np.split(found, np.cumsum([len(indices) for indices in rows])[:-1])
    return [int(indices[np.argmax(part)]) for indices, part in zip(rows, chosen, strict=True)]


def _milp_over(values: np.ndarray, matrix: csr_array, one_of_each: csr_array, limits: np.ndarray) -> np.ndarray | None:
    """The solution `(n,)` of the integer program over `n` options; None where the solver finds none."""
    num_groups = one_of_each.shape[0]
    found = milp(
        -values / (values.max(initial=0.0) or 1.0),
        constraints=LinearConstraint(
            vstack([matrix, one_of_each]).tocsr(),
            np.append(np.full(len(limits), -np.inf), np.ones(num_groups)),
            np.append(limits, np.ones(num_groups)),
        ),
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": MAX_RELATIVE_GAP, "node_limit": MAX_NODES, "time_limit": MAX_SECONDS},
    )
    return found.x


@contextmanager
def _quiet_standard_output() -> Iterator[None]:
    """Within the context, nothing appears on standard output: HiGHS prints a line for its developers there."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # standard output is closed
        yield
        return
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _columns(
    groups: Sequence[Options], rows: Sequence[np.ndarray], scale: np.ndarray
) -> tuple[np.ndarray, csr_array, csr_array]:
    """Values `(n,)`, scaled costs `(limits, n)` and group membership `(groups, n)` of the options `rows`."""
    values = np.concatenate([group.values[indices] for group, indices in zip(groups, rows, strict=True)])
    costs = np.concatenate([group.costs[indices] for group, indices in zip(groups, rows, strict=True)])
    columns = np.arange(len(values), dtype=np.int32)  # scipy 1.13 takes no other indices
    group_of = np.repeat(np.arange(len(groups), dtype=np.int32), [len(indices) for indices in rows])
    member = csr_array((np.ones(len(values)), (group_of, columns)), (len(groups), len(values)))
    return values, csr_array((costs / scale).T), member


def _spread(count: int) -> np.ndarray:
    """Indices of at most `MAX_OPTIONS` options, evenly spread, with the first and the last one."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_OPTIONS)).round().astype(int))


def _nearest(profit: np.ndarray, index: int, gap: float) -> np.ndarray:
    """At most `MAX_OPEN_OPTIONS` indices with a profit within `gap` of the largest one, those nearest to `index`."""
    open_ = np.flatnonzero(profit >= profit.max() - gap)
    nearest = open_[np.argsort(np.abs(open_ - index), kind="stable")[: MAX_OPEN_OPTIONS - 1]]
    return np.unique(np.append(nearest, index))


# Within the limits, and filled up


def _within(groups: Sequence[Options], chosen: Sequence[int], limits: np.ndarray) -> list[int]:
    """Step down where the costs are above a limit, each time where the least value is lost for what is saved."""
    chosen = list(chosen)
    over = _total_cost(groups, chosen) - limits
    while np.any(over > 0) and any(chosen):
        rates = []
        for group, index in zip(groups, chosen, strict=True):
            saved = np.minimum(group.costs[index] - group.costs[index - 1], over.clip(0)) if index else np.zeros(1)
            weight = float((saved / np.maximum(limits, TINY)).sum()) if index else 0.0
            rates.append(group.gains[index - 1] / weight if weight > 0 else math.inf)
        cheapest = int(np.argmin(rates))
        if not math.isfinite(rates[cheapest]):
            cheapest = next(position for position, index in enumerate(chosen) if index)
        chosen[cheapest] -= 1
        over = _total_cost(groups, chosen) - limits
    return chosen


def _filled(groups: Sequence[Options], chosen: Sequence[int], limits: np.ndarray) -> list[int]:
    """Step up while any step fits, first where the value is largest for the cost; steps of no value are taken too."""
    chosen, left = list(chosen), limits - _total_cost(groups, chosen)
    steps = np.concatenate([np.diff(group.costs, axis=0) for group in groups])
    scale = np.maximum(steps.mean(axis=0), TINY) if len(steps) else np.ones(len(limits))

    def entry(position: int) -> tuple[float, int]:
        group, index = groups[position], chosen[position]
        weight = float(((group.costs[index + 1] - group.costs[index]) / scale).sum())
        return -group.gains[index] / max(weight, TINY), position

    heap = [entry(position) for position, group in enumerate(groups) if chosen[position] < len(group.gains)]
    heapq.heapify(heap)
    while heap:
        _, position = heapq.heappop(heap)
        group, index = groups[position], chosen[position]
        step = group.costs[index + 1] - group.costs[index]
        if np.any(step > left):
            continue  # it never fits later: what is left only shrinks
        chosen[position] += 1
        left = left - step
        if index + 1 < len(group.gains):
            heapq.heappush(heap, entry(position))
    return chosen


def _total_cost(groups: Sequence[Options], chosen: Sequence[int]) -> np.ndarray:
    return np.sum([group.costs[index] for group, index in zip(groups, chosen, strict=True)], axis=0)


def _total_value(groups: Sequence[Options], chosen: Sequence[int]) -> float:
    return float(sum(group.values[index] for group, index in zip(groups, chosen, strict=True)))
