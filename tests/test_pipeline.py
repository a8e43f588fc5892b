"""Laws of the whole method: the budget holds, a rerun goes on where the run stopped, and foreign folders are safe."""

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builders.models import make_structure, same_tensors
from builders.runs import digits, digits_model, read_lines, short_recipe, short_training, smallest_step
from vitrim import depth, pipeline, planning
from vitrim.costs.budget import Budget
from vitrim.costs.counting import PartCosts, count_cost
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import BudgetError, DataError, FolderInUse, SettingError
from vitrim.importance.criteria import ImportanceSettings, score
from vitrim.importance.scores import Scores
from vitrim.models import describe
from vitrim.pipeline import compress, fit, plan_only
from vitrim.plan import PruningPlan
from vitrim.planning import width_plan
from vitrim.recipe import TrainRecipe, load_recipe
from vitrim.recovery.recover import RecoverySettings
from vitrim.saving.checkpoint import fingerprint, load
from vitrim.source import Source, check
from vitrim.surgery import prune

RECIPES = {
    "width": short_recipe(keep=0.7),
    "depth": short_recipe(keep=0.6, blocks=1),
    "two blocks": short_recipe(keep=0.35, blocks=2),
    "auto": short_recipe(keep=0.6, blocks="auto"),
    "parameters": short_recipe(budget={"params": 0.5, "macs": 1.0}),
    "multiply-adds": short_recipe(blocks=1, budget={"params": 1.0, "macs": 0.5}),
    "multiple of 8": short_recipe(blocks=1, budget={"multiple_of": 8, "min_neurons": 8}),
    "no recovery": short_recipe(blocks=1, recovery=RecoverySettings(enabled=False)),
    "everything stays": short_recipe(keep=1.0),
}
RANDOM = short_training(
    epochs=2, drop_path=0.2, ema_decay=0.9, checkpoint_minutes=0.0, augmentation=AugmentationSettings()
)


class Stopped(Exception):
    pass


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def uniform_scores(model: str, heads: int, neurons: int, depth: int) -> Scores:
    return Scores(
        model=model,
        criterion="taylor",
        num_images=1,
        heads=(np.ones(heads),) * depth,
        neurons=(np.ones(neurons),) * depth,
        blocks=np.ones(depth),
    )


# The budget


@pytest.mark.parametrize("name", RECIPES)
def test_the_result_meets_the_budget(name: str, tmp_path: Path) -> None:
    recipe, dense = RECIPES[name], digits_model(depth=4)
    result = compress(dense, digits(), recipe, tmp_path / "run")
    whole, limit = count_cost(dense), recipe.budget.limit(count_cost(dense))
    for model in (result.model, load(tmp_path / "run" / "model"), prune(dense, result.plan)):
        cost = count_cost(model)
        assert cost.params == sum(value.numel() for value in model.parameters())
        assert cost.params <= limit.params and cost.macs <= limit.macs
        params, macs = smallest_step(dense, recipe.budget.multiple_of)
        near_params = limit.params - cost.params < max(0.005 * whole.params, params)
        near_macs = limit.macs - cost.macs < max(0.005 * whole.macs, macs)
        assert near_params or near_macs
    blocks = recipe.depth.blocks
    if blocks != "auto":
        assert len(result.model.blocks) == len(result.plan.blocks) == 4 - blocks
    for block in result.plan.blocks:
        assert len(block.neurons) % recipe.budget.multiple_of == 0


