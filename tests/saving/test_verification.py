"""What is saved and loaded computes what was saved, whatever was changed on the model before; else it is refused."""

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from builders.changed import KEPT, MODELS, REFUSED, changed, deep_head
from builders.families_timm import build_row
from builders.models import random_plan, same_tensors
from builders.rows import ROWS
from builders.standalone import modeling_of
from vitrim.data.matching import preprocessing_of
from vitrim.errors import CheckpointMismatch, SaveMismatch, UnsupportedModel
from vitrim.hooks import logits_of
from vitrim.models import describe
from vitrim.runs.files import read_json
from vitrim.saving.checkpoint import load, save
from vitrim.surgery import prune

FAST = {"pooling", "a head of several layers", "the colours"}
FAST |= {"transformers: a head of several layers", "a hook", "forward of the model", "a layer of an own class"}


def marked(names: dict) -> list:
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in names]


def images_of(model: nn.Module) -> Tensor:
    structure = describe(model)
    dtype = next(model.parameters()).dtype
    return torch.randn(3, structure.in_chans, *structure.img_size, generator=torch.Generator().manual_seed(1)).to(dtype)


def cut(model: nn.Module) -> nn.Module:
    return prune(model, random_plan(describe(model), seed=1))


@torch.no_grad()
def assert_same_result(other: nn.Module, model: nn.Module) -> None:
    images = images_of(model)
    found, expected = logits_of(other(images)), logits_of(model.eval()(images))
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    rates = [[m.p for m in one.modules() if isinstance(m, nn.Dropout)] for one in (other, model)]
    assert same_tensors(other, model) and rates[0] == rates[1]
    assert describe(other).num_classes == describe(model).num_classes
    assert preprocessing_of(other) == preprocessing_of(model)


def assert_every_loader_agrees(model: nn.Module, library: str, folder: Path) -> None:
    assert_same_result(load(save(model, folder)), model)
    if (folder / "modeling.py").exists():
        without_vitrim = modeling_of(folder).load_model()
        assert torch.equal(without_vitrim(images_of(model)), model(images_of(model)))
    if library == "timm":
        through_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).to(next(model.parameters()).dtype)
        assert_same_result(through_timm.eval(), model)
    if library == "transformers":
        from transformers import AutoModelForImageClassification

        through_auto = AutoModelForImageClassification.from_pretrained(folder)
        through_auto.set_attn_implementation(model.config._attn_implementation)
        assert torch.equal(through_auto(images_of(model)).logits, model(images_of(model)).logits)


@pytest.mark.parametrize("kind", marked(KEPT))
@torch.no_grad()
def test_a_change_before_pruning_is_saved(kind: str, tmp_path: Path) -> None:
    library, change = KEPT[kind]
    assert_every_loader_agrees(cut(changed(change, library)), library, tmp_path)


@pytest.mark.parametrize(
    "kind", [pytest.param(name, marks=pytest.mark.slow) if name != "pooling" else name for name in KEPT]
)
@torch.no_grad()
def test_a_change_is_saved_with_the_dense_model(kind: str, tmp_path: Path) -> None:
    library, change = KEPT[kind]
    assert_every_loader_agrees(changed(change, library), library, tmp_path)


@pytest.mark.parametrize("loaded", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["pruned", "loaded"])
@pytest.mark.parametrize(
    "kind", [pytest.param(n, marks=pytest.mark.slow) if n != "the input size" else n for n in KEPT]
)
@torch.no_grad()
def test_a_change_after_pruning_or_loading_is_saved(kind: str, loaded: bool, tmp_path: Path) -> None:
    library, change = KEPT[kind]
    model = cut(changed(lambda plain: None, library))
    if loaded:
        model = load(save(model, tmp_path / "first"))
    change(model)
    assert_every_loader_agrees(model.eval(), library, tmp_path / "second")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KEPT)
@torch.no_grad()
def test_a_loaded_model_with_a_change_can_be_pruned_and_saved_again(kind: str, tmp_path: Path) -> None:
    library, change = KEPT[kind]
    again = load(save(changed(change, library), tmp_path / "first"))
    assert_every_loader_agrees(cut(again), library, tmp_path / "second")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", marked(REFUSED))
def test_a_change_that_cannot_be_noted_is_named_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    library, change, message = REFUSED[kind]
    before = contents(save(MODELS[library](), tmp_path / "model"))
    model = changed(change, library)
    for folder in (tmp_path / "model", tmp_path / "new"):
        with pytest.raises((SaveMismatch, UnsupportedModel), match=message):
            save(model, folder)
    assert contents(tmp_path / "model") == before and not (tmp_path / "new").exists()


def test_a_replaced_method_of_a_class_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["timm"]()
    plain = type(model).forward_head
    monkeypatch.setattr(type(model), "forward_head", lambda self, x, pre_logits=False: 2 * plain(self, x, pre_logits))
    with pytest.raises(SaveMismatch, match="method `forward_head` of VisionTransformer was replaced"):
        save(model, tmp_path / "model")


def test_a_changed_buffer_that_is_not_in_the_state_dict_is_named(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 1)}
    model = timm.create_model("swin_tiny_patch4_window7_224", **sizes, num_classes=3)
    index = model.layers[0].blocks[0].attn.relative_position_index
    index[0, 0] = index[0, 0] + 1
    with pytest.raises(SaveMismatch, match=r"buffer `layers\.0\.blocks\.0\.attn\.relative_position_index`"):
        save(model, tmp_path / "model")


