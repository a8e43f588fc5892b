"""torchvision's models: hooks see the inputs of the output projections, and the user's model does not change."""

import copy
from dataclasses import replace

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

from builders.exactness import EXACT, images_for, relative_distance
from builders.families_timm import build_row
from builders.families_torchvision import SWIN, TORCHVISION, VIT
from builders.models import random_plan, same_tensors
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.models import adapter_for, adapter_of_library, describe, hookable, origin_of, with_new_head
from vitrim.saving.checkpoint import load, save
from vitrim.silencing import silence
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

every_family = pytest.mark.parametrize("family", TORCHVISION)


@pytest.fixture
def fast_path():
    """Turn on torch's single operation for a whole attention, which is on for users and off in the other tests."""
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(False)


def classes(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def projections_seen(model: nn.Module, structure: ViTStructure, images: Tensor) -> set[str]:
    """The output projections whose hooks run in a forward pass."""
    seen: set[str] = set()
    output_projs = [group.output_proj for block in structure.blocks for group in block.groups]
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.add(name))
        for name in output_projs
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


@every_family
@torch.no_grad()
def test_hookable_changes_only_what_hooks_see(family: str) -> None:
    model = build_row(TORCHVISION[family])
    structure = describe(model)
    images, before = images_for(structure), classes(model)
    output_projs = {group.output_proj for block in structure.blocks for group in block.groups}
    plain = model(images)
    assert projections_seen(model, structure, images) < output_projs
    with hookable(model):
        assert relative_distance(model(images), plain) < EXACT
        assert projections_seen(model, structure, images) == output_projs
    assert classes(model) == before
    assert torch.equal(model(images), plain)


@every_family
def test_hookable_restores_the_model_after_an_error(family: str) -> None:
    model = build_row(TORCHVISION[family])
    before = classes(model)
    with pytest.raises(KeyError), hookable(model), hookable(model):
        raise KeyError
    assert classes(model) == before
    assert not any("forward" in vars(module) for module in model.modules())


@torch.no_grad()
def test_pruning_equals_silencing_with_the_fast_path(fast_path: None) -> None:
    model = build_row(TORCHVISION["torchvision ViT"])
    structure = describe(model)
    images = images_for(structure)
    plan = random_plan(structure, seed=1)
    with silence(model, plan):
        expected = model(images)
    assert relative_distance(prune(model, plan)(images), expected) < EXACT


def test_a_description_does_not_depend_on_the_fast_path(fast_path: None) -> None:
    model = build_row(TORCHVISION["torchvision ViT"])
    with_fast_path = describe(model)
    torch.backends.mha.set_fastpath_enabled(False)
    assert describe(copy.deepcopy(model)) == with_fast_path


def test_only_attentions_that_lost_heads_get_our_class() -> None:
    model = build_row(TORCHVISION["torchvision ViT"])
    structure = describe(model)
    plan = random_plan(structure, seed=1)
    student = prune(model, plan)
    for kept, block in zip(plan.blocks, structure.blocks, strict=True):
        keeps_all = len(kept.heads) == block.heads.count
        assert (type(student.get_submodule(block.name).self_attention) is nn.MultiheadAttention) == keeps_all
    assert all(type(m) is nn.MultiheadAttention for m in model.modules() if isinstance(m, nn.MultiheadAttention))


def test_blocks_keep_their_names() -> None:
    model = adapter_of_library("torchvision").create("VisionTransformer", **{**VIT, "num_layers": 3})
    student = prune(model, random_plan(describe(model), blocks=(0, 2)))
    assert [block.name for block in describe(student).blocks] == [
        "encoder.layers.encoder_layer_0",
        "encoder.layers.encoder_layer_2",
    ]
    assert student.state_dict().keys() <= model.state_dict().keys()


