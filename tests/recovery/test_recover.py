"""Laws of the closed-form refit: never a larger error on the calibration images, nothing else touched."""

import copy

import pytest
import torch
from torch import Tensor, nn

from builders.models import build, one_unit_plan, plan_of_sizes, random_batches, random_plan, same_tensors
from vitrim.errors import DataError, PlanMismatch, SettingError
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.recovery.least_squares import moments_of
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
BATCHES = random_batches(num_images=24, batch_size=8)


@torch.no_grad()
def outputs_of(model: nn.Module, name: str) -> Tensor:
    """The outputs of a module on all calibration images."""
    outputs: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(lambda module, inputs, output: outputs.append(output))
    for images, _ in BATCHES:
        model(images)
    handle.remove()
    return torch.cat(outputs)


@torch.no_grad()
def distance(first: nn.Module, second: nn.Module) -> float:
    return sum((first(images) - second(images)).square().sum().item() for images, _ in BATCHES)


@torch.no_grad()
def inputs_of(model: nn.Module, name: str) -> Tensor:
    """What a module takes, on all calibration images."""
    taken: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    for images, _ in BATCHES:
        model(images)
    handle.remove()
    return torch.cat(taken)


def streams(model: nn.Module, block: int) -> tuple[Tensor, Tensor]:
    """The residual stream behind a block's attention, and behind the block."""
    return inputs_of(model, f"blocks.{block}.norm2"), outputs_of(model, f"blocks.{block}")


@pytest.mark.parametrize("plan_name", PLANS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_readers_refit_takes_the_stream_further_from_the_teachers(variant: str, plan_name: str) -> None:
    teacher = build(variant)
    plan = PLANS[plan_name](describe(teacher))
    student = prune(teacher, plan)
    recovered = recover(student, teacher, plan, BATCHES)
    structure = describe(teacher)
    ends = structure.matched_teacher_blocks([kept.block for kept in plan.blocks])
    for position, (kept, end) in enumerate(zip(plan.blocks, ends, strict=True)):
        goals = streams(teacher, kept.block)[0], streams(teacher, end)[1]
        for kind, goal, part in zip(UNIT_KINDS, goals, (0, 1), strict=True):
            name = describe(student).blocks[position].group(kind).output_proj
            without = copy.deepcopy(recovered)  # all refitted but this reader
            without.get_submodule(name).load_state_dict(student.get_submodule(name).state_dict())
            before = (streams(without, position)[part] - goal).square().sum().item()
            after = (streams(recovered, position)[part] - goal).square().sum().item()
            assert after <= before * (1 + 1e-9) + 1e-12
            assert after < before or before < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_comes_closer_to_the_teachers(variant: str) -> None:
    teacher = build(variant)
    plan = random_plan(describe(teacher), seed=4)
    student = prune(teacher, plan)
    assert distance(recover(student, teacher, plan, BATCHES), teacher) < distance(student, teacher)


@pytest.mark.parametrize("variant", VARIANTS)
def test_keeping_everything_leaves_the_weights_alone(variant: str) -> None:
    teacher = build(variant)
    plan = PruningPlan.full(describe(teacher))
    assert same_tensors(recover(prune(teacher, plan), teacher, plan, BATCHES), teacher)


def test_both_models_stay_as_they_are() -> None:
    teacher = build().train()
    plan = random_plan(describe(teacher), seed=5, blocks=(0, 2, 3))
    student = prune(teacher, plan)
    before = copy.deepcopy(teacher), copy.deepcopy(student)
    recovered = recover(student, teacher, plan, BATCHES)
    assert same_tensors(teacher, before[0]) and same_tensors(student, before[1])
    assert teacher.training and student.training
    for model in (teacher, student, recovered):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_only_readers_and_the_classifier_change() -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=6)
    student = prune(teacher, plan)
    before, after = student.state_dict(), recover(student, teacher, plan, BATCHES).state_dict()
    changed = {name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    output_projs = {block.group(kind).output_proj for block in describe(student).blocks for kind in UNIT_KINDS}
    assert output_projs <= changed <= {*output_projs, "head"}


@torch.no_grad()
def with_copied_units() -> nn.Module:
    """A model in which head 1 computes what head 0 does, and neuron 1 what neuron 0 does; readers weigh them apart."""
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


def test_losing_copies_costs_nothing_as_the_ridge_vanishes() -> None:
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
    lost = distance(student, teacher)
    errors = [distance(recover(student, teacher, plan, BATCHES, ridge=ridge), teacher) for ridge in (1e-3, 1e-6, 1e-12)]
    assert lost > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12 * lost


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_refit_of_a_wide_layer_is_the_least_squares_solution(bias: bool) -> None:
    layer, ridge = nn.Linear(600, 3, bias=bias).double(), 1e-2
    x, target = torch.randn(2, 400, 600, dtype=torch.float64) + 1, torch.randn(2, 400, 3, dtype=torch.float64)
    change, shift = moments_of(layer, zip(x, target, strict=True)).solve(ridge)
    inputs, residual = x.flatten(0, 1), (target - layer(x)).flatten(0, 1)
    mean_x, mean_r = (values.mean(dim=0) * bias for values in (inputs, residual))
    centred = inputs - mean_x
    penalty = ridge * centred.square().sum() / 600 * torch.eye(600, dtype=x.dtype)
    wanted = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (residual - mean_r)).T
    assert torch.allclose(change, wanted, rtol=1e-8, atol=1e-12)
    assert not bias or torch.allclose(shift, mean_r - wanted @ mean_x, rtol=1e-8, atol=1e-12)


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


def test_float32_models_are_recovered_too() -> None:
    teacher = build(dtype=torch.float32)
    plan = random_plan(describe(teacher), seed=9)
    student = prune(teacher, plan)
    recovered = recover(student, teacher, plan, [(images.float(), labels) for images, labels in BATCHES])
    assert {parameter.dtype for parameter in recovered.parameters()} == {torch.float32}
    assert distance(recovered.double(), teacher.double()) < distance(student.double(), teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_are_recovered_too(dtype: torch.dtype) -> None:
    teacher = build(dtype=torch.float32)
    plan = random_plan(describe(teacher), seed=9)
    student, images = prune(teacher, plan), [(images.float(), labels) for images, labels in BATCHES]
    wanted = recover(student, teacher, plan, images)
    batches = [(images.to(dtype), labels) for images, labels in BATCHES]
    half = recover(copy.deepcopy(student).to(dtype), copy.deepcopy(teacher).to(dtype), plan, batches)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert distance(half.double(), teacher.double()) < 1.2 * distance(wanted.double(), teacher.double())


def test_a_channel_that_the_stream_hardly_hears_keeps_its_weights_small() -> None:
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


def test_no_image_and_foreign_plans_are_errors() -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=10)
    with pytest.raises(DataError, match="at least one batch"):
        recover(prune(teacher, plan), teacher, plan, [])
    with pytest.raises(PlanMismatch):
        recover(teacher, teacher, plan_of_sizes("other", [(9, 9)]), BATCHES)


@pytest.mark.parametrize("ridge", [0.0, -1.0])
def test_the_ridge_is_positive(ridge: float) -> None:
    with pytest.raises(SettingError, match=r"recovery\.ridge"):
        RecoverySettings(ridge=ridge)
