"""Laws of the head width: which widths are compared, what `auto` takes, and that narrow heads lose less."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, digits_model, short_recipe, short_training
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.costs.device import DeviceTimes
from vitrim.errors import SettingError
from vitrim.evaluation import evaluate
from vitrim.head_width import choose_head_width, compare_head_widths
from vitrim.importance.criteria import ImportanceSettings
from vitrim.losses import DistillationSettings
from vitrim.models import describe
from vitrim.pipeline import compress, plan_only
from vitrim.planning import Planner
from vitrim.recipe import HeadSettings
from vitrim.rotation import RotationStatistics
from vitrim.saving.checkpoint import load
from vitrim.source import Source, check, head_widths


def widths(full: int, **settings: Any) -> list[int]:
    model = digits_model(embed_dim=2 * full, num_heads=2)
    return head_widths(describe(model), short_recipe(heads=HeadSettings(**settings)))


@pytest.mark.parametrize(
    ("full", "expected"),
    [(64, [64, 48, 32, 24, 16, 8]), (32, [32, 24, 16, 8]), (16, [16, 8]), (8, [8, 4]), (12, [12, 8, 4]), (2, [2, 1])],
)
def test_auto_compares_fractions_of_the_width_in_multiples(full: int, expected: list[int]) -> None:
    assert widths(full) == expected


def test_another_multiple_gives_other_widths() -> None:
    assert widths(32, multiple_of=4) == [32, 24, 16, 12, 8, 4]
    assert widths(32, multiple_of=16) == [32, 16]
    assert widths(32, multiple_of=32) == [0]  # nothing to compare


@pytest.mark.parametrize(("width", "expected"), [("full", [0]), (8, [0]), (5, [5])])
def test_a_width_in_the_recipe_is_taken_as_it_is(width: Any, expected: list[int]) -> None:
    assert widths(8, width=width) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 9}, "heads.width is 9, but the heads of vit_tiny_patch16_224 have width 4"),
        ({"width": 3, "multiple_of": 2}, "heads.width is 3, which is no multiple of heads.multiple_of = 2"),
        ({"multiple_of": 8}, "heads.multiple_of is 8, but the heads of vit_tiny_patch16_224 have width 4"),
    ],
)
def test_a_width_that_the_model_cannot_have_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check(Source.of(digits_model()), short_recipe(heads=HeadSettings(**settings)))


@pytest.mark.parametrize("settings", [{"width": 0}, {"width": -4}, {"multiple_of": 0}])
def test_settings_below_one_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(SettingError, match="expected at least 1"):
        HeadSettings(**settings)


def test_a_loss_on_relations_needs_heads_of_full_width() -> None:
    losses = DistillationSettings(relations=1.0, relation_heads=2)
    recipe = short_recipe(width_training=short_training(distillation=losses), heads=HeadSettings())
    with pytest.raises(SettingError, match="relations compares heads of equal width"):
        check(Source.of(digits_model()), recipe)
    check(Source.of(digits_model()), replace(recipe, heads=HeadSettings(width="full")))


def planner_for(model: nn.Module, recipe: Any, num_images: int = 60) -> Planner:
    source = Source.of(model, digits(num_images))
    return Planner(source=source, recipe=recipe, timings=DeviceTimes(multiple_of=1))


def divergences_of(model: nn.Module, recipe: Any, num_images: int = 60) -> dict[int, float]:
    planner, statistics = planner_for(model, recipe, num_images), RotationStatistics()
    scores = planner.score_start(statistics)
    planner = replace(planner, rotation=planner.measure_rotation(statistics))
    return compare_head_widths(planner, scores)


def test_auto_takes_the_smallest_divergence_and_of_equal_ones_the_larger_width() -> None:
    planner = planner_for(digits_model(), short_recipe(heads=HeadSettings()))
    assert choose_head_width(planner, lambda: {4: 0.3, 2: 0.1, 1: 0.2}) == 2
    assert choose_head_width(planner, lambda: {4: 0.1001, 2: 0.1}) == 4
    assert choose_head_width(planner, lambda: {4: -1e-9, 2: 0.1}) == 4  # rounding
    assert choose_head_width(planner, lambda: {}) == 2  # no plan meets the budget yet; the smallest of [4, 2]


def test_statistics_come_from_the_scoring_or_from_passes_of_their_own() -> None:
    planner, statistics = planner_for(digits_model(), short_recipe(heads=HeadSettings())), RotationStatistics()
    scores = planner.score_start(statistics)
    gathered, measured = planner.measure_rotation(statistics), planner.measure_rotation(RotationStatistics())
    assert gathered.maps.keys() == measured.maps.keys()
    for name, maps in gathered.maps.items():
        assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(maps, measured.maps[name], strict=True))
    assert (scores.blocks == planner.score(planner.source.model).blocks).all()


def test_a_run_narrows_the_heads_and_can_be_read_again(tmp_path: Path) -> None:
    dense, recipe = digits_model(), short_recipe(keep=0.5, heads=HeadSettings(width=2))
    result = compress(dense, digits(), recipe, tmp_path)
    assert all(dict(kept.head_widths) == {"heads": 2} for kept in result.plan.blocks)
    assert describe(result.model).blocks[0].heads.width == 2
    cost, whole = count_cost(result.model), count_cost(dense)
    assert cost.params <= 0.5 * whole.params and cost.macs <= 0.5 * whole.macs
    assert same_tensors(load(tmp_path / "model"), result.model)
    again = compress(dense, digits(), recipe, tmp_path)
    assert same_tensors(again.model, result.model) and again.plan == result.plan


def test_auto_notes_the_divergence_of_each_width(tmp_path: Path) -> None:
    compress(digits_model(), digits(), short_recipe(keep=0.5, heads=HeadSettings()), tmp_path)
    assert json.loads((tmp_path / "stages" / "head-widths.json").read_text()).keys() == {"4", "2"}
    assert (tmp_path / "stages" / "rotation.safetensors").is_file()


def test_whole_heads_need_no_rotation(tmp_path: Path) -> None:
    result = compress(digits_model(), digits(), short_recipe(heads=HeadSettings(width="full")), tmp_path)
    assert not {path.name for path in (tmp_path / "stages").iterdir()} & {"rotation.safetensors", "head-widths.json"}
    assert not any(kept.head_widths for kept in result.plan.blocks)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A ViT with four heads of width 8 that recognises most digits."""
    model = digits_model(img_size=8, patch_size=2, embed_dim=32, depth=3, num_heads=4).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    images = digits(1300).train
    assert images.pixels is not None
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        for index in torch.randperm(len(images), generator=generator).split(50):
            pixels = images.pixels[index].float() / 127.5 - 1
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), images.labels[index]).backward()
            optimizer.step()
    return model.eval()


