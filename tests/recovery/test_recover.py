"""Laws of recovery: the error on the calibration images never grows, and only refitted layers change."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

from builders.models import build, has_hooks, one_unit_plan, plan_of_sizes, random_batches, random_plan, same_tensors
from vitrim.errors import DataError, PlanMismatch, SettingError
from vitrim.hooks import forward_hooks, forward_pre_hooks
from vitrim.importance.criteria import score
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.recovery.recover import RecoverySettings, recover
from vitrim.structure import UNIT_KINDS
from vitrim.surgery import prune

VARIANTS = ("class token", "distilled token", "no bias", "layer scale", "gated attention", "registers")
PLANS = {
    "uneven": lambda structure: random_plan(structure, seed=1),
    "one unit": one_unit_plan,
    "blocks removed": lambda structure: random_plan(structure, seed=2, blocks=(1, 3)),
    "last block removed": lambda structure: random_plan(structure, seed=3, blocks=(0, 1, 2)),
}
CASES = [  # every plan and every variant once; the others meet the law in the slow run
    pytest.param(variant, plan, marks=[] if variant == "class token" or plan == "one unit" else [pytest.mark.slow])
    for variant in VARIANTS
    for plan in PLANS
]
BATCHES = random_batches(num_images=16, batch_size=8)


@torch.no_grad()
def distance(first: nn.Module, second: nn.Module) -> float:
    """The squared difference of the logits, summed over the calibration images."""
    return sum((first(images) - second(images)).square().sum().item() for images, _ in BATCHES)


@torch.no_grad()
def hidden_states(model: nn.Module, block: int) -> tuple[Tensor, Tensor]:
    """The hidden states after a block's attention, and after the block, `(B, N, D)` of all calibration images."""
    after_attention: list[Tensor] = []
    after_block: list[Tensor] = []
    module = model.blocks[block]
    with (
        forward_pre_hooks([(module.norm2, lambda module, args: after_attention.append(args[0]))]),
        forward_hooks([(module, lambda module, args, kwargs, output: after_block.append(output))]),
    ):
        for images, _ in BATCHES:
            model(images)
    return torch.cat(after_attention), torch.cat(after_block)


@pytest.mark.parametrize(("variant", "plan_name"), CASES)
def test_the_refit_of_an_output_projection_brings_its_hidden_state_closer_to_the_teachers(
    variant: str, plan_name: str
) -> None:
    teacher = build(variant)
    plan = PLANS[plan_name](describe(teacher))
    student = prune(teacher, plan)
    recovered = recover(student, teacher, plan, BATCHES)
    small = describe(student)
    matched = describe(teacher).matched_teacher_blocks([kept.block for kept in plan.blocks])
    for position, (kept, last) in enumerate(zip(plan.blocks, matched, strict=True)):
        goals = hidden_states(teacher, kept.block)[0], hidden_states(teacher, last)[1]
        states = hidden_states(recovered, position)
        for kind, goal, part in zip(UNIT_KINDS, goals, (0, 1), strict=True):
            name = small.blocks[position].group(kind).output_proj
            layer = recovered.get_submodule(name)
            refitted = copy.deepcopy(layer.state_dict())
            layer.load_state_dict(student.get_submodule(name).state_dict())  # all other projections are refitted
            before = (hidden_states(recovered, position)[part] - goal).square().sum().item()
            layer.load_state_dict(refitted)
            after = (states[part] - goal).square().sum().item()
            assert after <= before * (1 + 1e-9) + 1e-12
            assert after < before or before < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_logits_come_closer_to_the_teachers(variant: str) -> None:
    teacher = build(variant)
    plan = random_plan(describe(teacher), seed=4)
    student = prune(teacher, plan)
    assert distance(recover(student, teacher, plan, BATCHES), teacher) < distance(student, teacher)


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeping_everything_changes_no_weight(variant: str) -> None:
    teacher = build(variant)
    plan = PruningPlan.full(describe(teacher))
    assert same_tensors(recover(prune(teacher, plan), teacher, plan, BATCHES), teacher)


def test_both_models_are_unchanged() -> None:
    teacher = build().train()
    plan = random_plan(describe(teacher), seed=5, blocks=(0, 2, 3))
    student = prune(teacher, plan)
    before = copy.deepcopy(teacher), copy.deepcopy(student)
    recovered = recover(student, teacher, plan, BATCHES)
    assert same_tensors(teacher, before[0]) and same_tensors(student, before[1])
    assert teacher.training and student.training
    for model in (teacher, student, recovered):
        assert not has_hooks(model)
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_only_output_projections_and_the_classifier_change() -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=6)
    student = prune(teacher, plan)
    before, after = student.state_dict(), recover(student, teacher, plan, BATCHES).state_dict()
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    output_projs = {block.group(kind).output_proj for block in describe(student).blocks for kind in UNIT_KINDS}
    assert output_projs <= changed <= {*output_projs, "head"}


@torch.no_grad()
def with_copied_units() -> nn.Module:
    """A model in which head 1 is a copy of head 0, and neuron 1 of neuron 0. Only their output weights differ."""
    model = build()
    for block in model.blocks:
        width, rows = block.attn.head_dim, block.attn.attn_dim
        for part in range(3):
            first = slice(part * rows, part * rows + width)
            second = slice(part * rows + width, part * rows + 2 * width)
            block.attn.qkv.weight[second] = block.attn.qkv.weight[first]
            block.attn.qkv.bias[second] = block.attn.qkv.bias[first]
        block.mlp.fc1.weight[1] = block.mlp.fc1.weight[0]
        block.mlp.fc1.bias[1] = block.mlp.fc1.bias[0]
    return model


