"""Laws of a budget in milliseconds: the plan takes what it promises, within the budget, though the table be wrong."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from builders.clocks import in_eights, install, steady, uneven
from builders.runs import digits, digits_model, short_recipe
from vitrim import planning
from vitrim.allocation import allocate
from vitrim.cli.options import milliseconds
from vitrim.costs import device
from vitrim.costs import latency_table as tables
from vitrim.costs.budget import Budget
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import LatencySettings
from vitrim.errors import BudgetError, SettingError
from vitrim.importance.criteria import score
from vitrim.models import describe
from vitrim.pipeline import compress, plan_only
from vitrim.recipe import Recipe
from vitrim.report import to_markdown
from vitrim.surgery import prune

FREE = {"params": 1.0, "macs": 1.0}
CLOCKS = {"steady": (steady, 1), "in eights": (in_eights, "auto"), "uneven": (uneven, 1)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "user_cache_path", lambda name: tmp_path / "cache")


def dense_model() -> nn.Module:
    return digits_model(depth=4, mlp_ratio=8.0)


def recipe_for(share: float, clock: Callable[[nn.Module], float], *, blocks: Any = 0, **budget: Any) -> Recipe:
    """A budget of this share of the dense model's milliseconds, and of nothing else."""
    return short_recipe(blocks=blocks, budget={**FREE, "latency_ms": share * clock(dense_model()), **budget})


@pytest.mark.parametrize("blocks", [0, 1, "auto"])
@pytest.mark.parametrize(("clock", "multiple_of"), CLOCKS.values(), ids=CLOCKS)
def test_the_result_takes_what_was_promised_within_the_budget(
    clock: Any, multiple_of: Any, blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(clock, monkeypatch)
    dense, recipe = dense_model(), recipe_for(0.7, clock, blocks=blocks, multiple_of=multiple_of)
    result = compress(dense, digits(), recipe, tmp_path / "run")
    budget, found = recipe.budget.latency_ms, result.report["latency"]
    assert found["promised_ms"] <= budget
    assert found["measured_ms"] == pytest.approx(clock(result.model))
    assert 0.95 * budget <= found["measured_ms"] <= 1.02 * budget
    assert found["difference"] == pytest.approx(found["measured_ms"] / found["promised_ms"] - 1)
    assert f"budget {budget:.4g} ms, predicted" in to_markdown(result.report)
    assert len(result.model.blocks) == 4 - blocks if blocks != "auto" else len(result.model.blocks) >= 3


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_table_that_is_wrong_throughout_is_corrected(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model that was cut takes longer by a third than the parts that its table is made of."""
    install(steady, monkeypatch)
    model, dense_ms = dense_model(), steady(dense_model())

    def slow(cut: nn.Module) -> float:
        return steady(cut) + 0.33 * (dense_ms - steady(cut))

    table = tables.latency_table(model, LatencySettings())
    install(slow, monkeypatch)
    monkeypatch.setattr(device, "latency_table", lambda *arguments: table)
    recipe = recipe_for(0.7, steady, blocks=blocks)
    proposal = plan_only(model, digits(), recipe)
    found = slow(prune(model, proposal.plan))
    assert found <= 1.01 * recipe.budget.latency_ms
    assert found == pytest.approx(proposal.predicted_ms, rel=0.02)


def test_on_a_rough_device_a_plan_within_the_budget_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(in_eights, monkeypatch)
    model, recipe = dense_model(), recipe_for(0.7, in_eights)
    proposal = plan_only(model, digits(), recipe)
    found = in_eights(prune(model, proposal.plan))
    assert 0.9 * proposal.predicted_ms <= found <= 1.01 * recipe.budget.latency_ms


def test_all_budgets_hold_together(monkeypatch: pytest.MonkeyPatch) -> None:
    install(steady, monkeypatch)
    model = dense_model()
    for budget in ({"latency_ms": 0.7 * steady(model)}, {"latency_ms": 10 * steady(model), "macs": 0.5}):
        recipe = recipe_for(1.0, steady, **budget)
        plan = plan_only(model, digits(), recipe).plan
        times = DeviceTimes.measure(model, recipe.budget, recipe.latency).times(describe(model))
        assert times is not None and times.total(plan) <= recipe.budget.latency_ms
        scores = score(model, [], "magnitude")
        alone = allocate(describe(model), scores, replace(recipe.budget, latency_ms=0.0))
        both = allocate(describe(model), scores, recipe.budget, times=times)
        assert times.total(both) <= times.total(alone) + 1e-9


def test_a_slack_budget_keeps_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    install(steady, monkeypatch)
    model = dense_model()
    assert plan_only(model, digits(), recipe_for(1.5, steady)).plan.keeps_all(describe(model))


@pytest.mark.parametrize("blocks", [0, 1, "auto"])
def test_a_budget_faster_than_the_smallest_model_is_refused_before_scoring(
    blocks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(steady, monkeypatch)
    monkeypatch.setattr(planning, "score", None)
    with pytest.raises(
        BudgetError, match=r"The budget allows .* ms\. The smallest possible model with \d blocks needs .* ms"
    ):
        compress(dense_model(), digits(), recipe_for(0.1, steady, blocks=blocks), tmp_path / "run")


def test_a_rerun_promises_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(steady, monkeypatch)
    recipe = recipe_for(0.6, steady, blocks=1)
    first = compress(dense_model(), digits(), recipe, tmp_path / "run")
    install(lambda model: 3 * in_eights(model), monkeypatch)  # another day, a slower machine
    (tmp_path / "run" / "report.json").unlink()
    again = compress(dense_model(), digits(), recipe, tmp_path / "run")
    assert again.plan == first.plan
    assert again.report["latency"]["promised_ms"] == first.report["latency"]["promised_ms"]


def test_a_multiple_that_is_measured_is_kept_to_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(in_eights, monkeypatch)
    recipe = short_recipe(keep=0.6, budget={"multiple_of": "auto"})
    result = compress(dense_model(), digits(), recipe, tmp_path)
    assert json.loads((tmp_path / "device.json").read_text())["multiple_of"] == 8
    assert all(len(block.neurons) % 8 == 0 for block in result.plan.blocks)
    assert result.report["latency"] is None


def test_allocate_alone_says_what_it_lacks() -> None:
    model = dense_model()
    scores = score(model, [], "magnitude")
    for budget, said in ((Budget(latency_ms=3.0), "needs the times"), (Budget(multiple_of="auto"), "auto")):
        with pytest.raises(SettingError, match=said):
            allocate(describe(model), scores, budget)


@pytest.mark.parametrize("latency_ms", [-1.0, float("inf"), float("nan")])
def test_a_budget_that_is_no_time_is_refused(latency_ms: float) -> None:
    with pytest.raises(BudgetError, match="budget for latency"):
        Budget(latency_ms=latency_ms)


def test_times_are_read_with_their_unit() -> None:
    found = [milliseconds(text) for text in ("12ms", "12", " 1.5 ms ", "0.5s", "800us", ".5ms")]
    assert found == pytest.approx([12, 12, 1.5, 500, 0.8, 0.5])
    for text in ("0ms", "-3ms", "soon", "12 parsecs", "", "1e3", "nan"):
        with pytest.raises(SettingError, match=r"--latency is .* expected a time above 0, such as 12ms"):
            milliseconds(text)
