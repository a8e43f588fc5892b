"""Laws of the budget: fractions and minima are checked, and errors say how small a model can be."""

from dataclasses import replace

import pytest

from builders.models import make_structure
from vitrim.costs.budget import Budget, check_reachable, smallest_cost
from vitrim.costs.counting import Cost, block_cost, count_cost
from vitrim.errors import BudgetError, SettingError

EVEN = [(3, 8), (3, 8), (3, 8)]
TINY = Budget(params=0.7, macs=0.7, min_neurons=1)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, 70, float("nan")])
@pytest.mark.parametrize("name", ["params", "macs"])
def test_a_limit_is_a_fraction(name: str, fraction: float) -> None:
    with pytest.raises(BudgetError, match=f"{fraction:g}"):
        Budget(**{name: fraction})


@pytest.mark.parametrize("name", ["min_heads", "min_neurons", "multiple_of"])
def test_minima_are_at_least_one(name: str) -> None:
    with pytest.raises(SettingError, match=name):
        Budget(**{name: 0})


@pytest.mark.parametrize("latency_ms", [-1.0, float("inf"), float("nan")])
def test_a_latency_is_a_number_of_milliseconds(latency_ms: float) -> None:
    with pytest.raises(BudgetError, match=r"latency.* expected"):
        Budget(latency_ms=latency_ms)


def test_a_budget_that_needs_measurements_says_so() -> None:
    structure = make_structure(EVEN)
    for budget, message in ((Budget(latency_ms=3.0), "needs the times"), (Budget(multiple_of="measured"), "measured")):
        with pytest.raises(SettingError, match=message):
            check_reachable(structure, budget)


def test_an_impossible_budget_says_how_small_the_model_can_be() -> None:
    structure = make_structure(EVEN)
    params, macs = smallest_cost(structure, TINY).fraction_of(count_cost(structure))
    with pytest.raises(
        BudgetError, match=f"{100 * params:.2f} % of the parameters and {100 * macs:.2f} % of the multiply-adds"
    ):
        check_reachable(structure, replace(TINY, params=0.2, macs=0.2))
    check_reachable(structure, replace(TINY, params=params + 1e-9, macs=macs + 1e-9))


def test_an_impossible_budget_says_what_is_not_prunable() -> None:
    prunable = make_structure([(3, 8)] * 3)
    blocks = tuple(
        replace(block, groups=tuple(replace(g, not_prunable="a norm across them") for g in block.groups))
        for block in prunable.blocks
    )
    structure = replace(prunable, blocks=blocks)
    with pytest.raises(BudgetError, match=r"Not prunable: heads \(a norm across them\); neurons \(a norm"):
        check_reachable(structure, replace(TINY, params=0.2, macs=0.2))


def test_an_impossible_budget_names_a_part_that_is_not_known() -> None:
    structure = replace(make_structure(EVEN), skipped_parts=("`blocks.0.mlp` (Sequential): unknown", "`blocks.1.mlp`"))
    with pytest.raises(
        BudgetError, match=r"Not prunable: `blocks.0.mlp` \(Sequential\): unknown .and 1 more such parts."
    ):
        check_reachable(structure, replace(TINY, params=0.2, macs=0.2))


@pytest.mark.parametrize("num_removed", range(3))
def test_the_smallest_cost_is_that_of_the_smallest_plan(num_removed: int) -> None:
    structure = make_structure([(3, 8), (1, 5), (2, 1)], seed=2)
    depth = len(structure.blocks)
    kept, removed = range(depth - num_removed), range(depth - num_removed, depth)
    expected = Cost(params=structure.params, macs=structure.macs)
    for index in kept:
        num_neurons = min(4, structure.blocks[index].neurons.count)
        expected += block_cost(structure, index, {"heads": 1, "neurons": num_neurons})
    assert smallest_cost(structure, Budget(min_neurons=4), removed) == expected
