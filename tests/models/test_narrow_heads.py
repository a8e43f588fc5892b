"""Laws of rotated and narrowed heads, for every family: rotating changes nothing, narrowing equals silencing."""

import copy
import itertools
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from builders.counting import count_macs
from builders.exactness import EXACT, images_for, plans, relative_distance, set_fused
from builders.families_timm import build_row
from builders.models import random_plan, same_tensors
from builders.narrowing import (
    ALL_ROWS,
    BOTH,
    FAST,
    NARROWABLE,
    NO_HEADS,
    NOT_NARROWABLE,
    ONLY_VALUES,
    SETTINGS,
    groups_of_heads,
    random_head_widths,
)
from builders.rows import MADE_BY_HAND
from builders.standalone import assert_loads_with_and_without_vitrim
from vitrim.costs.counting import Cost, count_cost
from vitrim.errors import PlanMismatch
from vitrim.hooks import logits_of
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.rotation import measure_rotation, rotate
from vitrim.silencing import silence
from vitrim.surgery import prune

ROTATED = 1e-9  # relative; the inverse matrices of a rotation are rounded
MODES = list(itertools.product((True, False), (False, True)))  # fused attention, train mode
AMPLIFIED = {"NextViT": 1e-9}  # the batch norm of two single tokens amplifies how products are rounded


def slow_unless(names: set[str], rows: list[str]) -> list[object]:
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in rows]


HOOKED = {"backbone MAE"}  # a hook, which no file stores, hides the same patches in every pass

every_narrowable = pytest.mark.parametrize("family", slow_unless(FAST, NARROWABLE))
FEW = {"ViT, SwiGLU packed", "SAM", "EVA-02", "Swin V2", "transformers ViT", "torchvision Swin v2"}  # of FAST
few_narrowable = pytest.mark.parametrize("family", slow_unless(FEW, NARROWABLE))


@cache
def _built(family: str) -> nn.Module:
    return build_row(ALL_ROWS[family])


@cache
def _pair(family: str) -> tuple[nn.Module, nn.Module]:
    model = _built(family)
    images = images_for(describe(model), 3)
    return model, rotate(model, measure_rotation(model, [(images, torch.zeros(3, dtype=torch.long))]))


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """The row's model and the rotated model in float64 and eval mode, copies for each test."""
    return copy.deepcopy(_pair(family))


def set_mode(model: nn.Module, mode: tuple[bool, bool]) -> None:
    set_fused(model, mode[0])
    model.train(mode[1])


REFUSED = {"MViT v2", "BEiT-3"}  # the other rows whose heads keep their width are tested in the slow run


@pytest.mark.parametrize("family", slow_unless(FAST | REFUSED | {"XCiT"}, list(ALL_ROWS)))
def test_every_attention_can_be_narrowed_or_states_the_reason(family: str) -> None:
    groups = list(groups_of_heads(describe(_built(family))))
    reasons = [NOT_NARROWABLE[family]] if family in NOT_NARROWABLE else []
    expected = ONLY_VALUES.get(family, {BOTH})
    for group in groups:
        if group.directions is None:
            assert any(reason in group.not_narrowable for reason in reasons), group.not_narrowable
        else:
            found = group.directions.only_values or BOTH
            assert not group.not_narrowable
            assert any(part in found for part in expected), found
            assert bool(group.directions.queries) == bool(group.directions.keys) == (found == BOTH)
    assert {bool(group.directions) for group in groups} == {
        *([True] if family in NARROWABLE else []),
        *([False] if family in NOT_NARROWABLE else []),
    }
    assert bool(groups) == (family not in NO_HEADS)


