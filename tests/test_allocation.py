"""Laws of allocation on random structures: within the budget, nothing more fits, no plan keeps more importance."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from builders.models import make_scores, make_structure
from vitrim.allocation import allocate
from vitrim.costs import knapsack
from vitrim.costs.budget import Budget, smallest_cost
from vitrim.costs.counting import Cost, block_cost, count_cost
from vitrim.errors import BudgetError, PlanMismatch, SettingError
from vitrim.importance.scores import Scores
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.plan import PruningPlan
from vitrim.structure import UNIT_KINDS, UnitKind, ViTStructure

EVEN = [(3, 8), (3, 8), (3, 8)]
UNEVEN = [(3, 8), (1, 5), (2, 1)]
TINY = Budget(params=0.7, macs=0.7, min_neurons=1)


def within(cost: Cost, limit: Cost) -> bool:
    return cost.params <= limit.params and cost.macs <= limit.macs


def kept_score(plan: PruningPlan, scores: Scores) -> float:
    """The sum of the scores of the units that are kept; negative scores count as 0."""
    kept = [scores.group(kind, k.block)[list(k.units(kind))] for k in plan.blocks for kind in UNIT_KINDS]
    return float(np.clip(np.concatenate(kept), 0, None).sum())


def best_kept_score(structure: ViTStructure, scores: Scores, budget: Budget, limit: Cost) -> float:
    """The highest `kept_score` of any plan within the limit, by trying all numbers of units."""

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
    """The plan is within the limit and above the minima, and no further unit (or multiple of neurons) fits."""
    plan.check(structure)
    cost = count_cost(structure, plan)
    assert within(cost, limit)
    for kept in plan.blocks:
        for kind, minimum, step in (
            ("heads", budget.min_heads, 1),
            ("neurons", budget.min_neurons, budget.neuron_step),
        ):
            group, count = structure.blocks[kept.block].group(kind), len(kept.units(kind))
            assert count >= min(minimum, group.count)
            if count + step <= group.count:
                assert not within(cost + Cost(params=step * group.params, macs=step * group.macs), limit)


def random_case(seed: int, *, uneven: bool) -> tuple[ViTStructure, Scores, Budget]:
    """A random structure with scores and a budget. Every third seed has ties, every fifth has negative scores."""
    rng = np.random.default_rng(seed)
    blocks = [(int(rng.integers(1, 5)), int(rng.integers(1, 30))) for _ in range(int(rng.integers(1, 6)))]
    structure = make_structure(blocks, seed=seed if uneven else None)
    scores = make_scores(structure, seed, ties=seed % 3 == 0, negative=seed % 5 == 0)
    minima = {"min_heads": int(rng.integers(1, 3)), "min_neurons": int(rng.integers(1, 10))}
    largest = Budget(**minima, multiple_of=int(rng.integers(1, 5)))
    low = max(smallest_cost(structure, largest).fraction_of(count_cost(structure)))
    params, macs = (float(rng.uniform(low, 1)) for _ in range(2))
    return structure, scores, replace(largest, params=params, macs=macs)


@pytest.fixture
def integer_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MAX_COMBINATIONS", 0)


@pytest.mark.parametrize("uneven", [False, True], ids=["even", "uneven"])
def test_a_plan_is_within_the_budget_and_no_further_unit_fits(uneven: bool) -> None:
    for seed in range(150):
        structure, scores, budget = random_case(seed, uneven=uneven)
        limit = budget.limit(count_cost(structure))
        assert_law(structure, allocate(structure, scores, budget), budget, limit)


@pytest.mark.usefixtures("integer_program")
@pytest.mark.parametrize("uneven", [pytest.param(False, marks=pytest.mark.slow), True], ids=["even", "uneven"])
def test_plans_of_the_integer_program_are_within_the_budget_and_no_further_unit_fits(uneven: bool) -> None:
    for seed in range(75):
        structure, scores, budget = random_case(seed, uneven=uneven)
        limit = budget.limit(count_cost(structure))
        assert_law(structure, allocate(structure, scores, budget), budget, limit)


@pytest.mark.parametrize("blocks", [[(2, 6), (2, 6)], [(3, 5), (1, 4)]], ids=["even", "uneven"])
@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
def test_no_other_plan_within_the_budget_keeps_more_importance(blocks: list, ties: bool) -> None:
    for seed in range(40):
        structure = make_structure(blocks, seed=seed if seed % 2 else None)
        scores = make_scores(structure, seed, ties=ties, negative=seed % 3 == 0)
        low = max(smallest_cost(structure, TINY).fraction_of(count_cost(structure)))
        params, macs = np.random.default_rng(seed).uniform(low, 1, 2).tolist()
        budget = replace(TINY, params=params, macs=macs)
        best = best_kept_score(structure, scores, budget, budget.limit(count_cost(structure)))
        assert kept_score(allocate(structure, scores, budget), scores) == pytest.approx(best, rel=1e-12)


def test_the_integer_program_agrees_with_the_enumeration(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(40):
        structure, scores, budget = random_case(seed, uneven=False)
        enumerated = kept_score(allocate(structure, scores, budget), scores)
        with monkeypatch.context() as patch:
            patch.setattr(knapsack, "MAX_COMBINATIONS", 0)
            programmed = kept_score(allocate(structure, scores, budget), scores)
        assert programmed == pytest.approx(enumerated, rel=1e-4)
        assert programmed <= enumerated * (1 + 1e-12)


def test_the_best_units_of_each_group_are_kept() -> None:
    structure = make_structure(EVEN)
    scores = make_scores(structure)
    for kept in allocate(structure, scores, TINY).blocks:
        for kind in UNIT_KINDS:
            values = scores.group(kind, kept.block)
            removed = np.delete(values, kept.units(kind))
            assert not len(removed) or removed.max() <= values[list(kept.units(kind))].min()


def test_of_equal_units_the_first_are_kept_and_the_same_plan_is_made_again() -> None:
    structure = make_structure(EVEN)
    scores = replace(make_scores(structure), heads=(np.ones(3),) * 3, neurons=(np.ones(8),) * 3)
    plan = allocate(structure, scores, TINY)
    assert plan == allocate(structure, scores, TINY)
    for kept in plan.blocks:
        assert kept.heads == tuple(range(len(kept.heads)))
        assert kept.neurons == tuple(range(len(kept.neurons)))


@pytest.mark.parametrize("blocks", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("value", [0.0, -1.0], ids=["zero", "negative"])
def test_a_budget_of_one_keeps_everything_even_units_with_a_score_of_zero(blocks: list, value: float) -> None:
    structure = make_structure(blocks, seed=1)
    scores = make_scores(structure)
    without_value = replace(scores, heads=tuple(np.full_like(heads, value) for heads in scores.heads))
    plan = allocate(structure, without_value, Budget(params=1.0, macs=1.0))
    assert plan.keeps_all(structure)


def test_the_scale_of_the_scores_does_not_matter() -> None:
    structure = make_structure(UNEVEN)
    scores = make_scores(structure)
    small = replace(
        scores,
        heads=tuple(2.0**-60 * values for values in scores.heads),
        neurons=tuple(2.0**-60 * values for values in scores.neurons),
    )
    assert allocate(structure, small, TINY) == allocate(structure, scores, TINY)


def test_a_larger_budget_never_keeps_less_importance() -> None:
    structure = make_structure(UNEVEN, seed=3)
    scores = make_scores(structure)
    fractions = np.linspace(max(smallest_cost(structure, TINY).fraction_of(count_cost(structure))), 1, 12)
    kept = [
        kept_score(allocate(structure, scores, replace(TINY, params=part, macs=part)), scores) for part in fractions
    ]
    assert kept == sorted(kept)


def test_each_limit_holds_without_the_other() -> None:
    structure = make_structure(EVEN)
    scores, whole = make_scores(structure), count_cost(structure)
    for changes in ({"params": 0.6, "macs": 1.0}, {"params": 1.0, "macs": 0.6}):
        budget = replace(TINY, **changes)
        plan = allocate(structure, scores, budget)
        assert_law(structure, plan, budget, budget.limit(whole))
        assert not plan.keeps_all(structure)


def test_widths_are_multiples_or_below_one_multiple() -> None:
    structure = make_structure([(2, 32), (2, 32), (2, 35), (2, 7)])
    budget = Budget(params=0.7, macs=0.7, min_neurons=3, multiple_of=8)
    widths = [len(kept.neurons) for kept in allocate(structure, make_scores(structure), budget).blocks]
    assert all(width % 8 == 0 for width in widths[:3])
    assert widths[3] == 7  # less than one multiple


def test_groups_that_are_not_prunable_keep_all_units() -> None:
    prunable = make_structure(EVEN)
    for kind in UNIT_KINDS:
        blocks = tuple(
            replace(block, groups=tuple(replace(g, not_prunable="why" if g.kind == kind else "") for g in block.groups))
            for block in prunable.blocks
        )
        structure = replace(prunable, blocks=blocks)
        plan = allocate(structure, make_scores(structure), replace(TINY, params=0.9, macs=0.9))
        assert all(len(kept.units(kind)) == structure.blocks[kept.block].group(kind).count for kept in plan.blocks)
        assert not plan.keeps_all(structure)


def test_without_removed_blocks_the_others_keep_more() -> None:
    structure = make_structure(EVEN)
    scores, limit = make_scores(structure), TINY.limit(count_cost(structure))
    plan = allocate(structure, scores, TINY, remove_blocks=(1,))
    assert [kept.block for kept in plan.blocks] == [0, 2]
    assert_law(structure, plan, TINY, limit)
    kept = {k.block: len(k.neurons) for k in allocate(structure, scores, TINY).blocks}
    assert sum(len(k.neurons) for k in plan.blocks) >= kept[0] + kept[2]


def test_the_budget_is_a_fraction_of_the_cost_that_is_passed() -> None:
    dense = make_structure(EVEN)
    cut = make_structure([(2, 6), (3, 8), (1, 4)])
    budget = replace(TINY, params=0.6, macs=0.6)
    plan = allocate(cut, make_scores(cut), budget, whole=count_cost(dense))
    assert_law(cut, plan, budget, budget.limit(count_cost(dense)))
    assert not within(count_cost(cut, plan), budget.limit(count_cost(cut)))


@pytest.mark.parametrize(
    ("model", "keep"),
    [
        ("vit_small_patch16_224", 0.5),
        ("swin_tiny_patch4_window7_224", 0.7),
        *(pytest.param("vit_small_patch16_224", keep, marks=pytest.mark.slow) for keep in (0.9, 0.7)),
        *(pytest.param("swin_tiny_patch4_window7_224", keep, marks=pytest.mark.slow) for keep in (0.9, 0.5)),
    ],
)
def test_the_scarcer_of_parameters_and_multiply_adds_is_used_to_99_5_percent(model: str, keep: float) -> None:
    with torch.device("meta"):
        structure = describe(create_model(model))
    plan = allocate(structure, make_scores(structure), Budget(params=keep, macs=keep))
    used = max(count_cost(structure, plan).fraction_of(count_cost(structure)))
    assert 0.995 * keep <= used <= keep


def test_what_the_budget_refuses_is_refused() -> None:
    structure = make_structure(EVEN)
    scores = make_scores(structure)
    params, macs = smallest_cost(structure, TINY).fraction_of(count_cost(structure))
    with pytest.raises(BudgetError, match=f"{100 * params:.2f} % of the parameters and {100 * macs:.2f} % of the"):
        allocate(structure, scores, replace(TINY, params=0.2, macs=0.2))
    allocate(structure, scores, replace(TINY, params=params + 1e-9, macs=macs + 1e-9))
    for budget, message in ((Budget(latency_ms=3.0), "needs the times"), (Budget(multiple_of="measured"), "measured")):
        with pytest.raises(SettingError, match=message):
            allocate(structure, scores, budget)


def test_scores_of_another_model_are_refused() -> None:
    for other in ([(3, 8), (3, 8)], [(3, 8), (3, 8), (2, 8)], [(3, 8), (3, 8), (3, 9)]):
        with pytest.raises(PlanMismatch, match="Score this model again"):
            allocate(make_structure(EVEN), make_scores(make_structure(other)), TINY)
