"""Laws of `prune`: removing equals silencing, keeping all changes nothing, plans compose, the dense model stays."""

import copy
import io
import multiprocessing
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from builders.exactness import images_for
from builders.families_timm import build_row
from builders.models import (
    SIZES,
    VARIANTS,
    build,
    one_unit_plan,
    plan_of_sizes,
    random_images,
    random_plan,
    same_tensors,
)
from builders.narrowing import random_head_widths
from builders.rows import ROWS
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.errors import PlanMismatch, UnsupportedModel
from vitrim.hooks import logits_of
from vitrim.importance.criteria import score
from vitrim.models import describe, origin_of
from vitrim.plan import PruningPlan
from vitrim.silencing import silence
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

EXACT = 1e-12
PLANS = {
    "uneven": lambda structure: random_plan(structure, seed=1),
    "one unit": one_unit_plan,
    "first block removed": lambda structure: random_plan(structure, seed=3, blocks=(1, 2, 3)),
    "middle blocks removed": lambda structure: random_plan(structure, seed=4, blocks=(0, 3)),
    "last block removed": lambda structure: random_plan(structure, seed=5, blocks=(0, 1, 2)),
    "one block left": lambda structure: random_plan(structure, seed=6, blocks=(2,)),
    "only a block removed": lambda structure: PruningPlan.full(structure).without_blocks([1]),
}
PLAIN = "class token"  # the variant that meets the law with every plan; the others do so in the slow run
CASES = [
    pytest.param(variant, plan, marks=[] if variant == PLAIN or plan == "first block removed" else [pytest.mark.slow])
    for variant in VARIANTS
    for plan in PLANS
]
few_variants = pytest.mark.parametrize(
    "variant",
    [
        name if name in (PLAIN, "distilled token", "gated attention") else pytest.param(name, marks=pytest.mark.slow)
        for name in VARIANTS
    ],
)


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).detach().abs().max())


def set_attention(model: nn.Module, fused: bool) -> None:
    for block in model.blocks:
        block.attn.fused_attn = fused


@pytest.mark.parametrize(("variant", "plan_name"), CASES)
@torch.no_grad()
def test_removing_equals_silencing(variant: str, plan_name: str) -> None:
    model, images = build(variant), random_images(2)
    plan = PLANS[plan_name](describe(model))
    student = prune(model, plan)
    for fused, training in ((True, False), (False, False), (True, True), (False, True)):
        set_attention(model, fused), set_attention(student, fused)
        model.train(training), student.train(training)
        with silence(model, plan):
            silenced = model(images)
        assert distance(student(images), silenced) < EXACT
        assert distance(model(images), silenced) > 1e-3  # the removed units matter


def test_gradients_of_the_pruned_model_are_those_of_the_silenced_model() -> None:
    model, images = build(), random_images()
    plan = random_plan(describe(model), seed=8)
    student = prune(model, plan)
    with silence(model, plan):
        model(images).square().sum().backward()
    student(images).square().sum().backward()
    for pruned, dense in zip(student.blocks, model.blocks, strict=True):
        assert distance(pruned.norm1.weight.grad, dense.norm1.weight.grad) < 1e-9
    kept_neurons = list(plan.blocks[0].neurons)
    dense_gradient = model.blocks[0].mlp.fc1.weight.grad[kept_neurons]
    assert distance(student.blocks[0].mlp.fc1.weight.grad, dense_gradient) < 1e-9


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_keeping_everything_changes_nothing(variant: str) -> None:
    model, images = build(variant), random_images()
    student = prune(model, PruningPlan.full(describe(model)))
    assert same_tensors(student, model)
    assert torch.equal(student(images), model(images))


@few_variants
@torch.no_grad()
def test_pruning_twice_equals_pruning_by_the_composed_plan(variant: str) -> None:
    model, images = build(variant), random_images()
    first = random_plan(describe(model), seed=1, blocks=(0, 2, 3))
    once = prune(model, first)
    second = random_plan(describe(once), seed=2, blocks=(0, 2))
    twice, one_shot = prune(once, second), prune(model, first.then(second))
    assert same_tensors(twice, one_shot)
    assert torch.equal(twice(images), one_shot(images))
    assert describe(twice) == describe(one_shot)


@torch.no_grad()
def test_the_dense_model_does_not_change() -> None:
    model, images = build(), random_images()
    model.blocks[0].mlp.fc1.weight.requires_grad_(False)
    before, logits = copy.deepcopy(model), model(images)
    plan = random_plan(describe(model), blocks=(0, 2))
    student = prune(model, plan)
    with silence(model, plan):
        model(images)
    for parameter in student.parameters():
        parameter.fill_(1.0)
    assert same_tensors(model, before)
    assert describe(model) == describe(before)
    assert torch.equal(model(images), logits)
    assert not student.blocks[0].mlp.fc1.weight.requires_grad
    assert student.blocks[0].mlp.fc2.weight.requires_grad


@torch.no_grad()
def test_a_tensor_of_two_blocks_is_cut_in_each_block_as_the_plan_says() -> None:
    model, images = build(), random_images()
    first, second, third, _ = model.blocks
    second.norm1.weight = first.norm1.weight  # the first block is removed
    second.mlp.fc1.weight = third.mlp.fc1.weight  # these two blocks lose different neurons
    plan = random_plan(describe(model), seed=9, blocks=(1, 2, 3))
    with silence(model, plan):
        silenced = model(images)
    assert distance(prune(model, plan)(images), silenced) < EXACT
    assert second.mlp.fc1.weight is third.mlp.fc1.weight