def test_without_copied_units_the_error_tends_to_zero_with_the_ridge() -> None:
    teacher = with_copied_units()
    blocks = [
        KeptBlock(
            block=index,
            heads=tuple(unit for unit in range(block.heads.count) if unit != 1),
            neurons=tuple(unit for unit in range(block.neurons.count) if unit != 1),
        )
        for index, block in enumerate(describe(teacher).blocks)
    ]
    plan = PruningPlan(model="any", blocks=tuple(blocks))
    student = prune(teacher, plan)
    before = distance(student, teacher)
    errors = [distance(recover(student, teacher, plan, BATCHES, ridge=ridge), teacher) for ridge in (1e-3, 1e-6, 1e-12)]
    assert before > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12 * before


def test_a_stronger_ridge_changes_less() -> None:
    teacher = build()
    plan = one_unit_plan(describe(teacher))
    student = prune(teacher, plan)
    output_proj = describe(student).blocks[0].heads.output_proj
    old = student.get_submodule(output_proj).weight
    changes = [
        (recover(student, teacher, plan, BATCHES, ridge=ridge).get_submodule(output_proj).weight - old).norm().item()
        for ridge in (1e-6, 1e-2, 1e2, 1e8)
    ]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] < 1e-6 * changes[0]


def test_the_division_into_batches_does_not_matter() -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=8, blocks=(0, 1, 3))
    student, images = prune(teacher, plan), torch.cat([images for images, _ in BATCHES])
    one_shot = recover(student, teacher, plan, [(images, torch.zeros(len(images)))])
    in_parts = recover(student, teacher, plan, iter(BATCHES))
    for one, two in zip(one_shot.parameters(), in_parts.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-8)


def test_models_in_float32_are_recovered() -> None:
    teacher = build(dtype=torch.float32)
    plan = random_plan(describe(teacher), seed=9)
    student = prune(teacher, plan)
    recovered = recover(student, teacher, plan, [(images.float(), labels) for images, labels in BATCHES])
    assert {parameter.dtype for parameter in recovered.parameters()} == {torch.float32}
    assert distance(recovered.double(), teacher.double()) < distance(student.double(), teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_recovered(dtype: torch.dtype) -> None:
    teacher = build(dtype=torch.float32)
    plan = random_plan(describe(teacher), seed=9)
    student, images = prune(teacher, plan), [(images.float(), labels) for images, labels in BATCHES]
    in_float32 = recover(student, teacher, plan, images)
    batches = [(images.to(dtype), labels) for images, labels in BATCHES]
    half = recover(copy.deepcopy(student).to(dtype), copy.deepcopy(teacher).to(dtype), plan, batches)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert distance(half.double(), teacher.double()) < 1.2 * distance(in_float32.double(), teacher.double())


def test_weights_of_channels_with_a_tiny_residual_scale_stay_small() -> None:
    teacher = build("layer scale")
    with torch.no_grad():
        for block in teacher.blocks:
            block.ls1.gamma[3], block.ls2.gamma[5] = 1e-7, 0.0
    plan = random_plan(describe(teacher), seed=4)
    student = prune(teacher, plan)
    recovered = recover(student, teacher, plan, BATCHES)
    for before, after in zip(student.blocks, recovered.blocks, strict=True):
        for old, new, channel in ((before.attn.proj, after.attn.proj, 3), (before.mlp.fc2, after.mlp.fc2, 5)):
            assert new.weight[channel].norm() < 10 * old.weight.norm(dim=1).max()
    assert distance(recovered, teacher) < distance(student, teacher)


def test_recovery_without_images_or_with_another_plan_is_refused() -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=10)
    with pytest.raises(DataError, match="at least one batch"):
        recover(prune(teacher, plan), teacher, plan, [])
    with pytest.raises(PlanMismatch):
        recover(teacher, teacher, plan_of_sizes("other", [(9, 9)]), BATCHES)


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_the_ridge_is_positive(ridge: float) -> None:
    with pytest.raises(SettingError, match=f"ridge is {ridge:g}; expected a number of at least"):
        RecoverySettings(ridge=ridge)


def test_recovery_and_scores_work_on_a_model_with_masks_and_change_no_masked_layer() -> None:
    model = build(depth=3)
    for block in model.blocks:
        masks.l1_unstructured(block.mlp.fc2, "weight", 0.5)
    masks.l1_unstructured(model.head, "weight", 0.5)
    structure, batches = describe(model), random_batches()
    assert {group.key for block in structure.blocks for group in block.groups if group.not_prunable} == {"neurons"}
    assert score(model, batches).heads[0].sum() > 0
    plan = random_plan(structure, seed=1)
    student = recover(prune(model, plan), model, plan, batches)
    for name in ("head", "blocks.0.mlp.fc2"):
        assert torch.equal(student.get_submodule(name).weight_orig, model.get_submodule(name).weight_orig)
    assert not torch.equal(student.blocks[0].attn.proj.weight, prune(model, plan).blocks[0].attn.proj.weight)