@pytest.mark.filterwarnings("ignore")  # timm's own, where it resizes position biases
@pytest.mark.slow
@pytest.mark.parametrize("family", ["EVA-02", "Swin", "BEiT"])
@torch.no_grad()
def test_tables_of_positions_fit_the_image_size_that_was_set_after_pruning(family: str, tmp_path: Path) -> None:
    model = cut(build_row(ROWS[family], dtype=torch.float32))
    height = 2 * describe(model).img_size[0]
    model.set_input_size(img_size=(height, height))
    assert_every_loader_agrees(model.eval(), "timm", tmp_path)


def test_saving_changes_neither_the_model_nor_the_random_state(tmp_path: Path) -> None:
    model = changed(lambda m: m.reset_classifier(3, global_pool="avg"), "timm")
    model.train()
    model.blocks[0].eval()
    seen: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda module, args, output: seen.append(output))  # only looks
    modes, weights = [module.training for module in model.modules()], dict(model.named_parameters())
    state = torch.get_rng_state()
    save(model, tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    after = dict(model.named_parameters())
    assert all(after[name] is weights[name] and after[name].requires_grad for name in weights)


def test_a_model_without_changes_is_loaded_by_timm_alone(tmp_path: Path) -> None:
    model = MODELS["timm"]()
    model.class_names = ["ant", "bee"]  # a note of the person, which no class reads
    model.set_grad_checkpointing()
    config = read_json(save(model, tmp_path) / "config.json")
    assert config["architecture"] == "vit_tiny_patch16_224" and "changes" not in config["vitrim"]


def test_timm_and_transformers_can_still_replace_a_changed_classifier(tmp_path: Path) -> None:
    from transformers import AutoModel

    model = changed(lambda m: setattr(m, "head", deep_head()), "timm")
    folder = save(model, tmp_path / "timm")
    assert timm.create_model(f"local-dir:{folder}", num_classes=4)(images_of(model)).shape == (3, 4)
    model = changed(lambda m: setattr(m, "classifier", deep_head()), "transformers")
    backbone = AutoModel.from_pretrained(save(model, tmp_path / "transformers"), add_pooling_layer=False).eval()
    with torch.no_grad():
        images = images_of(model)
        expected = model.vit(images).last_hidden_state
        assert torch.equal(backbone(images).last_hidden_state, expected)


@pytest.mark.parametrize("library", ["timm", pytest.param("transformers", marks=pytest.mark.slow)])
@torch.no_grad()
def test_a_changed_model_that_its_library_loaded_can_be_saved_again(library: str, tmp_path: Path) -> None:
    name = {"timm": "head", "transformers": "classifier"}[library]
    model = changed(lambda m: setattr(m, name, deep_head()), library)
    folder = save(model, tmp_path / "first")
    if library == "timm":
        loaded = timm.create_model(f"local-dir:{folder}").eval()
    else:
        from transformers import AutoModelForImageClassification

        loaded = AutoModelForImageClassification.from_pretrained(folder)
    assert_every_loader_agrees(loaded, library, tmp_path / "second")
    assert_same_result(load(tmp_path / "second"), model)


@torch.no_grad()
def test_transformers_loads_a_timm_model_with_a_changed_head(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    model = cut(changed(lambda m: setattr(m, "head", deep_head()), "timm"))
    wrapper = AutoModelForImageClassification.from_pretrained(save(model, tmp_path)).eval()
    assert torch.equal(wrapper(images_of(model)).logits, model(images_of(model)))


@torch.no_grad()
def test_formats_of_numbers_are_kept_even_if_they_are_mixed(tmp_path: Path) -> None:
    model = MODELS["timm"]().eval()
    model.pos_embed.data = model.pos_embed.data.bfloat16()  # it is added to float32, so the model runs
    back = load(save(model, tmp_path))
    assert back.pos_embed.dtype == torch.bfloat16 and back.cls_token.dtype == torch.float32
    assert_same_result(back, model)


def test_a_model_that_does_not_run_is_refused(tmp_path: Path) -> None:
    model = MODELS["timm"]()
    model.norm.double()
    with pytest.raises(SaveMismatch, match=r"does not run on images of 3 x 32 x 32: .*type"):
        save(model, tmp_path / "model")


@pytest.mark.parametrize(
    "damage",
    [
        {"modules": {"head": {"class": "os.path.join", "attributes": {}, "tensors": {}, "modules": {}}}},
        {"modules": {"head": {"class": "torch.nn.modules.linear.Lin", "attributes": {}, "tensors": {}, "modules": {}}}},
        {"attributes": {"blocks.9": {"scale": 1}}},
        {"removed": ["tail"]},
        {"tensors": {"head.bias": {"kind": "parameter", "shape": "three", "dtype": "float32"}}},
    ],
)
def test_damaged_changes_are_named(damage: dict, tmp_path: Path) -> None:
    config = read_json(save(MODELS["timm"](), tmp_path) / "config.json")
    config["vitrim"]["changes"] = damage
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "digests.json").unlink()
    with pytest.raises(CheckpointMismatch, match="notes changes that cannot be made"):
        load(tmp_path)
