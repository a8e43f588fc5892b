"""Laws that every family keeps: pruning equals silencing, costs add up, scores are slopes of the loss, files load."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from builders.counting import count_macs
from builders.exactness import EXACT, images_for, plans, relative_distance, removable, set_fused
from builders.families_hybrids import TIMM_HYBRIDS
from builders.families_timm import TIMM, build_row
from builders.models import random_plan, same_tensors
from builders.rows import EACH_KIND, MADE_BY_HAND, NOT_PRUNABLE, ROWS
from builders.standalone import assert_loads_with_and_without_vitrim
from vitrim.costs.counting import Cost, count_cost
from vitrim.hooks import logits_of
from vitrim.importance.blocks import losses_without, mean_loss
from vitrim.importance.criteria import score
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.recovery.recover import recover
from vitrim.silencing import gated, silence, skipping, unit_gate
from vitrim.surgery import prune

ROWS_WITH_VARIANTS = {name for name in ROWS.keys() - TIMM.keys() if "," in name}
LARGE = {"ViTamin", "MaxViT of TensorFlow", "MaxxViT", "MaxxViT v2", "Hiera of SAM 2"}
IN_SLOW_RUN = (TIMM_HYBRIDS.keys() | ROWS_WITH_VARIANTS | LARGE) - EACH_KIND
PARAMETERS = [pytest.param(name, marks=pytest.mark.slow) if name in IN_SLOW_RUN else name for name in ROWS]
FAST_KINDS = EACH_KIND - {"MaxViT"}  # it needs as long as five other rows
REPRESENTATIVES = [name if name in FAST_KINDS else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
every_family = pytest.mark.parametrize("family", PARAMETERS)
every_kind = pytest.mark.parametrize("family", REPRESENTATIVES)
SAVED_IN_FAST_RUN = {"ViT, SwiGLU packed", "EVA-02", "BEiT", "Swin", "XCiT", "transformers Swin", "torchvision ViT"}


@cache
def _built(family: str) -> nn.Module:
    return build_row(ROWS[family])


def built(family: str) -> nn.Module:
    """The row's model in float64 and eval mode, a copy for each test."""
    return copy.deepcopy(_built(family))


@every_family
def test_parts_that_are_not_prunable_state_the_reason(family: str) -> None:
    """Every row can lose heads, neurons or blocks; `NOT_PRUNABLE` lists the others with a part of the reason."""
    structure = describe(built(family))
    reasons = {
        group.kind: group.not_prunable for block in structure.blocks for group in block.groups if group.not_prunable
    }
    reasons |= {} if removable(structure) else {"blocks": structure.blocks[0].not_prunable}
    assert reasons.keys() == NOT_PRUNABLE.get(family, {}).keys()
    for kind, reason in reasons.items():
        assert NOT_PRUNABLE[family][kind] in reason
    assert structure.blocks
    assert len(reasons) < 3


@torch.no_grad()
def assert_pruning_equals_silencing(model: nn.Module, plan: PruningPlan) -> None:
    images = images_for(describe(model))
    student, dense = prune(model, plan), copy.deepcopy(model)
    with silence(dense, plan):
        expected = logits_of(dense(images))
    assert relative_distance(logits_of(student(images)), expected) < EXACT
    assert relative_distance(logits_of(model(images)), expected) > 1e-6  # the removed parts matter


@every_family
def test_pruning_equals_silencing(family: str) -> None:
    """By a plan with all kinds of parts that can be removed."""
    model = built(family)
    structure = describe(model)
    tried = [plan for plan in plans(structure).values() if not plan.keeps_all(structure)]
    assert_pruning_equals_silencing(model, tried[-1])


