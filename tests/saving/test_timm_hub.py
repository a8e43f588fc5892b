"""timm and transformers load models that vitrim has pruned and saved."""

import json
from pathlib import Path

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

from builders.models import build, random_images, random_plan, same_tensors
from vitrim.errors import SaveMismatch
from vitrim.models import describe, origin_of
from vitrim.saving.checkpoint import load, save
from vitrim.surgery import prune

IMAGES = random_images(dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(student: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(student, tmp_path_factory.mktemp("cut"), classes=tuple("abcdefg"))


@pytest.mark.parametrize("pretrained", [True, False])
def test_timm_loads_a_pruned_model_with_its_weights(pretrained: bool, student: nn.Module, folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", pretrained=pretrained).eval()
    assert type(model) is type(student)
    assert same_tensors(model, student)
    assert torch.equal(model(IMAGES), student(IMAGES))
    assert model.pretrained_cfg["mean"] == list(student.pretrained_cfg["mean"])


def test_timm_can_replace_the_classifier(student: nn.Module, folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", num_classes=3).eval()
    assert model(IMAGES).shape == (4, 3)
    assert torch.equal(model.forward_features(IMAGES), student.forward_features(IMAGES))
    assert origin_of(model).model_args["num_classes"] == 3


def test_timm_returns_features(student: nn.Module, folder: Path) -> None:
    wrapper = timm.create_model(f"local-dir:{folder}", features_only=True).eval()
    parent = timm.create_model("vit_tiny_patch16_224", features_only=True, img_size=32, embed_dim=16, num_heads=4)
    assert type(wrapper) is type(parent)
    _, expected = student.forward_intermediates(IMAGES, indices=3)
    found = wrapper(IMAGES)
    assert len(found) == len(expected) == 3
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


def test_timm_can_change_the_image_size(folder: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}", img_size=48).eval()
    assert model(random_images(side=48, dtype=torch.float32)).shape == (4, 7)


def test_a_model_loaded_by_timm_can_be_pruned_and_saved(folder: Path, tmp_path: Path) -> None:
    model = timm.create_model(f"local-dir:{folder}").eval()
    plan = random_plan(describe(model), seed=5, blocks=(0, 2))
    twice = prune(model, plan)
    save(twice, tmp_path)
    for again in (load(tmp_path), timm.create_model(f"local-dir:{tmp_path}").eval()):
        assert torch.equal(again(IMAGES), twice(IMAGES))
    assert [kept.block for kept in origin_of(twice).plan.blocks] == [0, 3]


def test_timm_loads_a_pruned_model_from_the_hub(
    student: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that returns the files of the folder replaces the download."""

    def download(repo_id: str, filename: str, **options: object) -> str:
        assert repo_id == "someone/small-vit"
        if not (folder / filename).is_file():
            from huggingface_hub.errors import EntryNotFoundError

            raise EntryNotFoundError(filename)
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    model = timm.create_model("hf-hub:someone/small-vit").eval()
    assert torch.equal(model(IMAGES), student(IMAGES))


@pytest.fixture(scope="module")
def dense_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build(dtype=torch.float32, seed=3), tmp_path_factory.mktemp("dense"), classes=tuple("abcdefg"))


@pytest.mark.parametrize("pretrained", [True, False])
def test_timm_loads_a_dense_model_with_its_weights(pretrained: bool, dense_folder: Path) -> None:
    model = timm.create_model(f"local-dir:{dense_folder}", pretrained=pretrained).eval()
    assert same_tensors(model, load(dense_folder))
    again = timm.create_model(f"local-dir:{dense_folder}", num_classes=3).eval()
    assert again(IMAGES).shape == (4, 3)
    assert torch.equal(again.forward_features(IMAGES), model.forward_features(IMAGES))
    features = timm.create_model(f"local-dir:{dense_folder}", features_only=True).eval()(IMAGES)
    _, expected = model.forward_intermediates(IMAGES, indices=3)
    assert all(torch.equal(one, two) for one, two in zip(features, expected, strict=True))


def test_a_dense_model_loaded_by_timm_can_be_pruned_and_saved(dense_folder: Path, tmp_path: Path) -> None:
    model = timm.create_model(f"local-dir:{dense_folder}").eval()
    student = prune(model, random_plan(describe(model), seed=5, blocks=(0, 2)))
    for name, saved in (("dense", model), ("pruned", student)):
        folder = save(saved, tmp_path / name)
        assert torch.equal(load(folder)(IMAGES), saved(IMAGES))
        assert origin_of(load(folder)).classes == tuple("abcdefg")


def test_timm_without_vitrim_loads_a_dense_model(dense_folder: Path) -> None:
    config = json.loads((dense_folder / "config.json").read_text())
    assert not (dense_folder / "modeling.py").exists()
    assert timm.models.PretrainedCfg(**config["pretrained_cfg"]).num_classes == 7
    plain = timm.create_model(config["architecture"], num_classes=7, **config["model_args"]).eval()
    plain.load_state_dict(load(dense_folder).state_dict())
    assert torch.equal(plain(IMAGES), load(dense_folder)(IMAGES))


@pytest.mark.parametrize("which", ["dense", "pruned"])
def test_timm_reads_the_true_configuration_of_a_loaded_model(which: str, folder: Path, dense_folder: Path) -> None:
    path = dense_folder if which == "dense" else folder
    for model in (load(path), timm.create_model(f"local-dir:{path}")):
        config = model.pretrained_cfg
        assert model.default_cfg is config
        assert (config["num_classes"], list(config["label_names"])) == (7, list("abcdefg"))
        found, recorded = resolve_model_data_config(model), origin_of(model).preprocessing
        assert list(found["input_size"]) == [3, 32, 32] and recorded["img_size"] == [32, 32]
        names = ("interpolation", "crop_pct", "crop_mode", "mean", "std")
        assert [found[name] for name in names] == [recorded[name] for name in names]


def test_transformers_loads_a_pruned_timm_model(student: nn.Module, folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert torch.equal(model(IMAGES).logits, student(IMAGES))
    assert [model.config.id2label[index] for index in range(7)] == list("abcdefg")


def test_a_model_with_few_blocks_returns_the_features_of_all_its_blocks(tmp_path: Path) -> None:
    dense = build(dtype=torch.float32)
    save(prune(dense, random_plan(describe(dense), seed=2, blocks=(0, 3))), tmp_path)
    assert len(timm.create_model(f"local-dir:{tmp_path}", features_only=True).eval()(IMAGES)) == 2


def test_what_timm_writes_of_a_pruned_model_is_loaded_by_timm(student: nn.Module, tmp_path: Path) -> None:
    model = load(save(student, tmp_path / "saved", classes=tuple("abcdefg")))
    model.pretrained_cfg = {**model.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    save_for_hf(model, tmp_path / "hub")
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), student(IMAGES))
    assert origin_of(again).plan == origin_of(student).plan
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["label_names"] == list("abcdefg") and config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]
    once_more = prune(again, random_plan(describe(again), seed=5, blocks=(0, 2)))
    once_more.reset_classifier(3)
    save_for_hf(once_more, tmp_path / "again", safe_serialization=True)
    last = timm.create_model(f"local-dir:{tmp_path / 'again'}", pretrained=True).eval()
    assert torch.equal(last(IMAGES), once_more.eval()(IMAGES)) and last.num_classes == 3


def test_what_timm_writes_of_a_dense_model_is_unchanged(tmp_path: Path) -> None:
    save_for_hf(build(dtype=torch.float32), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_tiny_patch16_224" and "plan" not in config["model_args"]


@pytest.mark.parametrize("is_pruned", [True, False])
def test_what_timm_writes_of_a_changed_model_computes_the_same(
    is_pruned: bool, student: nn.Module, tmp_path: Path
) -> None:
    model = load(save(student if is_pruned else build(dtype=torch.float32), tmp_path / "saved"))
    model.blocks[0].mlp.act, model.norm.eps = nn.ReLU(), 0.5
    model.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(model.embed_dim, 3))
    model.eval()
    save_for_hf(model, tmp_path / "hub")
    again = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_timm_does_not_write_a_pruned_model_that_it_could_not_load(student: nn.Module, tmp_path: Path) -> None:
    class Halved(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens / 2

    model = load(save(student, tmp_path / "saved"))
    model.norm = Halved()
    with pytest.raises(SaveMismatch, match="`norm` is a"):
        save_for_hf(model, tmp_path / "hub")
