"""Laws of the allocation, on random structures: within the budget, nothing more fits, no other plan is worth more."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from builders.models import make_structure
from vitrim.allocation import allocate
from vitrim.costs import knapsack as module
from vitrim.costs.budget import Budget, smallest_cost
from vitrim.costs.counting import Cost, block_cost, count_cost
from vitrim.errors import BudgetError, PlanMismatch, SettingError
from vitrim.importance.scores import Scores
from vitrim.plan import PruningPlan
from vitrim.structure import UNIT_KINDS, UnitKind, ViTStructure

EVEN = [(3, 8), (3, 8), (3, 8)]
UNEVEN = [(3, 8), (1, 5), (2, 1)]
TINY = Budget(params=0.7, macs=0.7, min_neurons=1)


def make_scores(structure: ViTStructure, seed: int = 0, *, ties: bool = False, negative: bool = False) -> Scores:
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        values = rng.integers(0, 3, count).astype(float) if ties else rng.exponential(size=count)
        return values - 0.5 * negative

    return Scores(
        model=structure.model,
        criterion="taylor",
        num_images=1,
        heads=tuple(10 * draw(block.heads.count) for block in structure.blocks),
        neurons=tuple(draw(block.neurons.count) for block in structure.blocks),
        blocks=draw(len(structure.blocks)),
    )


def within(cost: Cost, limit: Cost) -> bool:
    return cost.params <= limit.params and cost.macs <= limit.macs


def worth(plan: PruningPlan, scores: Scores) -> float:
    """What the plan keeps; a unit that harms counts as nothing."""
    kept = [scores.group(kind, k.block)[list(k.units(kind))] for k in plan.blocks for kind in UNIT_KINDS]
    return float(np.clip(np.concatenate(kept), 0, None).sum())


def best_worth(structure: ViTStructure, scores: Scores, budget: Budget, limit: Cost) -> float:
    """The most that any numbers of units within the limit keep, by trying all of them."""

    def prefix_sums(kind: UnitKind, index: int) -> np.ndarray:
        return np.append(0, np.cumsum(np.clip(np.sort(scores.group(kind, index))[::-1], 0, None)))

    sums = {(kind, i): prefix_sums(kind, i) for i in range(len(structure.blocks)) for kind in UNIT_KINDS}
    options = []
    for i, block in enumerate(structure.blocks):
        heads = range(min(budget.min_heads, block.heads.count), block.heads.count + 1)
        neurons = range(min(budget.min_neurons, block.neurons.count), block.neurons.count + 1)
        options.append(
            [(block_cost(structure, i, {"heads": h, "neurons": n}), sums["heads", i][h] + sums["neurons", i][n])
             for h, n in product(heads, neurons)]
        )  # fmt: skip
    outside = Cost(params=structure.params, macs=structure.macs)
    best = -np.inf
    for choice in product(*options):
        cost = sum((cost for cost, _ in choice), outside)
        if within(cost, limit):
            best = max(best, sum(value for _, value in choice))
    return best


def assert_law(structure: ViTStructure, plan: PruningPlan, budget: Budget, limit: Cost) -> None:
    """The plan is within the limit and its minima, and no further unit (or multiple of neurons) fits."""
    plan.check(structure)
    cost = count_cost(structure, plan)
    assert within(cost, limit)
    for kept in plan.blocks:
        for kind, least, step in (("heads", budget.min_heads, 1), ("neurons", budget.min_neurons, budget.multiple_of)):
            group, count = structure.blocks[kept.block].group(kind), len(kept.units(kind))
            assert count >= min(least, group.count)
            if count + step <= group.count:
                assert not within(cost + Cost(params=step * group.params, macs=step * group.macs), limit)


def random_case(seed: int, *, uneven: bool) -> tuple[ViTStructure, Scores, Budget]:
    """A structure, its scores and a budget, drawn at random; every third seed has ties, every fifth harmful units."""
    rng = np.random.default_rng(seed)
    blocks = [(int(rng.integers(1, 5)), int(rng.integers(1, 30))) for _ in range(int(rng.integers(1, 6)))]
    structure = make_structure(blocks, seed=seed if uneven else None)
    scores = make_scores(structure, seed, ties=seed % 3 == 0, negative=seed % 5 == 0)
    minima = {"min_heads": int(rng.integers(1, 3)), "min_neurons": int(rng.integers(1, 10))}
    loosest = Budget(**minima, multiple_of=int(rng.integers(1, 5)))
    low = max(smallest_cost(structure, loosest).fraction_of(count_cost(structure)))
    params, macs = (float(rng.uniform(low, 1)) for _ in range(2))
    return structure, scores, replace(loosest, params=params, macs=macs)


@pytest.fixture
def integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMBINATIONS", 0)


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_never_above_the_budget_and_no_further_unit_fits(uneven: bool) -> None:
    for seed in range(150):
        structure, scores, budget = random_case(seed, uneven=uneven)
        limit = budget.limit(count_cost(structure))
        assert_law(structure, allocate(structure, scores, budget), budget, limit)


@pytest.mark.usefixtures("integer_program")
@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_the_integer_program_obeys_the_same_law(uneven: bool) -> None:
    for seed in range(150):
        structure, scores, budget = random_case(seed, uneven=uneven)
        limit = budget.limit(count_cost(structure))
        assert_law(structure, allocate(structure, scores, budget), budget, limit)


@pytest.mark.parametrize("blocks", [[(2, 6), (2, 6)], [(3, 5), (1, 4)]], ids=["even", "uneven"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_no_other_plan_within_the_budget_is_worth_more(blocks: list, ties: bool) -> None:
    for seed in range(40):
        structure = make_structure(blocks, seed=seed if seed % 2 else None)
        scores = make_scores(structure, seed, ties=ties, negative=seed % 3 == 0)
        low = max(smallest_cost(structure, TINY).fraction_of(count_cost(structure)))
        shares = np.random.default_rng(seed).uniform(low, 1, 2).tolist()
        budget = replace(TINY, params=shares[0], macs=shares[1])
        best = best_worth(structure, scores, budget, budget.limit(count_cost(structure)))
        assert worth(allocate(structure, scores, budget), scores) == pytest.approx(best, rel=1e-12)


def test_the_integer_program_agrees_with_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(40):
        structure, scores, budget = random_case(seed, uneven=False)
        enumerated = worth(allocate(structure, scores, budget), scores)
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_COMBINATIONS", 0)
            programmed = worth(allocate(structure, scores, budget), scores)
        assert programmed == pytest.approx(enumerated, rel=1e-4)
        assert programmed <= enumerated * (1 + 1e-12)


def test_the_best_units_of_each_group_are_kept() -> None:
    structure = make_structure(EVEN)
    scores = make_scores(structure)
    for kept in allocate(structure, scores, TINY).blocks:
        for kind in UNIT_KINDS:
            values = scores.group(kind, kept.block)
            gone = np.delete(values, kept.units(kind))
            assert not len(gone) or gone.max() <= values[list(kept.units(kind))].min()


def test_of_equal_units_the_first_are_kept_and_the_plan_is_repeatable() -> None:
    structure = make_structure(EVEN)
    scores = replace(make_scores(structure), heads=(np.ones(3),) * 3, neurons=(np.ones(8),) * 3)
    plan = allocate(structure, scores, TINY)
    assert plan == allocate(structure, scores, TINY)
    for kept in plan.blocks:
        assert kept.heads == tuple(range(len(kept.heads)))
        assert kept.neurons == tuple(range(len(kept.neurons)))


@pytest.mark.parametrize("blocks", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("value", [0.0, -1.0], ids=["worthless", "harmful"])
def test_the_whole_budget_keeps_everything_even_worthless_units(blocks: list, value: float) -> None:
    structure = make_structure(blocks, seed=1)
    scores = make_scores(structure)
    useless = replace(scores, heads=tuple(np.full_like(heads, value) for heads in scores.heads))
    plan = allocate(structure, useless, Budget(params=1.0, macs=1.0))
    assert plan.keeps_all(structure)


def test_scale_of_the_scores_does_not_matter() -> None:
    structure = make_structure(UNEVEN)
    scores = make_scores(structure)
    small = replace(
        scores,
        heads=tuple(2.0**-60 * values for values in scores.heads),
        neurons=tuple(2.0**-60 * values for values in scores.neurons),
    )
    assert allocate(structure, small, TINY) == allocate(structure, scores, TINY)


def test_a_larger_budget_never_keeps_less_worth() -> None:
    structure = make_structure(UNEVEN, seed=3)
    scores = make_scores(structure)
    shares = np.linspace(max(smallest_cost(structure, TINY).fraction_of(count_cost(structure))), 1, 12)
    kept = [worth(allocate(structure, scores, replace(TINY, params=share, macs=share)), scores) for share in shares]
    assert kept == sorted(kept)


def test_each_limit_binds_alone() -> None:
    structure = make_structure(EVEN)
    scores, whole = make_scores(structure), count_cost(structure)
    for changes in ({"params": 0.6, "macs": 1.0}, {"params": 1.0, "macs": 0.6}):
        budget = replace(TINY, **changes)
        plan = allocate(structure, scores, budget)
        assert_law(structure, plan, budget, budget.limit(whole))
        assert not plan.keeps_all(structure)


def test_widths_are_multiples_or_whole() -> None:
    structure = make_structure([(2, 32), (2, 32), (2, 35), (2, 7)])
    budget = Budget(params=0.7, macs=0.7, min_neurons=3, multiple_of=8)
    widths = [len(kept.neurons) for kept in allocate(structure, make_scores(structure), budget).blocks]
    assert all(width % 8 == 0 for width in widths[:3])
    assert widths[3] == 7  # less than one multiple


def test_locked_groups_are_kept_whole() -> None:
    free = make_structure(EVEN)
    for kind in UNIT_KINDS:
        blocks = tuple(
            replace(block, groups=tuple(replace(g, not_prunable="why" if g.kind == kind else "") for g in block.groups))
            for block in free.blocks
        )
        structure = replace(free, blocks=blocks)
        plan = allocate(structure, make_scores(structure), replace(TINY, params=0.9, macs=0.9))
        assert all(len(kept.units(kind)) == structure.blocks[kept.block].group(kind).count for kept in plan.blocks)
        assert not plan.keeps_all(structure)


def test_removed_blocks_are_gone_and_leave_their_room_to_the_others() -> None:
    structure = make_structure(EVEN)
    scores, limit = make_scores(structure), TINY.limit(count_cost(structure))
    plan = allocate(structure, scores, TINY, remove_blocks=(1,))
    assert [kept.block for kept in plan.blocks] == [0, 2]
    assert_law(structure, plan, TINY, limit)
    kept = {k.block: len(k.neurons) for k in allocate(structure, scores, TINY).blocks}
    assert sum(len(k.neurons) for k in plan.blocks) >= kept[0] + kept[2]


def test_the_budget_is_a_share_of_the_whole_that_is_given() -> None:
    dense = make_structure(EVEN)
    cut = make_structure([(2, 6), (3, 8), (1, 4)])
    budget = replace(TINY, params=0.6, macs=0.6)
    plan = allocate(cut, make_scores(cut), budget, whole=count_cost(dense))
    assert_law(cut, plan, budget, budget.limit(count_cost(dense)))
    assert not within(count_cost(cut, plan), budget.limit(count_cost(cut)))


def test_an_impossible_budget_says_how_small_the_model_can_be() -> None:
    structure = make_structure(EVEN)
    params, macs = smallest_cost(structure, TINY).fraction_of(count_cost(structure))
    with pytest.raises(BudgetError, match=f"{params:.2%} of the parameters and {macs:.2%} of the multiply-adds"):
        allocate(structure, make_scores(structure), replace(TINY, params=0.2, macs=0.2))
    allocate(structure, make_scores(structure), replace(TINY, params=params + 1e-9, macs=macs + 1e-9))


def test_the_smallest_cost_is_that_of_the_smallest_plan() -> None:
    structure = make_structure(UNEVEN, seed=2)
    for removed in range(3):
        left, gone = (
            range(len(structure.blocks) - removed),
            range(len(structure.blocks) - removed, len(structure.blocks)),
        )
        expected = sum(
            (
                block_cost(structure, index, {"heads": 1, "neurons": min(4, structure.blocks[index].neurons.count)})
                for index in left
            ),
            Cost(params=structure.params, macs=structure.macs),
        )
        assert smallest_cost(structure, Budget(min_neurons=4), gone) == expected


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, 70, float("nan")])
@pytest.mark.parametrize("name", ["params", "macs"])
def test_a_budget_is_a_share(name: str, share: float) -> None:
    with pytest.raises(BudgetError, match=f"{share:g}"):
        Budget(**{name: share})


@pytest.mark.parametrize("name", ["min_heads", "min_neurons", "multiple_of"])
def test_minima_are_at_least_one(name: str) -> None:
    with pytest.raises(SettingError, match=name):
        Budget(**{name: 0})


def test_scores_of_another_model_are_refused() -> None:
    for other in ([(3, 8), (3, 8)], [(3, 8), (3, 8), (2, 8)], [(3, 8), (3, 8), (3, 9)]):
        with pytest.raises(PlanMismatch, match="Score this model again"):
            allocate(make_structure(EVEN), make_scores(make_structure(other)), TINY)


def test_a_budget_out_of_reach_names_what_is_not_prunable() -> None:
    free = make_structure([(3, 8)] * 3)
    blocks = tuple(
        replace(block, groups=tuple(replace(g, not_prunable="a norm across them") for g in block.groups))
        for block in free.blocks
    )
    structure = replace(free, blocks=blocks)
    with pytest.raises(BudgetError, match=r"Not prunable: heads \(a norm across them\); neurons \(a norm"):
        allocate(structure, make_scores(structure), replace(TINY, params=0.2, macs=0.2))
