"""The baseline Torch-Pruning: its plan is valid, within the budget and close to it."""

import pytest
import torch

pytest.importorskip("torch_pruning")

from benchmarks.torch_pruning import BEST, Settings, plan_by_torch_pruning
from builders.models import build, random_batches, same_tensors
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.errors import BudgetError
from vitrim.models import describe
from vitrim.plan import PruningPlan

BUDGET = Budget(params=0.7, macs=0.7, min_neurons=5)
SIZES = {"patch_size": 4, "mlp_ratio": 2.0, "depth": 2}


def plan_of(*, budget: Budget = BUDGET, settings: Settings = BEST) -> PruningPlan:
    return plan_by_torch_pruning(build(**SIZES), random_batches(), budget, settings=settings)


@pytest.mark.parametrize("variant", ["distilled token", pytest.param("layer scale", marks=pytest.mark.slow)])
def test_the_plan_is_within_the_budget_and_close_to_it(variant):
    model = build(variant, **{**SIZES, "mlp_ratio": 4.0})
    plan = plan_by_torch_pruning(model, random_batches(), BUDGET)
    plan.check(describe(model))
    fractions = count_cost(model, plan).fraction_of(BUDGET.limit(count_cost(model)))
    assert 0.98 <= max(fractions) <= 1


@pytest.mark.parametrize("criterion", [pytest.param("taylor", marks=pytest.mark.slow), "l2"])
def test_other_criteria_can_rank_within_blocks(criterion):
    settings = Settings(criterion=criterion, ranking="local")
    sizes = {(len(block.heads), len(block.neurons)) for block in plan_of(settings=settings).blocks}
    assert len(sizes) == 1  # the same ratio in every block


def test_minimum_widths_are_kept_at_the_smallest_budget():
    smallest = Budget(params=0.5, macs=0.5, min_neurons=5)
    plan = plan_of(budget=smallest)
    assert all(len(block.heads) >= 1 and len(block.neurons) >= 5 for block in plan.blocks)


def test_a_budget_below_every_model_is_refused():
    with pytest.raises(BudgetError, match="smallest model is above the budget"):
        plan_of(budget=Budget(params=0.1, macs=0.1))


def test_a_budget_of_the_dense_model_keeps_everything():
    assert plan_of(budget=Budget(params=1.0, macs=1.0)).keeps_all(describe(build(**SIZES)))


def test_the_same_inputs_produce_the_same_plan_and_the_model_does_not_change():
    model, state = build(**SIZES), torch.get_rng_state()
    first = plan_by_torch_pruning(model, random_batches(), BUDGET)
    assert first == plan_by_torch_pruning(model, random_batches(), BUDGET, seed=1)
    assert same_tensors(model, build(**SIZES))
    assert torch.equal(state, torch.get_rng_state())
