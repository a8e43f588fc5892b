"""Laws of the multiple-choice knapsack: within the limits, nothing more fits, and no choice has a higher value."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest

from vitrim.costs.knapsack import MAX_OPTIONS, Options, solve


def random_groups(seed: int, counts: tuple[int, ...]) -> list[Options]:
    rng = np.random.default_rng(seed)

    def rising(*shape: int) -> np.ndarray:
        steps = rng.exponential(size=shape)
        steps[0] = 0
        return np.cumsum(steps, axis=0)

    return [Options(gains=rng.exponential(size=count - 1), costs=rising(count, 3)) for count in counts]


def cost_of(groups: list[Options], chosen: Sequence[int]) -> np.ndarray:
    return sum((group.costs[index] for group, index in zip(groups, chosen, strict=True)), np.zeros(3))


def value_of(groups: list[Options], chosen: Sequence[int]) -> float:
    return float(sum(group.values[index] for group, index in zip(groups, chosen, strict=True)))


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_has_a_higher_value(seed: int) -> None:
    groups = random_groups(seed, (5, 4, 1, 6))
    limits = 0.5 * sum(group.costs[-1] for group in groups)
    choices = product(*(range(len(group.values)) for group in groups))
    best = max(value_of(groups, chosen) for chosen in choices if np.all(cost_of(groups, chosen) <= limits))
    assert value_of(groups, solve(groups, limits)) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.7, 1.0, 2.0])
def test_within_the_limits_and_nothing_more_fits(fraction: float) -> None:
    groups = random_groups(7, (3 * MAX_OPTIONS, 90, 2, 1))
    limits = fraction * sum(group.costs[-1] for group in groups)
    chosen = solve(groups, limits)
    cost = cost_of(groups, chosen)
    assert np.all(cost <= limits + 1e-12)
    for group, index in zip(groups, chosen, strict=True):
        if index + 1 < len(group.values):
            assert np.any(cost + group.costs[index + 1] - group.costs[index] > limits)
    if fraction >= 1:
        assert chosen == [len(group.values) - 1 for group in groups]


def test_an_option_that_costs_nothing_is_chosen() -> None:
    free = Options(gains=np.array([1.0]), costs=np.zeros((2, 3)))
    assert solve([free], np.zeros(3)) == [1]


def test_an_option_without_value_is_chosen_if_it_fits() -> None:
    worthless = Options(gains=np.zeros(2), costs=np.arange(3)[:, None] * np.ones(3))
    assert solve([worthless], np.full(3, 1.5)) == [1]
