"""Opening a model: by name, from folders of other libraries, and the names that are refused."""

import json
from pathlib import Path

import pytest
import torch

from builders.checkpoints import ARGUMENTS, args, tiny
from builders.models import build, random_images, random_plan
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.evaluation import preprocessing_of
from vitrim.models import describe
from vitrim.saving.checkpoint import load, save
from vitrim.saving.opening import has_random_weights, open_model
from vitrim.surgery import prune

IMAGES = random_images(dtype=torch.float32)


def test_a_folder_that_timm_wrote_is_opened(tmp_path: Path) -> None:
    from timm.models import save_for_hf

    dense = build(dtype=torch.float32)
    save_for_hf(dense, tmp_path, model_config={"num_classes": 7}, safe_serialization=True)
    opened = open_model(str(tmp_path))
    assert torch.equal(opened(IMAGES), dense(IMAGES))
    student = prune(opened, random_plan(describe(opened), seed=1))
    save(student, tmp_path / "cut")
    assert torch.equal(load(tmp_path / "cut")(IMAGES), student(IMAGES))


def test_a_folder_that_transformers_wrote_is_opened(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=7)
    dense = transformers.ViTForImageClassification(config).eval()
    dense.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path))
    assert type(opened) is type(dense)
    assert torch.equal(opened(IMAGES).logits, dense(IMAGES).logits)


def test_weights_of_transformers_give_their_logits_at_their_image_size(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, patch_size=8, image_size=32, num_labels=5)
    model = transformers.ViTForImageClassification(config).eval()
    arguments = {"arch": "transformers:ViTForImageClassification", "model_args": {**sizes, "patch_size": 8}}
    torch.save(
        {"state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}}, tmp_path / "a.ckpt"
    )
    assert torch.equal(open_model(str(tmp_path / "a.ckpt"), **arguments)(IMAGES).logits, model(IMAGES).logits)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": {"height": 32, "width": 32}}
    text = json.dumps(settings)
    (tmp_path / "preprocessor_config.json").write_text(text)  # beside the weights
    assert preprocessing_of(open_model(str(tmp_path / "a.ckpt"), **arguments)).mean == (0.1, 0.2, 0.3)
    with pytest.raises(CheckpointMismatch, match=r"position_embeddings is \(1, 17, 16\), the model has \(1, 37, 16\)"):
        open_model(str(tmp_path / "a.ckpt"), **arguments, img_size=48)


def test_names_of_earlier_releases_of_transformers_are_converted(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, patch_size=16, image_size=32, num_labels=5)
    model = transformers.ViTForImageClassification(config).eval()
    names = {"attention.o_proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    names |= {f"attention.{n[0]}_proj": f"attention.attention.{n}" for n in ("query", "key", "value")}
    state = model.state_dict()
    for today, before in {"vit.layers.": "vit.encoder.layer.", **names}.items():
        state = {name.replace(today, before): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    arguments = {"arch": "transformers:ViTForImageClassification", "model_args": {**sizes, "patch_size": 16}}
    assert torch.equal(
        open_model(str(tmp_path / "pytorch_model.bin"), **arguments)(IMAGES).logits, model(IMAGES).logits
    )


def test_a_folder_of_transformers_that_lacks_a_tensor_is_refused_by_name(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=16, num_labels=7)
    backbone = transformers.ViTModel(config, add_pooling_layer=False)
    backbone.save_pretrained(tmp_path)
    assert describe(open_model(f"transformers:{tmp_path}", num_classes=3)).num_classes == 3  # a new classifier
    opened = open_model(str(tmp_path))
    assert torch.equal(opened(IMAGES).last_hidden_state, backbone.eval()(IMAGES).last_hidden_state)
    assert opened.pooler is None  # it would be random
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace("ViTModel", "ViTForImageClassification"))
    with pytest.raises(CheckpointMismatch, match=r"describes a ViTForImageClassification: \d+ are missing"):
        open_model(str(tmp_path))


def test_an_opened_checkpoint_is_saved_and_loaded_with_its_sizes_and_preprocessing(tmp_path: Path) -> None:
    model = tiny(img_size=48, global_pool="avg")
    settings = args(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    torch.save({"model": model.state_dict(), "args": settings}, tmp_path / "file.pth")
    found = open_model(str(tmp_path / "file.pth"), model_args={**ARGUMENTS, "depth": 2})
    save(found, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    images = random_images(side=48, dtype=torch.float32)
    assert torch.equal(loaded(images), model(images))
    assert preprocessing_of(loaded) == preprocessing_of(found)
    assert preprocessing_of(loaded).mean == (0.1, 0.2, 0.3)


def test_a_name_may_have_the_prefix_of_its_library() -> None:
    model = open_model("torchvision:vit_b_16", img_size=32, num_classes=3)
    assert type(model).__module__.startswith("torchvision.")
    assert model(IMAGES).shape == (4, 3)
    assert type(open_model("timm:vit_tiny_patch16_224", img_size=32)).__module__.startswith("timm.")


@pytest.mark.parametrize(
    "name",
    [
        *("someone/small-vit", "torchvision:no_such_model", "timm:no_such_model", "transformers:NoSuchModel"),
        *("torchvison:vit_b_16", "timm:", "nothing:vit"),
    ],
)
def test_an_unknown_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SettingError):
        open_model(name)


def test_weights_are_random_without_a_folder_a_repository_or_pretrained(tmp_path: Path) -> None:
    random = ["vit_tiny_patch16_224", "torchvision:vit_b_16", "transformers:ViTForImageClassification"]
    assert all(has_random_weights(name) for name in [*random, "timm:hf-hub:someone/vit"])
    assert not any(has_random_weights(name, pretrained=True) for name in random)
    assert not has_random_weights("transformers:someone/vit")
    assert not has_random_weights(str(tmp_path))


def test_a_folder_of_one_run_is_refused_with_the_name_of_the_run(tmp_path: Path) -> None:
    save(build(), tmp_path / "only" / "model")
    with pytest.raises(SettingError, match=r"holds a run; give its folder, .*only\."):
        open_model(str(tmp_path))
    assert describe(open_model(str(tmp_path / "only"))) == describe(build())
