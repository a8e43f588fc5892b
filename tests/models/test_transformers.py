"""Models of transformers: pruned models load anywhere after `import vitrim`; unsupported classes are errors."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from builders.counting import count_macs
from builders.exactness import EXACT, images_for, plans, relative_distance, set_fused
from builders.families_timm import build_row
from builders.families_transformers import BACKBONES, PLAIN
from builders.models import random_plan, same_tensors
from builders.narrowing import random_head_widths
from builders.transformers_folders import CLASSIFIER, ROWS, assert_same, load_with_auto, pruned_model
from vitrim.costs.counting import Cost, count_cost
from vitrim.errors import CheckpointMismatch, SettingError, UnsupportedModel
from vitrim.hooks import logits_of
from vitrim.models import adapter_for, adapter_of_library, describe, origin_of, with_new_head
from vitrim.plan import PruningPlan
from vitrim.saving.checkpoint import load, save
from vitrim.silencing import silence
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

FAST = ("transformers ViT", "transformers DINOv2, SwiGLU", "transformers CLIP", "transformers Swin", "DINOv3")
representatives = pytest.mark.parametrize("family", FAST)


@pytest.mark.parametrize(
    ("family", "fused", "mode"),
    [
        pytest.param(
            name, fused, mode, marks=[] if (fused and mode == "eval") or name == "DINOv3" else [pytest.mark.slow]
        )
        for name in BACKBONES
        for fused in (True, False)
        for mode in ("eval", "train")
    ],
)
@torch.no_grad()
def test_pruning_equals_silencing_in_backbones(family: str, fused: bool, mode: str) -> None:
    model = build_row(BACKBONES[family])
    structure = describe(model)
    images = images_for(structure)
    set_fused(model, fused)
    model.train(mode == "train")
    for plan in plans(structure).values():
        student = prune(model, plan)
        with silence(copy.deepcopy(model), plan) as _, silence(model, plan):
            expected = logits_of(model(images))
        assert relative_distance(logits_of(student(images)), expected) < EXACT
        assert relative_distance(logits_of(model(images)), expected) > 1e-6


@pytest.mark.parametrize("family", BACKBONES)
def test_the_predicted_cost_equals_an_independent_count(family: str) -> None:
    model = build_row(BACKBONES[family])
    structure = describe(model)
    for plan in plans(structure).values():
        student = prune(model, plan)
        params = sum(parameter.numel() for parameter in student.parameters())
        assert count_cost(structure, plan) == Cost(params=params, macs=count_macs(student, images_for(structure, 1)))


@representatives
def test_auto_classes_load_a_folder_that_vitrim_saved(family: str, tmp_path: Path) -> None:
    student = pruned_model(family)
    save(student, tmp_path)
    assert_same(load_with_auto(tmp_path), student)


@pytest.mark.parametrize("family", [*FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in ROWS if n not in FAST)])
def test_save_pretrained_and_from_pretrained_restore_the_model(family: str, tmp_path: Path) -> None:
    student = pruned_model(family)
    student.save_pretrained(tmp_path)
    again = load_with_auto(tmp_path)
    again._forward_pre_hooks, again._forward_pre_hooks_with_kwargs = (  # MAE's mask
        student._forward_pre_hooks,
        student._forward_pre_hooks_with_kwargs,
    )
    assert_same(again, student)


@pytest.mark.parametrize(
    "family",
    [
        "transformers ViT",
        pytest.param("transformers CLIP", marks=pytest.mark.slow),
        pytest.param("transformers Swin", marks=pytest.mark.slow),
        "transformers Swin v2",
        pytest.param("DINOv3", marks=pytest.mark.slow),
    ],
)
def test_narrow_heads_are_restored_by_transformers_and_can_be_narrowed_again(family: str, tmp_path: Path) -> None:
    """Also by a class of ours, for models in which only values can be narrowed."""
    model = build_row(ROWS[family], dtype=torch.float32)
    student = prune(model, random_head_widths(describe(model), PruningPlan.full(describe(model)), seed=1))
    student.save_pretrained(tmp_path / "one")
    again = load_with_auto(tmp_path / "one")
    assert_same(again, student)
    assert describe(again) == describe(student)
    plan = random_head_widths(describe(again), PruningPlan.full(describe(again)), seed=2)
    twice = prune(again, plan)
    assert origin_of(twice).plan == origin_of(student).plan.then(plan)
    save(twice, tmp_path / "two")
    assert_same(load(tmp_path / "two"), twice)
    assert_same(load_with_auto(tmp_path / "two"), twice)


def test_a_model_loaded_by_transformers_can_be_pruned_and_saved_again(tmp_path: Path) -> None:
    student = pruned_model()
    student.save_pretrained(tmp_path / "one")
    again = load_with_auto(tmp_path / "one")
    plan = random_plan(describe(again), seed=5)
    twice = prune(again, plan)
    assert origin_of(twice).plan == origin_of(student).plan.then(plan)
    save(twice, tmp_path / "two")
    assert_same(load(tmp_path / "two"), twice)
    assert_same(load_with_auto(tmp_path / "two"), twice)
    twice.save_pretrained(tmp_path / "three")
    assert_same(load_with_auto(tmp_path / "three"), twice)


def test_auto_model_loads_the_backbone_of_a_classifier(tmp_path: Path) -> None:
    student = pruned_model()
    student.save_pretrained(tmp_path)
    backbone = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(backbone) is transformers.ViTModel
    expected = {name.removeprefix("vit."): tensor for name, tensor in student.state_dict().items()}
    loaded = {name: tensor for name, tensor in backbone.state_dict().items() if not name.startswith("pooler.")}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())


def test_tensors_keep_the_names_of_the_library() -> None:
    model = build_row(ROWS["transformers ViT"])
    structure = describe(model)
    narrower = prune(model, random_plan(structure, seed=1))
    assert list(narrower.state_dict()) == list(model.state_dict())
    assert type(narrower) is type(model)


def test_the_dense_model_and_its_configuration_do_not_change() -> None:
    model = build_row(ROWS["transformers ViT"])
    before = model.config.to_dict()
    prune(model, random_plan(describe(model), blocks=(0,)))
    assert model.config.to_dict() == before
    assert type(model.config) is transformers.ViTConfig


def test_a_model_that_keeps_everything_loads_without_vitrim(tmp_path: Path) -> None:
    model = build_row(ROWS["transformers ViT"], dtype=torch.float32)
    same = prune(model, PruningPlan.full(describe(model)))
    assert type(same.config) is transformers.ViTConfig
    save(same, tmp_path)
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    assert_same(loaded, model)


@representatives
@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_kept_blocks(family: str) -> None:
    student = pruned_model(family)
    structure = describe(student)
    student.set_attn_implementation("eager")
    out = student(images_for(structure, dtype=torch.float32), output_hidden_states=True, output_attentions=True)
    if "Swin" not in family:  # Swin returns one state for each stage
        assert len(out.hidden_states) == 1 + len(structure.blocks)
        assert [a.shape[1] for a in out.attentions] == [block.heads.count for block in structure.blocks]
        assert getattr(student.config, "vision_config", student.config).num_hidden_layers == len(structure.blocks)
    assert all(isinstance(state, Tensor) for state in out.hidden_states)


def test_a_description_does_not_leave_a_table_without_values() -> None:
    """transformers caches rotary and relative positions for the whole process."""
    for family, side in (("DINOv3", 48), ("transformers BEiT, relative", 48)):
        model = adapter_of_library("transformers").create(
            "DINOv3ViTModel" if family == "DINOv3" else "BeitForImageClassification",
            **{**PLAIN, "image_size": side},
            **({} if family == "DINOv3" else {"use_relative_position_bias": True}),
        )
        structure: ViTStructure = describe(model.eval())
        assert torch.isfinite(logits_of(model(images_for(structure, dtype=torch.float32)))).all()


@pytest.mark.parametrize(
    "architecture, found",
    [
        ("CLIPModel", "input_ids besides pixel_values"),
        ("SiglipModel", "input_ids besides pixel_values"),
        ("Siglip2VisionModel", "pixel_attention_mask and spatial_shapes besides pixel_values"),
        ("BertModel", "takes no images"),
        ("ViTForMaskedImageModeling", "none of the classes"),
    ],
)
def test_an_unsupported_class_is_an_error_with_its_name(architecture: str, found: str) -> None:
    cls = getattr(transformers, architecture)
    with torch.device("meta"):
        model = cls(cls.config_class())
    with pytest.raises(UnsupportedModel, match=rf"transformers' {architecture}, which .*{found}"):
        describe(model)


def test_parts_outside_the_blocks_are_listed() -> None:
    skipped_parts = describe(build_row(BACKBONES["SigLIP"])).skipped_parts
    assert any("head.attention" in part for part in skipped_parts) and any("head.mlp" in part for part in skipped_parts)


@pytest.mark.parametrize("missing", ["dense", "vitrim"])
def test_a_folder_without_plan_or_dense_model_is_an_error(missing: str, tmp_path: Path) -> None:
    pruned_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config[missing]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointMismatch, match=missing):
        CLASSIFIER.from_pretrained(tmp_path)


def test_create_loads_a_folder_of_transformers(tmp_path: Path) -> None:
    model = build_row(ROWS["transformers ViT"], dtype=torch.float32)
    model.save_pretrained(tmp_path)
    create = adapter_of_library("transformers").create
    assert_same(create(str(tmp_path), pretrained=True), model)
    other = create(str(tmp_path), num_classes=3)
    assert describe(other).num_classes == 3
    assert torch.equal(other.vit.layernorm.weight, model.vit.layernorm.weight)
    pruned_model().save_pretrained(tmp_path)
    assert_same(create(str(tmp_path)), pruned_model())


@pytest.mark.parametrize(
    "name, arguments, found",
    [
        ("no-such-folder", {}, "no model under 'no-such-folder'"),
        ("ViTForImageClassification", {"num_haeds": 3}, "no num_haeds"),
        ("ViTForImageClassification", {"pretrained": True}, "without weights"),
        ("ViTForImageClassification", {"hidden_act": "no-such"}, "could not build"),
    ],
)
def test_wrong_names_and_settings_are_errors(name: str, arguments: dict, found: str, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError, match=found):
        adapter_of_library("transformers").create(name, **arguments)


@pytest.mark.parametrize("family", ["transformers ViT", "transformers DINOv2", "transformers DeiT, distilled"])
def test_a_model_with_a_new_head_is_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = with_new_head(build_row(ROWS[family], dtype=torch.float32), 3)
    structure = describe(model)
    assert structure.num_classes == 3
    student = prune(model, random_plan(structure, seed=1))
    save(student, tmp_path, classes=("ant", "bee", "cat"))
    assert_same(load(tmp_path), student)
    assert load_with_auto(tmp_path).config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    loaded = load(tmp_path)
    assert loaded.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    assert origin_of(with_new_head(loaded, 3)).classes == ()
    assert origin_of(load(tmp_path)).classes == ("ant", "bee", "cat")


def test_a_new_head_for_a_backbone_is_an_error() -> None:
    with pytest.raises(SettingError, match="ForImageClassification"):
        with_new_head(build_row(BACKBONES["ViT"]), 3)


def test_arguments_besides_the_configuration_are_kept(tmp_path: Path) -> None:
    model = transformers.ViTModel(transformers.ViTConfig(**PLAIN), add_pooling_layer=False)
    student = prune(model.eval(), random_plan(describe(model), seed=1))
    save(student, tmp_path)
    assert same_tensors(load(tmp_path), student)
    assert same_tensors(load_with_auto(tmp_path), student)


def test_preprocessing_comes_from_the_folder_or_else_from_the_family(tmp_path: Path) -> None:
    model = build_row(ROWS["transformers ViT"], dtype=torch.float32)
    adapter = adapter_for(model)
    squashed = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }
    assert adapter.preprocessing(model) == {"img_size": [32, 32], **squashed}
    model.save_pretrained(tmp_path)
    processor = {
        "do_center_crop": True,
        "crop_size": {"height": 32, "width": 32},
        "size": {"shortest_edge": 40},
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert adapter.preprocessing(load_with_auto(tmp_path)) == {
        "img_size": [32, 32],
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "bicubic",
        "crop_pct": 0.8,
        "crop_mode": "center",
        "steps": {"size": {"shortest_edge": 40}, "crop": [32, 32], "bgr": False, "as_float": False},
    }


@pytest.mark.parametrize("channels", [1, 4])
def test_a_model_has_the_channels_of_its_configuration(channels: int) -> None:
    sizes = {"image_size": 32, "patch_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    adapter = adapter_of_library("transformers")
    model = adapter.create("ViTForImageClassification", num_classes=2, num_channels=channels, **sizes)
    assert describe(model).in_chans == len(adapter.preprocessing(model)["std"]) == channels


def test_stochastic_depth_grows_linearly_in_dinov2_and_is_an_error_in_vit() -> None:
    model = build_row(ROWS["transformers DINOv2"])
    adapter = adapter_for(model)
    adapter.set_drop_path(model, 0.2)
    first, last = (model.get_submodule(block.name).drop_path for block in describe(model).blocks)
    assert isinstance(first, nn.Identity) and last.drop_prob == pytest.approx(0.2)
    adapter.set_drop_path(model, 0.0)
    assert all(isinstance(model.get_submodule(block.name).drop_path, nn.Identity) for block in describe(model).blocks)
    plain = build_row(ROWS["transformers ViT"])
    adapter.set_drop_path(plain, 0.0)
    with pytest.raises(SettingError, match="no stochastic depth"):
        adapter.set_drop_path(plain, 0.1)


@pytest.mark.parametrize(
    "id2label, expected",
    [
        (dict(enumerate("abcde")), ("a", "b", "c", "d", "e")),
        ({index: f"LABEL_{index}" for index in range(5)}, ()),
        (dict(enumerate("abcdef")), ()),  # of another classifier
    ],
)
def test_names_of_transformers_are_those_of_its_classifier(id2label: dict[int, str], expected: tuple[str, ...]) -> None:
    model = ROWS["transformers ViT"]()
    model.config.id2label = id2label
    assert origin_of(model).classes == expected


def test_names_that_a_pruned_model_gets_in_its_configuration_are_saved(tmp_path: Path) -> None:
    pruned = pruned_model("transformers ViT")
    pruned.config.id2label = dict(enumerate("abcde"))
    assert origin_of(load(save(pruned, tmp_path))).classes == tuple("abcde")


def test_a_class_that_gets_the_configuration_of_a_pruned_or_changed_model_builds_that_model(tmp_path: Path) -> None:
    changed = ROWS["transformers ViT"]().float().eval()
    changed.vit.layernorm.eps = 0.5
    for name, model in {"pruned": pruned_model("transformers ViT").float().eval(), "changed": changed}.items():
        config = transformers.AutoConfig.from_pretrained(save(model, tmp_path / name))
        loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / name, config=config).eval()
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded(images).logits, model(images).logits)