def test_narrow_heads_lose_at_most_half_of_what_whole_heads_lose(trained: nn.Module) -> None:
    """On digits at keep 0.3, after recovery and before any training."""
    settings = ImportanceSettings(num_images=400, batch_size=100, steps=2)
    recipe = short_recipe(keep=0.3, importance=settings, heads=HeadSettings())
    assert evaluate(trained, digits(400, 450)).top1 > 80
    found = divergences_of(trained, recipe, 600)
    assert min(found.values()) <= 0.5 * found[8], found


def test_a_budget_that_whole_heads_cannot_meet_is_met_by_narrow_heads() -> None:
    dense = digits_model(num_heads=1)  # every block must keep its only head
    structure = describe(dense)
    minimum = count_cost(structure.narrowed(8)).macs
    smallest = minimum - sum(block.neurons.count - 4 for block in structure.blocks) * structure.blocks[0].neurons.macs
    keep = 1.05 * smallest / count_cost(structure).macs
    budget = Budget(params=1.0, macs=keep, min_neurons=4)
    found = plan_only(dense, digits(), replace(short_recipe(), budget=budget, heads=HeadSettings(width=8)))
    assert count_cost(structure, found.plan).macs <= keep * count_cost(structure).macs
    with pytest.raises(ValueError, match="smallest possible model"):
        check(Source.of(dense), replace(short_recipe(), budget=budget, heads=HeadSettings(width="full")))
