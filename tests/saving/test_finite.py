"""Weights that are infinite or not a number are refused, wherever a model comes from."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from builders.families_timm import build_row
from builders.models import build
from builders.rows import EACH_KIND, ROWS
from vitrim.errors import CheckpointMismatch
from vitrim.saving.checkpoint import load, save
from vitrim.saving.finite import check_finite
from vitrim.saving.opening import open_model


def broken(value: float = math.nan) -> nn.Module:
    model = build(depth=1, dtype=torch.float32)
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight[3, 2] = value
    return model


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_broken_weight_is_named(value: float) -> None:
    message = (
        r"weights of the model are broken: blocks\.0\.attn\.qkv\.weight has 1 number of [\d,]+ that are infinite or"
    )
    with pytest.raises(CheckpointMismatch, match=message):
        check_finite(broken(value), "the model")


def test_folders_files_and_what_libraries_wrote_are_checked(tmp_path: Path) -> None:
    model = broken()
    save(model, tmp_path / "folder")
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointMismatch, match="are broken"):
        load(tmp_path / "folder")
    sizes = {"embed_dim": 16, "depth": 1, "num_heads": 4, "mlp_ratio": 1.5}
    for name in ("folder", "timm:local-dir:folder", "weights.pth", "weights.safetensors"):
        path = name.replace("folder", str(tmp_path / "folder")) if "folder" in name else str(tmp_path / name)
        options = {"arch": "vit_tiny_patch16_224", "model_args": sizes} if "weights" in name else {}
        with pytest.raises(CheckpointMismatch, match="are broken"):
            open_model(path, **options)  # type: ignore[arg-type]


def test_large_weights_are_not_broken() -> None:
    model = build(depth=1, dtype=torch.float16)
    with torch.no_grad():
        model.head.weight.fill_(60_000.0)  # their sum is infinite in float16
    assert check_finite(model, "the model") is model


def test_a_mask_may_be_infinite_and_a_statistic_may_not() -> None:
    model = nn.BatchNorm1d(4)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    check_finite(model, "the model")
    model.running_var[2] = -math.inf  # type: ignore[index]
    with pytest.raises(CheckpointMismatch, match="running_var"):
        check_finite(model, "the model")


@pytest.mark.parametrize(
    "family", [name if name in EACH_KIND else pytest.param(name, marks=pytest.mark.slow) for name in ROWS]
)
def test_models_of_every_family_are_finite(family: str) -> None:
    check_finite(build_row(ROWS[family]), family)