@every_kind
@pytest.mark.parametrize(
    ("fused", "training"),
    [
        (True, False),
        (False, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)
def test_pruning_equals_silencing_in_every_mode(family: str, fused: bool, training: bool) -> None:
    """On the fused attention path in eval mode, by every plan."""
    model = built(family)
    structure = describe(model)
    set_fused(model, fused)
    model.train(training)
    tried = [plan for plan in plans(structure).values() if not plan.keeps_all(structure)]
    for plan in tried[:-1] if fused and not training else tried[-1:]:
        assert_pruning_equals_silencing(model, plan)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("family", sorted(EACH_KIND))
@torch.no_grad()
def test_pruning_equals_silencing_after_compiling(family: str) -> None:
    model = built(family)
    structure = describe(model)
    images = images_for(structure)
    plan = list(plans(structure).values())[-1]
    student = torch.compile(prune(model, plan), backend="aot_eager")
    with silence(model, plan):
        expected = logits_of(model(images))
    assert relative_distance(logits_of(student(images)), expected) < EXACT


@every_kind
@torch.no_grad()
def test_keeping_everything_changes_nothing(family: str) -> None:
    model = built(family)
    structure = describe(model)
    images = images_for(structure)
    student = prune(model, PruningPlan.full(structure))
    assert same_tensors(student, model)
    assert torch.equal(logits_of(student(images)), logits_of(model(images)))


@every_kind
def test_pruning_twice_equals_pruning_by_the_composed_plan(family: str) -> None:
    model = built(family)
    first = list(plans(describe(model)).values())[-1]
    once = prune(model, first)
    second = random_plan(describe(once), seed=3)
    twice, one_shot = prune(once, second), prune(model, first.then(second))
    assert same_tensors(twice, one_shot)
    images = images_for(describe(model))
    with torch.no_grad():
        assert torch.equal(logits_of(twice(images)), logits_of(one_shot(images)))


@every_kind
@pytest.mark.parametrize("fused", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fused", "unfused"])
def test_the_predicted_cost_equals_an_independent_count(family: str, fused: bool) -> None:
    model = built(family)
    set_fused(model, fused)
    structure = describe(model)
    images = images_for(structure, 1)
    for plan in [PruningPlan.full(structure), *plans(structure).values()]:
        student = prune(model, plan)
        params = sum(parameter.numel() for parameter in student.parameters())
        assert count_cost(structure, plan) == Cost(params=params, macs=count_macs(student, images))


@every_kind
def test_scores_are_slopes_of_the_loss(family: str) -> None:
    """For the first and last unit of each group, compared with autograd through a gate on the unit's columns."""
    model = built(family)
    structure = describe(model)
    images, label = images_for(structure, 2), torch.tensor([1, 2])
    found = score(model, [(images, label)], "taylor")
    for index, block in enumerate(structure.blocks):
        for group in block.groups:
            if group.not_prunable:
                continue
            for unit in {0, group.count - 1}:
                slopes = []
                for i in range(2):
                    gate = unit_gate(group, tuple(range(group.count))).double().requires_grad_()
                    with gated(
                        model, [(group, gate)]
                    ):  # the image twice: torch's batch norm computes wrong gradients for one image
                        loss = F.cross_entropy(logits_of(model(images[[i, i]]))[:1], label[i : i + 1])
                    slope = torch.autograd.grad(loss, gate)[0].view(group.count, group.width)[unit].sum()
                    slopes.append(slope.abs().item())
                assert found.group(group.key, index)[unit] == pytest.approx(sum(slopes) / 2, rel=1e-6, abs=1e-12)


@every_kind
@torch.no_grad()
def test_the_loss_without_a_block_equals_that_of_a_forward_pass_that_skips_it(family: str) -> None:
    model = built(family)
    structure = describe(model)
    if len(removable(structure)) < 2:
        pytest.skip("at most one block can be removed")
    batches = [(images_for(structure), torch.arange(2) % structure.num_classes)]
    for removed in ([], removable(structure)[:1]):
        losses = losses_without(model, structure, removed, batches)
        assert set(losses) == set(removable(structure)) - set(removed)
        for index, loss in losses.items():
            with skipping(model, [structure.blocks[i] for i in (*removed, index)]):
                assert loss == pytest.approx(mean_loss(model, batches), rel=1e-12)


@every_kind
@torch.no_grad()
def test_recovery_refits_the_output_projections_of_removed_units(family: str) -> None:
    model = built(family)
    structure = describe(model)
    plan = list(plans(structure).values())[-1]
    batches = [(images_for(structure, 6), torch.zeros(6, dtype=torch.long))]
    student = prune(model, plan)
    recovered = recover(student, model, plan, batches)
    refitted = [
        describe(student).blocks[position].group(group.key).output_proj
        for position, kept in enumerate(plan.blocks)
        for group in structure.blocks[kept.block].groups
        if len(kept.units(group.key)) < group.count
    ]
    for output_proj in refitted:
        assert not torch.equal(recovered.get_submodule(output_proj).weight, student.get_submodule(output_proj).weight)
    assert torch.isfinite(logits_of(recovered(batches[0][0]))).all()
    assert same_tensors(recover(model, model, PruningPlan.full(structure), batches), model)


@pytest.mark.parametrize(
    "family",
    [
        name if name in SAVED_IN_FAST_RUN else pytest.param(name, marks=pytest.mark.slow)
        for name in ROWS
        if name not in MADE_BY_HAND
    ],
)
@torch.no_grad()
def test_saved_files_load_with_and_without_vitrim(family: str, tmp_path: Path) -> None:
    model = build_row(ROWS[family], dtype=torch.float32)
    for module in model.modules():
        vars(module).pop("_attn", None)  # EfficientViT: a method for float64, which no file can hold
    structure = describe(model)
    student = prune(model, list(plans(structure).values())[-1])
    images = images_for(structure, dtype=torch.float32)
    assert_loads_with_and_without_vitrim(student, images, tmp_path)