def test_a_model_without_data_is_pruned_to_the_same_shapes() -> None:
    model = build()
    plan = random_plan(describe(model), seed=1, blocks=(0, 2))
    without_data = copy.deepcopy(model).to("meta")
    with torch.device("meta"):
        student = prune(without_data, plan)
    shapes = {name: tensor.shape for name, tensor in prune(model, plan).state_dict().items()}
    assert {name: tensor.shape for name, tensor in student.state_dict().items()} == shapes
    assert all(parameter.is_meta for parameter in student.parameters())


def test_the_pruned_model_keeps_the_mode_and_the_dtype() -> None:
    model = build(dtype=torch.bfloat16).train()
    student = prune(model, random_plan(describe(model)))
    assert student.training
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_pruned_model_is_an_ordinary_shallower_model(variant: str) -> None:
    model, images = build(variant), random_images()
    student = prune(model, random_plan(describe(model), blocks=(0, 1, 3)))
    shallower = build(variant, depth=3)
    assert type(student) is type(model)
    assert list(student.state_dict()) == list(shallower.state_dict())
    assert student.feature_info == shallower.feature_info
    clone = copy.deepcopy(student)
    assert torch.equal(clone(images), student(images))
    for block in student.blocks:
        assert block.attn.qkv.out_features == block.attn.qkv.weight.shape[0] == 3 * block.attn.attn_dim
        assert block.mlp.fc2.in_features == block.mlp.fc1.out_features == block.mlp.fc1.weight.shape[0]


def test_the_pruned_model_returns_features_through_timms_methods() -> None:
    model, images = build(), random_images()
    student = prune(model, random_plan(describe(model), blocks=(0, 2, 3)))
    features = student.forward_features(images)
    final, intermediates = student.forward_intermediates(images, indices=[0, 1, 2])
    assert torch.equal(final, features)
    assert len(intermediates) == 3
    assert torch.equal(student.forward_head(features), student(images))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.export's own
def test_the_pruned_model_can_be_exported() -> None:
    model, images = build(dtype=torch.float32), random_images(dtype=torch.float32)
    student = prune(model, random_plan(describe(model), blocks=(0, 3)))
    exported = torch.export.export(student, (images,)).module()
    assert torch.allclose(exported(images), student(images), atol=1e-5)


NOT_PRUNABLE = {"scale_attn_norm": "heads", "scale_mlp_norm": "neurons"}


@pytest.mark.parametrize("option", NOT_PRUNABLE)
def test_removing_units_before_a_norm_across_them_is_an_error_with_the_norms_name(option: str) -> None:
    model = build(**{option: True})
    structure = describe(model)
    with pytest.raises(PlanMismatch, match=rf"removes {NOT_PRUNABLE[option]} of block 0.*`blocks\.0\.\w+\.norm`"):
        prune(model, plan_of_sizes(structure.model, [(1, 1)] * len(structure.blocks)))


@pytest.mark.parametrize("option", NOT_PRUNABLE)
@torch.no_grad()
def test_units_before_a_norm_across_them_are_kept_and_the_others_are_pruned_exactly(option: str) -> None:
    model, images = build(**{option: True}), random_images()
    structure = describe(model)
    budget = Budget(params=0.9, macs=0.9, min_neurons=1)
    plan = allocate(structure, score(model, [], "random"), budget)
    for kept, block in zip(plan.blocks, structure.blocks, strict=True):
        assert len(kept.units(NOT_PRUNABLE[option])) == block.group(NOT_PRUNABLE[option]).count
    assert not plan.keeps_all(structure)
    with silence(model, plan):
        silenced = model(images)
    assert distance(prune(model, plan)(images), silenced) < EXACT


UNSUPPORTED = {
    "resnet": (lambda: timm.create_model("resnet10t"), "ResNet"),
    "linear layer": (lambda: nn.Linear(2, 2), "Linear"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_an_error_about_another_model_names_its_class(case: str) -> None:
    make, found = UNSUPPORTED[case]
    model = make()
    for use in (describe, count_cost, lambda model: prune(model, plan_of_sizes("any", [(1, 1)]))):
        with pytest.raises(UnsupportedModel, match=found):
            use(model)


def test_a_model_built_without_timms_factory_can_be_pruned() -> None:
    model = VisionTransformer(patch_size=16, **SIZES).double().eval()
    structure: ViTStructure = describe(model)
    plan = random_plan(structure, blocks=(1, 2))
    with silence(model, plan):
        silenced = model(random_images())
    assert distance(prune(model, plan)(random_images()), silenced) < EXACT


PICKLED = ("transformers ViT", "torchvision ViT", "BEiT", "transformers Swin v2", "torchvision Swin")


def pickled(model: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(model, file)
    return file.getvalue()


def cut_row(row: str) -> nn.Module:
    """A pruned model with an attention of ours, where its family has one."""
    model = build_row(ROWS[row]).eval()
    structure = describe(model)
    plan = random_head_widths(structure, random_plan(structure, seed=1), seed=1)
    return prune(model, plan)


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    return logits_of(model(images_for(describe(model))))


@pytest.mark.parametrize("row", [*PICKLED[:2], *(pytest.param(row, marks=pytest.mark.slow) for row in PICKLED[2:])])
def test_a_pruned_model_computes_the_same_after_pickle_and_copy(row: str) -> None:
    model = cut_row(row)
    expected = outputs(model)
    for again in (
        torch.load(io.BytesIO(pickled(model)), weights_only=False),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
    ):
        assert type(again) is type(model) and torch.equal(outputs(again), expected)
        assert origin_of(again).plan == origin_of(model).plan


@pytest.mark.slow
def test_a_pruned_model_can_be_sent_to_a_new_process() -> None:
    model = cut_row("transformers Swin v2")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert torch.equal(pool.apply(outputs, (model,)), outputs(model))
