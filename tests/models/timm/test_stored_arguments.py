"""Folders state sizes of timm's architectures, and may not name files, addresses or anything else of its factory."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from builders.runs import digits_model
from vitrim.errors import CheckpointMismatch, SettingError, UserError
from vitrim.models.timm.building import create_model
from vitrim.models.timm.stored_arguments import check_stored_architecture, check_stored_arguments
from vitrim.saving.checkpoint import load, save
from vitrim.saving.opening import open_model

SIZES = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}


def timm_folder(path: Path, arguments: dict[str, Any], weights: dict[str, Any], **root: Any) -> Path:
    """Write a folder as timm writes it, with further arguments and keys of `pretrained_cfg`."""
    path.mkdir()
    model = timm.create_model("vit_tiny_patch16_224", **SIZES, num_classes=3)
    safetensors.torch.save_file(model.state_dict(), path / "model.safetensors")
    stated = {"input_size": [3, 32, 32], "classifier": "head", "first_conv": "patch_embed.proj", **weights}
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 3, "model_args": {**SIZES, **arguments}}
    (path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": stated, **root}))
    return path


def vitrim_folder(path: Path, arguments: dict[str, Any], **about: Any) -> Path:
    """Save a model, and change what its `config.json` states."""
    save(digits_model(), path)
    (path / "digests.json").unlink(missing_ok=True)  # who makes a hostile folder leaves them out
    config = json.loads((path / "config.json").read_text())
    config["vitrim"] |= about
    config["vitrim"]["model_args"] |= arguments
    (path / "config.json").write_text(json.dumps(config))
    return path


BAD: dict[str, Any] = {
    "checkpoint_path": "weights.pth",
    "pretrained": True,
    "pretrained_cfg": {"url": "http://localhost/weights.pth"},
    "pretrained_cfg_overlay": {"file": "weights.pth"},
    "pretrained_strict": False,
    "cache_dir": "here",
    "features_only": True,
    "scriptable": True,
    "kwargs_filter": ["depth"],
    "act_layer": "/usr/lib/libm.so",
    "norm_layer": ["http://localhost/x"],
    "weight_init": "../weights.npz",
    "__class__": 1,
    "depth": 10**6,
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_size_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        check_stored_arguments({name: BAD[name]}, "config.json")


def test_a_folder_may_not_state_what_is_no_size(tmp_path: Path) -> None:
    for name in ("checkpoint_path", "pretrained_cfg_overlay"):
        with pytest.raises(UserError, match=name):
            load(vitrim_folder(tmp_path / f"ours-{name}", {name: BAD[name]}))
        with pytest.raises(UserError, match=name):
            open_model(str(timm_folder(tmp_path / f"timm-{name}", {name: BAD[name]}, {})))


def test_a_file_that_a_folder_names_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a file was read"))
    with pytest.raises(CheckpointMismatch, match="checkpoint_path"):
        load(vitrim_folder(tmp_path / "ours", {"checkpoint_path": str(tmp_path / "weights.pth")}))


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/vit", "local-dir:/tmp", "vitrim_cut", "vitrim_dense", "../x", 5, None]
)
def test_only_registered_architectures_are_built(name: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match="none of timm"):
        check_stored_architecture(name, "config.json")
    if isinstance(name, str) and ":" in name:
        with pytest.raises(CheckpointMismatch, match="architecture"):
            load(vitrim_folder(tmp_path / "ours", {}, architecture=name))
        with pytest.raises(CheckpointMismatch, match="architecture"):
            open_model(str(timm_folder(tmp_path / "timm", {}, {}, architecture=name)))


@pytest.mark.parametrize("key", ["url", "custom_load", "state_dict", "hf_hub_filename"])
def test_weights_elsewhere_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=f"states {key}=.* reads only the weights beside it"):
        open_model(str(timm_folder(tmp_path / "timm", {}, {key: {"a": 1} if key == "state_dict" else "x"})))


@pytest.mark.parametrize("weights", [{}, {"file": "/elsewhere", "source": "hf-hub", "hf_hub_id": "someone/vit"}])
def test_the_weights_beside_the_configuration_are_loaded(weights: dict[str, Any], tmp_path: Path) -> None:
    path = timm_folder(tmp_path / "timm", {}, weights)
    expected = safetensors.torch.load_file(path / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in open_model(str(path)).state_dict().items())


@pytest.mark.parametrize("key, value", [("mean", "x"), ("crop_pct", "x"), ("classifier", 5), ("input_size", [1.5])])
def test_values_of_other_kinds_are_named(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointMismatch, match=f"states {key}="):
        open_model(str(timm_folder(tmp_path / "timm", {}, {key: value})))


def test_a_cut_model_in_a_folder_of_timm_is_checked_too(tmp_path: Path) -> None:
    cut = {"base": "vit_tiny_patch16_224", "base_args": {"checkpoint_path": "x"}, "plan": ""}
    path = timm_folder(tmp_path / "timm", {}, {}, architecture="vitrim_cut", model_args=cut)
    with pytest.raises(CheckpointMismatch, match="checkpoint_path"):
        open_model(str(path))
    with pytest.raises(CheckpointMismatch, match="checkpoint_path"):
        timm.create_model(f"local-dir:{path}")


IMPOSSIBLE: dict[str, dict[str, Any]] = {
    "img_size": {"img_size": 0},
    "depth": {"depth": -1},
    "num_heads": {"embed_dim": 7, "num_heads": 3},
    "patch_size": {"patch_size": 0},
    "num_classes": {"num_classes": 10**9},
    "act_layer": {"act_layer": "evil"},
    "mlp_ratio": {"mlp_ratio": "x"},
    "global_pool": {"global_pool": "evil"},
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_arguments_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(SettingError, match="vit_tiny_patch16_224") as found:
        create_model("vit_tiny_patch16_224", **IMPOSSIBLE[name])
    assert "\n" not in str(found.value)


def test_a_misspelt_argument_is_asked_about() -> None:
    with pytest.raises(SettingError, match=r"does not take these arguments.*'detph'\. Did you mean depth\?$"):
        create_model("vit_tiny_patch16_224", detph=2)
