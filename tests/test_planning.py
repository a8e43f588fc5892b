"""Laws of planning: predictions are right and within the budget, and steps cut what the steps before have left."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from builders.clocks import in_eights, install, sizes_of, steady, uneven
from builders.models import make_structure
from builders.runs import digits, digits_model, short_recipe
from vitrim import planning
from vitrim.allocation import allocate
from vitrim.costs import device
from vitrim.costs import latency_table as tables
from vitrim.costs.budget import Budget
from vitrim.costs.counting import PartCosts, count_cost
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import LatencySettings
from vitrim.errors import BudgetError
from vitrim.importance.criteria import ImportanceSettings, score
from vitrim.importance.scores import Scores
from vitrim.models import describe
from vitrim.pipeline import compress, plan_only
from vitrim.plan import PruningPlan
from vitrim.planning import Proposal, width_plan
from vitrim.recipe import HeadSettings, Recipe
from vitrim.source import Source, check
from vitrim.surgery import prune

Clock = Callable[[nn.Module], float]
CLOCKS = {"steady": (steady, 1), "in eights": (in_eights, "measured"), "uneven": (uneven, 1)}
FAST = {("uneven", "auto")}  # the other cases are tested in the slow run
CASES = [
    pytest.param(*clock, blocks, id=f"{name}-{blocks}", marks=[] if (name, blocks) in FAST else [pytest.mark.slow])
    for name, clock in CLOCKS.items()
    for blocks in (0, 1, "auto")
]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Clock], Path]:
    """A folder for the latency tables of each clock, so that each table is made once."""
    folder = tmp_path_factory.mktemp("tables")
    return lambda clock: folder / clock.__name__


@pytest.fixture
def use_clock(caches: Callable[[Clock], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[Clock], None]:
    return lambda clock: install(clock, monkeypatch, caches(clock))


def dense_model() -> nn.Module:
    return digits_model(depth=4, mlp_ratio=8.0)


def recipe_for(fraction: float, clock: Clock, *, blocks: Any = 0, **budget: Any) -> Recipe:
    """A recipe with a budget of this fraction of the dense model's milliseconds, and no other limit by default."""
    latency_ms = fraction * clock(dense_model())
    return short_recipe(blocks=blocks, budget={"params": 1.0, "macs": 1.0, "latency_ms": latency_ms, **budget})


# Budgets in milliseconds


@pytest.mark.parametrize(("clock", "multiple_of", "blocks"), CASES)
def test_the_result_needs_the_predicted_time_within_the_budget(
    clock: Clock, multiple_of: Any, blocks: Any, tmp_path: Path, use_clock: Callable[[Clock], None]
) -> None:
    use_clock(clock)
    dense, recipe = dense_model(), recipe_for(0.7, clock, blocks=blocks, multiple_of=multiple_of)
    result = compress(dense, digits(), recipe, tmp_path / "run")
    budget, found = recipe.budget.latency_ms, result.report["latency"]
    assert found["predicted_ms"] == found["promised_ms"] <= budget
    assert found["measured_ms"] == pytest.approx(clock(result.model))
    assert 0.95 * budget <= found["measured_ms"] <= 1.02 * budget
    assert found["difference"] == pytest.approx(found["measured_ms"] / found["predicted_ms"] - 1)
    assert len(result.model.blocks) == 4 - blocks if blocks != "auto" else len(result.model.blocks) >= 3


