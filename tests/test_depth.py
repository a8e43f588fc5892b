"""Laws of the number of removed blocks: `auto` needs few images, and compares numbers from 0 upwards."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.models import same_tensors
from builders.runs import FinishedRun, digits, digits_model, read_lines, short_recipe, short_training, stop
from vitrim import depth
from vitrim.compress_run import open_folder
from vitrim.costs.device import DeviceTimes
from vitrim.depth import choose_num_blocks, mean_divergence
from vitrim.errors import BudgetError
from vitrim.pipeline import compress
from vitrim.planning import Planner
from vitrim.source import Source
from vitrim.surgery import prune


def planner_for(recipe: Any, num_images: int = 60) -> Planner:
    source = Source.of(digits_model(depth=4), digits(num_images))
    return Planner(source=source, recipe=recipe, timings=DeviceTimes(multiple_of=1))


@pytest.mark.parametrize("num_images", [70, *(pytest.param(number, marks=pytest.mark.slow) for number in (40, 64))])
def test_auto_works_with_few_images(num_images: int, tmp_path: Path) -> None:
    recipe = short_recipe(blocks="auto", width_training=short_training(batch_size=4))
    planner = planner_for(recipe, num_images)
    folder = open_folder(tmp_path, planner.source, "compress", recipe)
    assert choose_num_blocks(folder, planner, planner.score(planner.source.model)) in (0, 1)


def test_a_run_with_auto_works_with_eight_images(tmp_path: Path) -> None:
    recipe = short_recipe(blocks="auto", width_training=short_training(batch_size=4))
    result = compress(digits_model(depth=4), digits(8), recipe, tmp_path)
    assert len(result.model.blocks) in (3, 4)


def test_auto_starts_at_zero_even_if_the_max_number_of_blocks_cannot_meet_the_budget(tmp_path: Path) -> None:
    recipe = short_recipe(keep=0.6, blocks="auto")
    recipe = replace(recipe, depth=replace(recipe.depth, max_share=0.5))
    planner = planner_for(recipe)
    folder = open_folder(tmp_path, planner.source, "compress", recipe)
    choose_num_blocks(folder, planner, planner.score(planner.source.model))
    tried = sorted(path.name for path in tmp_path.glob("stages/depth-search-*.json"))
    assert tried[:2] == ["depth-search-0.json", "depth-search-1.json"]


def test_a_number_of_blocks_in_the_recipe_needs_no_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = short_recipe(blocks=2)
    planner = planner_for(recipe)
    for name in ("run_job", "rank_blocks_for_removal"):
        monkeypatch.setattr(depth, name, stop)
    folder = open_folder(tmp_path, planner.source, "compress", recipe)
    assert choose_num_blocks(folder, planner, planner.score(planner.source.model)) == 2


def test_if_no_number_of_blocks_meets_the_budget_the_error_says_what_to_try(tmp_path: Path) -> None:
    recipe = short_recipe(keep=0.05, blocks="auto")
    planner = planner_for(recipe)
    folder = open_folder(tmp_path, planner.source, "compress", recipe)
    with pytest.raises(BudgetError, match=r"Set depth\.blocks to more than 1"):
        choose_num_blocks(folder, planner, planner.score(planner.source.model))


def test_the_divergence_is_zero_for_equal_models_and_positive_for_others(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    student = prune(run.dense, run.result.plan)
    assert not same_tensors(student, run.result.model)
    batches = planner_for(run.recipe).calibration
    assert mean_divergence(run.dense, run.dense, batches) == pytest.approx(0, abs=1e-7)
    assert mean_divergence(student, run.dense, batches) > 0


def test_short_candidates_leave_no_checkpoint_and_are_not_evaluated(tmp_path: Path) -> None:
    recipe = short_recipe(blocks="auto")
    planner = planner_for(recipe)
    folder = open_folder(tmp_path, planner.source, "compress", recipe)
    choose_num_blocks(folder, planner, planner.score(planner.source.model))
    assert list(tmp_path.glob("stages/depth-search-*.json")) and not list(tmp_path.rglob("*.safetensors"))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert rows and not any("top1" in row for row in rows)


def test_the_width_plan_without_removed_blocks_is_that_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short_recipe(blocks="auto")
    planner = planner_for(recipe)
    folder = open_folder(tmp_path, planner.source, "compress", recipe)
    scores = planner.score(planner.source.model)
    expected = planner.plan_width(scores, 0)
    choose_num_blocks(folder, planner, scores)
    with monkeypatch.context() as patch:
        patch.setattr(Planner, "plan_width", stop)
        assert depth.plan_width(folder, planner, scores, 0) == expected
    assert depth.plan_width(folder, planner, scores, 1) == planner.plan_width(scores, 1)