@pytest.mark.parametrize("family", slow_unless(REFUSED, sorted(NOT_NARROWABLE)))
def test_narrowing_heads_that_must_keep_their_width_is_refused_with_the_reason(family: str) -> None:
    model = build_row(ALL_ROWS[family])
    structure = describe(model)
    full = PruningPlan.full(structure)
    for index, block in enumerate(structure.blocks):
        for group in block.groups:
            if group.kind == "heads" and not group.directions:
                kept = KeptBlock.of(index, dict(full.blocks[index].items()), {group.key: max(1, group.width - 1)})
                plan = PruningPlan(model=full.model, blocks=(*full.blocks[:index], kept, *full.blocks[index + 1 :]))
                if group.width > 1:
                    with pytest.raises(PlanMismatch, match=NOT_NARROWABLE[family]):
                        prune(model, plan)


@every_narrowable
@torch.no_grad()
def test_rotating_changes_nothing(family: str) -> None:
    model, rotated = pair(family)
    images = images_for(describe(model))
    assert not same_tensors(model, rotated)
    for mode in MODES:
        set_mode(model, mode), set_mode(rotated, mode)
        assert relative_distance(logits_of(rotated(images)), logits_of(model(images))) < ROTATED


@every_narrowable
@torch.no_grad()
def test_narrowing_equals_silencing(family: str) -> None:
    """Alone, and with heads and a block removed."""
    _, model = pair(family)
    structure = describe(model)
    images = images_for(structure)
    full = PruningPlan.full(structure)
    tried = [
        random_head_widths(structure, full, 0),
        *(random_head_widths(structure, plan, 1) for plan in plans(structure).values()),
    ]
    for mode in MODES:
        set_mode(model, mode)
        for plan in tried if mode == MODES[0] else tried[-1:]:
            student, dense = prune(model, plan), copy.deepcopy(model)
            with silence(dense, plan):
                expected = logits_of(dense(images))
            assert relative_distance(logits_of(student(images)), expected) < AMPLIFIED.get(family, EXACT)
    assert relative_distance(logits_of(model(images)), expected) > 1e-6  # the removed directions matter


@few_narrowable
@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fused", "unfused"])
def test_the_predicted_cost_of_narrow_heads_equals_an_independent_count(family: str, fused: bool) -> None:
    model, _ = pair(family)
    set_fused(model, fused)
    structure = describe(model)
    images = images_for(structure, 1)
    for plan in (PruningPlan.full(structure), list(plans(structure).values())[-1]):
        plan = random_head_widths(structure, plan, 2)
        student = prune(model, plan)
        params = sum(parameter.numel() for parameter in student.parameters())
        assert count_cost(structure, plan) == Cost(params=params, macs=count_macs(student, images))
        assert count_cost(student) == count_cost(structure, plan)


@few_narrowable
@torch.no_grad()
def test_narrowing_twice_equals_narrowing_by_the_composed_plan(family: str) -> None:
    """Up to rounding: the queries are multiplied by two factors instead of one."""
    _, model = pair(family)
    structure = describe(model)
    first = random_head_widths(structure, list(plans(structure).values())[-1], 3)
    once = prune(model, first)
    second = random_head_widths(describe(once), random_plan(describe(once), seed=3), 4)
    twice, one_shot = prune(once, second), prune(model, first.then(second))
    one, two = twice.state_dict(), one_shot.state_dict()
    assert list(one) == list(two)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-14, atol=1e-15)
    assert describe(twice) == describe(one_shot)
    images = images_for(structure)
    assert relative_distance(logits_of(twice(images)), logits_of(one_shot(images))) < AMPLIFIED.get(family, EXACT)


@pytest.mark.parametrize(
    "family", slow_unless(FEW, [name for name in NARROWABLE if name not in MADE_BY_HAND | SETTINGS.keys() | HOOKED])
)
@torch.no_grad()
def test_saved_narrow_models_load_with_and_without_vitrim(family: str, tmp_path: Path) -> None:
    model = build_row(ALL_ROWS[family], dtype=torch.float32)
    structure = describe(model)
    images = images_for(structure, dtype=torch.float32)
    model = rotate(model, measure_rotation(model, [(images, torch.zeros(2, dtype=torch.long))]))
    student = prune(model, random_head_widths(structure, list(plans(structure).values())[-1], 5))
    assert_loads_with_and_without_vitrim(student, images, tmp_path)