@pytest.mark.parametrize("blocks", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_wrong_table_is_corrected(
    blocks: int, use_clock: Callable[[Clock], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every smaller model saves a third less time than its table says."""
    use_clock(steady)
    model, dense_ms = dense_model(), steady(dense_model())

    def slow(cut: nn.Module) -> float:
        return steady(cut) + 0.33 * (dense_ms - steady(cut))

    table = tables.latency_table(model, LatencySettings())
    use_clock(slow)
    monkeypatch.setattr(device, "latency_table", lambda *arguments: table)
    recipe = recipe_for(0.7, steady, blocks=blocks)
    proposal = plan_only(model, digits(), recipe)
    found = slow(prune(model, proposal.plan))
    assert found <= 1.01 * recipe.budget.latency_ms
    assert found == pytest.approx(proposal.predicted_ms, rel=0.02)


def test_if_no_prediction_is_right_the_plan_is_still_within_the_budget(use_clock: Callable[[Clock], None]) -> None:
    use_clock(in_eights)
    model, recipe = dense_model(), recipe_for(0.7, in_eights)
    proposal = plan_only(model, digits(), recipe)
    found = in_eights(prune(model, proposal.plan))
    assert 0.9 * proposal.predicted_ms <= found <= 1.01 * recipe.budget.latency_ms


@pytest.mark.parametrize("budget", [{"latency_ms": 0.7}, {"latency_ms": 10.0, "macs": 0.5}], ids=["tight", "loose"])
def test_limits_on_latency_and_on_multiply_adds_hold_together(
    budget: dict[str, float], use_clock: Callable[[Clock], None]
) -> None:
    use_clock(steady)
    model = dense_model()
    recipe = recipe_for(1.0, steady, **{**budget, "latency_ms": budget["latency_ms"] * steady(model)})
    plan = plan_only(model, digits(), recipe).plan
    times = DeviceTimes.measure(model, recipe.budget, recipe.latency).times(describe(model))
    assert times is not None and times.total(plan) <= recipe.budget.latency_ms
    assert count_cost(model, plan).macs <= recipe.budget.macs * count_cost(model).macs
    scores = score(model, [], "magnitude")
    without_latency = allocate(describe(model), scores, replace(recipe.budget, latency_ms=0.0))
    both = allocate(describe(model), scores, recipe.budget, times=times)
    assert times.total(both) <= times.total(without_latency) + 1e-9


def test_a_budget_above_the_dense_latency_keeps_everything(use_clock: Callable[[Clock], None]) -> None:
    use_clock(steady)
    model = dense_model()
    assert plan_only(model, digits(), recipe_for(1.5, steady)).plan.keeps_all(describe(model))


@pytest.mark.parametrize("blocks", [0, 1, "auto"])
def test_a_budget_below_the_smallest_model_is_refused_before_scoring(
    blocks: Any, tmp_path: Path, use_clock: Callable[[Clock], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    use_clock(steady)
    monkeypatch.setattr(planning, "score", None)
    with pytest.raises(
        BudgetError, match=r"The budget allows .* ms\. The smallest possible model with \d blocks needs .* ms"
    ):
        compress(dense_model(), digits(), recipe_for(0.1, steady, blocks=blocks), tmp_path / "run")


def test_a_rerun_on_a_slower_machine_has_the_same_plan_and_prediction(
    tmp_path: Path, use_clock: Callable[[Clock], None]
) -> None:
    def slow(model: nn.Module) -> float:
        return 3 * in_eights(model)

    use_clock(steady)
    dense, recipe = dense_model(), recipe_for(0.6, steady, blocks=1)
    first = compress(dense, digits(), recipe, tmp_path / "run")
    use_clock(slow)
    (tmp_path / "run" / "report.json").unlink()
    again = compress(dense, digits(), recipe, tmp_path / "run")
    assert again.plan == first.plan
    assert again.report["latency"]["predicted_ms"] == first.report["latency"]["predicted_ms"]


def test_widths_are_multiples_of_the_measured_multiple(tmp_path: Path, use_clock: Callable[[Clock], None]) -> None:
    use_clock(in_eights)
    recipe = short_recipe(keep=0.6, budget={"multiple_of": "measured"})
    result = compress(dense_model(), digits(), recipe, tmp_path)
    assert json.loads((tmp_path / "stages" / "device.json").read_text())["multiple_of"] == 8
    assert all(len(block.neurons) % 8 == 0 for block in result.plan.blocks)
    assert result.report["latency"] is None


def test_a_proposal_is_read_as_it_was_written() -> None:
    plan = PruningPlan.full(make_structure([(2, 4), (3, 5)]))
    for predicted_ms in (0.0, 1.25):
        proposal = Proposal(plan=plan, predicted_ms=predicted_ms)
        assert Proposal.from_json(proposal.to_json()) == proposal
        assert PruningPlan.from_json(proposal.to_json()) == plan


# The width stage


def equal_scores(model: str, heads: int, neurons: int, depth: int) -> Scores:
    return Scores(
        model=model,
        criterion="taylor",
        num_images=1,
        heads=(np.ones(heads),) * depth,
        neurons=(np.ones(neurons),) * depth,
        blocks=np.ones(depth),
    )


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
def test_the_width_plan_is_above_the_budget_by_the_blocks_that_are_removed_later(num_blocks: int) -> None:
    structure = make_structure([(8, 40)] * 6, seed=4)
    scores, budget = equal_scores("made up", 8, 40, 6), Budget(params=0.6, macs=0.7)
    limit = budget.limit(count_cost(structure))
    plan = width_plan(structure, scores, budget, num_blocks)
    params, macs = (
        planning.without_largest_blocks(structure, plan, num_blocks, PartCosts.of_structure(structure, cost))
        for cost in ("params", "macs")
    )
    assert params >= limit.params or macs >= limit.macs or num_blocks == 0 or plan == PruningPlan.full(structure)
    if num_blocks == 0:
        cost = count_cost(structure, plan)
        assert cost.params <= limit.params and cost.macs <= limit.macs


@pytest.mark.parametrize(
    ("depth", "blocks", "min_neurons", "keep"), [(4, 2, 16, 0.22), (6, 2, 1, 0.13), (6, 4, 16, 0.14)]
)
def test_every_budget_that_is_accepted_has_a_width_plan(depth: int, blocks: int, min_neurons: int, keep: float) -> None:
    """These budgets are too small for a model with all blocks."""
    model = digits_model(depth=depth)
    recipe = short_recipe(keep=keep, blocks=blocks, budget={"min_neurons": min_neurons})
    check(Source.of(model), recipe)
    plan = width_plan(describe(model), score(model, [], criterion="magnitude"), recipe.budget, blocks)
    plan.check(describe(model))


@pytest.mark.parametrize(
    ("steps", "multiple_of"),
    [
        (2, 4),
        (3, 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, 1), (1, 4), (2, 1), (5, 1), (5, 4)]),
    ],
)
def test_each_step_cuts_what_the_step_before_has_left_and_the_last_one_meets_the_budget(
    steps: int, multiple_of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = digits_model(depth=4)
    recipe = short_recipe(
        keep=0.5,
        blocks=1,
        budget={"multiple_of": multiple_of},
        importance=ImportanceSettings(num_images=40, batch_size=20, steps=steps),
        heads=HeadSettings(width="full"),
    )
    plans: list[PruningPlan] = []

    def recorded_prune(model: nn.Module, plan: PruningPlan) -> nn.Module:
        plans.append(plan)
        return prune(model, plan)

    monkeypatch.setattr(planning, "prune", recorded_prune)
    plans.append(plan_only(dense, digits(), recipe).plan)
    whole, structure = count_cost(dense), describe(dense)
    assert len(plans) == steps and all(len(plan.blocks) == 3 for plan in plans)
    for step, plan in enumerate(plans, start=1):
        limit = Budget(params=0.5 ** (step / steps), macs=0.5 ** (step / steps)).limit(whole)
        cost = count_cost(structure, plan)
        assert cost.params <= limit.params and cost.macs <= limit.macs
        assert all(len(block.neurons) % multiple_of == 0 for block in plan.blocks)
    for larger, smaller in pairwise(plans):
        for before, after in zip(larger.blocks, smaller.blocks, strict=True):
            assert set(after.heads) <= set(before.heads) and set(after.neurons) <= set(before.neurons)


def test_a_prediction_that_the_measurement_misses_is_not_stated_alone() -> None:
    plan = PruningPlan.full(describe(dense_model()))
    right, wrong = (Proposal(plan=plan, predicted_ms=10.0, measured_ms=ms) for ms in (10.4, 12.0))
    assert right.latency_text() == "predicted latency: 10 ms for one forward pass"
    assert wrong.latency_text() == f"{right.latency_text()}, measured 12 ms, 20 % above the prediction"
    assert Proposal.from_json(wrong.to_json()).latency_text() == right.latency_text()


def noisy() -> Clock:
    """Every second measurement of a smaller model takes twice as long, whatever was cut."""
    fractions, whole = cycle((0.3, 0.6)), steady(dense_model())
    return lambda model: whole if sizes_of(model) == sizes_of(dense_model()) else next(fractions) * whole


@pytest.mark.parametrize(("clock", "is_wrong"), [(steady, False), (noisy(), True)], ids=["steady", "noisy"])
def test_planning_says_if_its_best_prediction_is_wrong(
    clock: Clock, is_wrong: bool, use_clock: Callable[[Clock], None], capsys: pytest.CaptureFixture[str]
) -> None:
    use_clock(clock)
    found = plan_only(dense_model(), digits(), recipe_for(0.7, clock))
    assert bool(re.search(r"the best plan of \d+ attempts? is used; predicted", capsys.readouterr().err)) == is_wrong
    assert ("the prediction" in found.latency_text()) == is_wrong