@pytest.mark.parametrize("name", ["depth", "auto"])
def test_the_report_has_what_the_format_promises(name: str, tmp_path: Path) -> None:
    result = compress(digits_model(depth=4), digits(), RECIPES[name], tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == result.report
    assert {"models", "stages", "environment", "recipe"} <= report.keys()
    columns = {"name", "keep", "top1", "top1_low", "top1_high", "params", "macs", "latency_ms", "file_bytes"}
    dense, small = report["models"]
    assert columns <= dense.keys() and columns <= small.keys()
    assert (dense["name"], dense["keep"], small["keep"]) == ("dense", 1.0, 0.6)
    for row in (dense, small):
        assert 0 <= row["top1_low"] <= row["top1"] <= row["top1_high"] <= 100
    assert small["file_bytes"] == (tmp_path / "model" / "model.safetensors").stat().st_size
    assert small["params"] == count_cost(result.model).params
    assert all({"name", "top1", "params", "macs"} <= stage.keys() for stage in report["stages"])
    names = [stage["name"] for stage in report["stages"]]
    assert names[:4] == ["dense", "width cut", "width recover", "width distil"]
    assert names[4:] in ([], ["depth cut", "depth recover", "depth distil"])
    assert (tmp_path / "report.md").read_text().count("%")
    assert load_recipe(tmp_path / "recipe.toml") == RECIPES[name]


def test_the_plan_in_the_folder_is_the_plan_of_the_model(tmp_path: Path) -> None:
    dense = digits_model(depth=4)
    result = compress(dense, digits(), RECIPES["depth"], tmp_path)
    plan = PruningPlan.from_json((tmp_path / "plan.json").read_text())
    assert plan == result.plan
    assert describe(prune(dense, plan)).blocks == describe(result.model).blocks
    assert same_tensors(result.model, load(tmp_path / "model"))
    assert not list(tmp_path.glob("*.checkpoint.safetensors"))


@pytest.mark.parametrize("num_blocks", [0, 1, 2, 3])
def test_the_width_plan_leaves_room_for_the_blocks(num_blocks: int) -> None:
    structure = make_structure([(8, 40)] * 6, seed=4)
    scores, budget = uniform_scores("made up", 8, 40, 6), Budget(params=0.6, macs=0.7)
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


def test_blocks_that_are_more_than_the_budget_asks_for_leave_the_width_alone(tmp_path: Path) -> None:
    dense = digits_model(depth=4)
    result = compress(dense, digits(), short_recipe(keep=0.9, blocks=2), tmp_path)
    blocks = describe(dense).blocks
    assert [(len(kept.heads), len(kept.neurons)) for kept in result.plan.blocks] == [
        (blocks[kept.block].heads.count, blocks[kept.block].neurons.count) for kept in result.plan.blocks
    ]


@pytest.mark.parametrize("blocks", [0, 1, "auto"])
def test_a_budget_below_the_smallest_model_is_refused_before_anything_is_written(blocks: Any, tmp_path: Path) -> None:
    recipe = short_recipe(keep=0.05, blocks=blocks)
    with pytest.raises(
        BudgetError, match=r"smallest possible model with \d blocks needs [\d.]+% of the parameters and [\d.]+% of"
    ):
        compress(digits_model(), digits(), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_blocks_than_there_are_cannot_go() -> None:
    with pytest.raises(SettingError, match="3 blocks are to be removed, but the model has 3"):
        check(Source.of(digits_model()), short_recipe(blocks=3))


def test_auto_gives_up_on_so_many_blocks_that_the_budget_has_no_room(tmp_path: Path) -> None:
    """The most blocks must not be the only way to reach the budget for `auto` to start."""
    recipe = short_recipe(keep=0.6, blocks="auto")
    recipe = replace(recipe, depth=replace(recipe.depth, max_share=0.5))
    compress(digits_model(depth=4), digits(), recipe, tmp_path)
    tried = sorted(path.name for path in tmp_path.glob("depth-search-*.json"))
    assert tried[:2] == ["depth-search-0.json", "depth-search-1.json"]


@pytest.mark.parametrize("num_images", [8, 40, 64, 70])
def test_auto_works_with_few_images(num_images: int, tmp_path: Path) -> None:
    recipe = short_recipe(blocks="auto", width_training=short_training(batch_size=4))
    result = compress(digits_model(depth=4), digits(num_images), recipe, tmp_path)
    assert len(result.model.blocks) in (3, 4)


# Interrupted and repeated


@pytest.mark.parametrize("stage", ["depth-search-1", "width", "depth"])
def test_a_rerun_after_a_crash_ends_as_an_uninterrupted_run(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = "auto" if "search" in stage else 1
    recipe = short_recipe(blocks=blocks, width_training=RANDOM, depth_training=RANDOM)
    dense = digits_model(depth=4)
    whole = compress(dense, digits(), recipe, tmp_path / "whole")
    train = pipeline.train

    def crashing(*arguments: Any, **options: Any) -> Any:
        if options["stage"] == stage:
            raise Stopped
        return train(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(depth if "search" in stage else pipeline, "train", crashing)
        compress(dense, digits(), recipe, tmp_path / "run")
    before = files(tmp_path / "run")
    assert "report.json" not in before and "model/config.json" not in before
    torch.manual_seed(5)  # a new process has another random state
    scored = []
    score = planning.score
    monkeypatch.setattr(planning, "score", lambda model, *a, **o: scored.append(model) or score(model, *a, **o))
    again = compress(dense, digits(), recipe, tmp_path / "run")
    assert same_tensors(whole.model, again.model)
    assert whole.plan == again.plan
    assert not any(same_tensors(model, dense) for model in scored)
    assert (tmp_path / "run" / "scores.safetensors").read_bytes() == before["scores.safetensors"]
    rows = [(row["stage"], row["epoch"]) for row in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert len(rows) == len(set(rows))
    assert [s["name"] for s in whole.report["stages"]] == [s["name"] for s in again.report["stages"]]
    assert [s["top1"] for s in whole.report["stages"]] == [s["top1"] for s in again.report["stages"]]


def test_a_finished_run_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, recipe = digits_model(depth=4), short_recipe(blocks=1)
    first = compress(dense, digits(), recipe, tmp_path)
    before = files(tmp_path)
    for name in ("train", "recover", "evaluate", "measure_latencies", "rank_blocks_for_removal"):
        monkeypatch.setattr(pipeline, name, _stop)
    for name in ("score", "recover", "allocate", "measure_latencies", "rank_blocks_for_removal"):
        monkeypatch.setattr(planning, name, _stop)
    for name in ("train", "recover", "rank_blocks_for_removal"):
        monkeypatch.setattr(depth, name, _stop)
    second = compress(dense, digits(), recipe, tmp_path)
    assert same_tensors(first.model, second.model)
    assert (first.plan, first.report) == (second.plan, second.report)
    assert files(tmp_path) == before


def _stop(*arguments: Any, **options: Any) -> Any:
    raise Stopped


def test_the_dense_model_is_untouched(tmp_path: Path) -> None:
    dense = digits_model(depth=4).train()
    before = copy.deepcopy(dense)
    compress(dense, digits(), short_recipe(blocks="auto"), tmp_path)
    assert same_tensors(before, dense)
    assert all(module.training for module in dense.modules())
    assert all(value.grad is None and value.requires_grad for value in dense.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in dense.modules())


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_narrowing_in_steps_ends_at_the_budget_and_each_step_cuts_what_the_last_one_left(
    steps: int, multiple_of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = digits_model(depth=4)
    recipe = short_recipe(
        keep=0.5,
        blocks=1,
        budget={"multiple_of": multiple_of},
        importance=ImportanceSettings(num_images=40, batch_size=20, steps=steps),
    )
    plans: list[PruningPlan] = []

    def noted(model: nn.Module, plan: PruningPlan) -> nn.Module:
        plans.append(plan)
        return prune(model, plan)

    monkeypatch.setattr(planning, "prune", noted)
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


def test_given_scores_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, data = digits_model(), digits()
    first = compress(dense, data, short_recipe(keep=0.7), tmp_path / "first")
    scores = Scores.load(tmp_path / "first" / "scores.safetensors")
    scored = []
    score = planning.score
    monkeypatch.setattr(planning, "score", lambda model, *a, **o: scored.append(model) or score(model, *a, **o))
    again = compress(dense, data, short_recipe(keep=0.7), tmp_path / "again", scores=scores)
    assert not any(same_tensors(model, dense) for model in scored)
    assert same_tensors(first.model, again.model)
    other = compress(dense, data, short_recipe(keep=0.5), tmp_path / "other", scores=scores)
    assert count_cost(other.model).params < count_cost(again.model).params


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"recipe": short_recipe(keep=0.5)}, "recipe.budget.params was 0.7, now 0.5"),
        ({"model": digits_model(seed=1)}, "model.weights was"),
        ({"data": digits(50)}, "data.training images was 60, now 50"),
    ],
    ids=["recipe", "model", "data"],
)
def test_another_run_in_the_same_folder_is_refused(other: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {"model": digits_model(), "data": digits(), "recipe": short_recipe(keep=0.7)}
    compress(**given, run_dir=tmp_path)
    before = files(tmp_path)
    with pytest.raises(FolderInUse, match=said):
        compress(**{**given, **other}, run_dir=tmp_path)
    assert files(tmp_path) == before


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FolderInUse, match="not empty"):
        compress(digits_model(), digits(), short_recipe(), tmp_path)
    assert files(tmp_path) == {"thesis.tex": b"precious"}


# The other verbs


def test_plan_only_gives_a_plan_within_the_budget() -> None:
    dense = digits_model(depth=4)
    for blocks in (0, 2, "auto"):
        recipe = short_recipe(keep=0.4, blocks=blocks)
        plan = plan_only(dense, digits(), recipe).plan
        cost, limit = count_cost(prune(dense, plan)), recipe.budget.limit(count_cost(dense))
        assert cost.params <= limit.params and cost.macs <= limit.macs
        assert len(plan.blocks) == 4 - (blocks if isinstance(blocks, int) else 0)


def test_fit_trains_and_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recipe = digits_model(), TrainRecipe(training=short_training(epochs=2))
    trained = fit(model, digits(), recipe, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluation.json",
        "metrics.jsonl",
        "model",
        "recipe.toml",
        "run.json",
    ]
    monkeypatch.setattr(pipeline, "train", _stop)
    assert same_tensors(trained, fit(model, digits(), recipe, tmp_path))
    with pytest.raises(FolderInUse, match=r"recipe\.seed was 0, now 1"):
        fit(model, digits(), replace(recipe, seed=1), tmp_path)


def test_data_with_more_classes_than_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 classes, but the model has 7 outputs"):
        compress(digits_model(num_classes=7), digits(), short_recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scores_of_another_model_or_criterion_are_refused(tmp_path: Path) -> None:
    dense, data = digits_model(), digits()
    own = score(dense, [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))])
    other_criterion = short_recipe(importance=replace(short_recipe().importance, criterion="taylor"))
    with pytest.raises(SettingError, match="made by fisher; the recipe asks for taylor"):
        compress(dense, data, other_criterion, tmp_path / "run", scores=own)
    unknown_files = replace(own, weights=fingerprint(digits_model(seed=1)))
    with pytest.raises(SettingError, match="other weights"):
        compress(dense, data, short_recipe(), tmp_path / "run", scores=unknown_files)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("depth", "blocks", "min_neurons", "keep"), [(4, 2, 16, 0.22), (6, 2, 1, 0.13), (6, 4, 16, 0.14)]
)
def test_every_budget_that_is_admitted_gets_a_width_plan(
    depth: int, blocks: int, min_neurons: int, keep: float
) -> None:
    model = digits_model(depth=depth)
    wanted = short_recipe(keep=keep, blocks=blocks, budget={"min_neurons": min_neurons})
    check(Source.of(model), wanted)  # too small with all blocks, possible without those that go later
    plan = width_plan(describe(model), score(model, [], criterion="magnitude"), wanted.budget, blocks)
    plan.check(describe(model))


def test_what_cannot_be_trained_is_refused_before_the_folder_is_made(tmp_path: Path) -> None:
    odd = short_recipe(width_training=short_training(batch_size=33))
    with pytest.raises(SettingError, match="batch_size is 33"):
        compress(digits_model(), digits(), odd, tmp_path / "run")
    assert not (tmp_path / "run").exists()