@pytest.mark.parametrize(
    "name", ["vit_b_32", *(pytest.param(n, marks=pytest.mark.slow) for n in ("swin_t", "swin_v2_t"))]
)
def test_models_are_recognised_by_their_sizes(name: str) -> None:
    """No matter how they were made. On the meta device, because they are large."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=7)
    origin = origin_of(model)
    assert origin.architecture == describe(model).model == name
    assert origin.model_args["num_classes"] == describe(model).num_classes == 7
    with torch.device("meta"):
        again = adapter_for(model).build(origin)
    shapes = [{key: tensor.shape for key, tensor in m.state_dict().items()} for m in (model, again)]
    assert shapes[0] == shapes[1]


def test_preprocessing_comes_from_the_published_weights_of_the_same_image_size() -> None:
    with torch.device("meta"):
        small, large = (torchvision.models.vit_b_16(image_size=size) for size in (224, 384))
        swin, odd = torchvision.models.swin_t(), torchvision.models.vit_b_16(image_size=32)
    preprocessing = adapter_for(small).preprocessing
    assert (preprocessing(small)["interpolation"], preprocessing(small)["crop_pct"]) == ("bilinear", 224 / 256)
    assert (preprocessing(large)["interpolation"], preprocessing(large)["crop_pct"]) == ("bicubic", 1.0)
    assert (preprocessing(swin)["interpolation"], preprocessing(swin)["crop_pct"]) == ("bicubic", 224 / 232)
    assert preprocessing(odd)["img_size"] == [32, 32] and preprocessing(odd)["crop_pct"] == 0.875


@torch.no_grad()
def test_a_model_with_another_norm_is_saved_with_it(tmp_path) -> None:
    model = build_row(TORCHVISION["torchvision ViT"])
    model.encoder.ln = nn.LayerNorm(16, eps=0.1).double()
    student = prune(model, random_plan(describe(model), seed=1))
    images = images_for(describe(model))
    assert torch.equal(load(save(student, tmp_path))(images), student(images))


def test_a_model_with_a_new_head_is_saved_and_loaded(tmp_path) -> None:
    model = with_new_head(build_row(TORCHVISION["torchvision Swin"], dtype=torch.float32), 3)
    assert describe(model).num_classes == 3
    student = prune(model, random_plan(describe(model), seed=1))
    save(student, tmp_path)
    again = load(tmp_path)
    assert same_tensors(again, student)
    assert describe(again) == describe(student)


@pytest.mark.parametrize(
    "name, arguments, found",
    [
        ("vit_b_17", {}, "vit_b_16"),
        ("vit_b_16", {"patch_size": 8}, "patch_size"),
        ("VisionTransformer", {**VIT, "img_size": 33}, "indivisible"),
    ],
)
def test_wrong_names_and_settings_are_errors(name: str, arguments: dict, found: str) -> None:
    with pytest.raises(SettingError, match=found):
        adapter_of_library("torchvision").create(name, **arguments)


def test_stochastic_depth_grows_linearly_in_swin_and_is_an_error_in_vit() -> None:
    swin = adapter_of_library("torchvision").create("SwinTransformer", **SWIN, img_size=32, window_size=[4, 4])
    adapter = adapter_for(swin)
    adapter.set_drop_path(swin, 0.2)
    rates = [swin.get_submodule(block.name).stochastic_depth.p for block in describe(swin).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    vit = build_row(TORCHVISION["torchvision ViT"])
    adapter.set_drop_path(vit, 0.0)
    with pytest.raises(SettingError, match="no stochastic depth"):
        adapter.set_drop_path(vit, 0.1)


@every_family
@torch.no_grad()
def test_our_windows_equal_torchvisions_for_any_image_size(family: str) -> None:
    """Windows are padded and shifted in the same way."""
    model = build_row(TORCHVISION[family])
    for attention in [module for module in model.modules() if isinstance(module, ShiftedWindowAttention)]:
        for size in ((5, 7), (3, 9), (8, 8), (2, 13)):
            x = torch.randn(2, *size, attention.qkv.in_features, dtype=torch.float64)
            plain = attention(x)
            with hookable(model):
                assert relative_distance(attention(x), plain) < EXACT


@pytest.mark.parametrize("name, value", [("weights", "DEFAULT"), ("norm_layer", "x"), ("conv_stem_configs", [1])])
def test_a_folder_states_sizes_only(name: str, value: object) -> None:
    adapter = adapter_of_library("torchvision")
    origin = origin_of(build_row(TORCHVISION["torchvision ViT"], dtype=torch.float32))
    with pytest.raises(CheckpointMismatch, match=f"states '{name}' for torchvision's"):
        adapter.build(replace(origin, model_args={**origin.model_args, name: value}))


@pytest.mark.parametrize("arguments", [{"num_heads": 7}, {"patch_size": 0}, {"num_layers": 10**6}, {"hidden_dim": "x"}])
def test_impossible_sizes_are_refused_in_one_sentence(arguments: dict[str, object]) -> None:
    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8}
    with pytest.raises(SettingError, match="VisionTransformer") as found:
        adapter_of_library("torchvision").create("VisionTransformer", **{**sizes, **arguments})
    assert "\n" not in str(found.value)
