"""The multiple-choice knapsack: of each group one option, the greatest value within several limits.

Numbers of units whose cost is not in proportion to them, such as milliseconds, cannot be taken one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

MAX_OPTIONS = 48  # of a group, for the integer program; what lies between is tried afterwards
MAX_RELATIVE_GAP = 1e-4
MAX_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """What may be taken of one group, in rising order; the first is the least.

    Attributes:
        values: `(n,)`. costs: `(n, limits)`, which need not be in proportion to the values, but never fall.
    """

    values: np.ndarray
    costs: np.ndarray


def choose(groups: Sequence[Options], limits: np.ndarray) -> list[int]:
    """Which option of each group to take; the least of all groups together must be within the `limits`, `(limits,)`."""
    taken = _integer_program(groups, limits)
    return _fill(groups, taken, limits)


def _integer_program(groups: Sequence[Options], limits: np.ndarray) -> list[int]:
    """A choice among a part of the options; the least options where the solver finds none in time."""
    offered = [_thinned(len(group.values)) for group in groups]
    values = np.concatenate([group.values[rows] for group, rows in zip(groups, offered, strict=True)])
    costs = np.concatenate([group.costs[rows] for group, rows in zip(groups, offered, strict=True)])
    scale = np.maximum(limits, 1e-12)
    group_of = np.repeat(np.arange(len(groups)), [len(rows) for rows in offered])
    one_of_each = csr_array((np.ones(len(values)), (group_of, np.arange(len(values)))), (len(groups), len(values)))
    result = milp(
        -values / (np.abs(values).max(initial=0.0) or 1.0),
        constraints=LinearConstraint(
            vstack([csr_array((costs / scale).T), one_of_each]).tocsr(),
            np.append(np.full(len(limits), -np.inf), np.ones(len(groups))),
            np.append(limits / scale, np.ones(len(groups))),
        ),
        integrality=np.ones(len(values)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": MAX_RELATIVE_GAP, "time_limit": MAX_SECONDS},
    )
    if result.x is None:
        return [0] * len(groups)
    parts = np.split(result.x, np.cumsum([len(rows) for rows in offered])[:-1])
    taken = [int(rows[np.argmax(part)]) for rows, part in zip(offered, parts, strict=True)]
    return _within(groups, taken, limits)


def _thinned(count: int) -> np.ndarray:
    """Indices of at most `MAX_OPTIONS` options, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_OPTIONS)).round().astype(int))


def _within(groups: Sequence[Options], taken: list[int], limits: np.ndarray) -> list[int]:
    """Step back where the solver, which tolerates a little, went beyond a limit."""
    taken = list(taken)
    while np.any(_cost(groups, taken) > limits) and any(taken):
        loss = [g.values[i] - g.values[i - 1] if i else np.inf for g, i in zip(groups, taken, strict=True)]
        taken[int(np.argmin(loss))] -= 1
    return taken


def _fill(groups: Sequence[Options], taken: list[int], limits: np.ndarray) -> list[int]:
    """Go on to next options while any fits, first what is worth most for its share of the limits."""
    taken, left, scale = list(taken), limits - _cost(groups, taken), np.maximum(limits, 1e-12)
    while True:
        best, best_rate = -1, -np.inf
        for index, (group, now) in enumerate(zip(groups, taken, strict=True)):
            if now + 1 == len(group.values):
                continue
            step = group.costs[now + 1] - group.costs[now]
            rate = (group.values[now + 1] - group.values[now]) / max(float((step / scale).sum()), 1e-12)
            if rate > best_rate and np.all(step <= left):
                best, best_rate = index, rate
        if best < 0:
            return taken
        taken[best] += 1
        left = limits - _cost(groups, taken)


def _cost(groups: Sequence[Options], taken: Sequence[int]) -> np.ndarray:
    return np.sum([group.costs[index] for group, index in zip(groups, taken, strict=True)], axis=0)
