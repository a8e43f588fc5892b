"""Laws of channels: a model takes as many as its first convolution, and has a mean and a deviation for each."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from builders.models import build
from vitrim.data.matching import preprocessing_of
from vitrim.models import describe
from vitrim.models.channels import input_channels, with_channels
from vitrim.models.torchvision.adapter import TorchvisionAdapter

TORCHVISION = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}


def of_timm(channels: int) -> nn.Module:
    return build(in_chans=channels)


def of_torchvision(channels: int) -> Any:
    model = TorchvisionAdapter().create("VisionTransformer", **TORCHVISION)
    if channels != 3:
        model.conv_proj = nn.Conv2d(channels, 16, 16, 16)
    return model


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("make", [of_timm, of_torchvision])
def test_a_model_is_described_with_its_own_channels(make: Any, channels: int) -> None:
    model = make(channels)
    assert describe(model).in_chans == preprocessing_of(model).channels == channels


def test_channels_without_numbers_of_their_own_get_the_average() -> None:
    colours = {"mean": [0.1, 0.2, 0.6], "std": [0.2, 0.2, 0.5]}
    expected = {1: [0.3], 2: [0.3, 0.3], 3: [0.1, 0.2, 0.6], 5: [0.1, 0.2, 0.6, 0.3, 0.3]}
    for channels, mean in expected.items():
        found = with_channels(colours, channels)
        assert found["mean"] == pytest.approx(mean) and len(found["std"]) == channels
    assert with_channels({"mean": [0.5], "std": [0.5]}, 3)["mean"] == [0.5] * 3
    own = {"mean": [0.1, 0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3, 0.4], "img_size": 8}
    assert with_channels(own, 4) == own


def test_the_numbers_in_the_configuration_of_the_model_are_used() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        in_chans=1,
        depth=1,
        num_classes=2,
        pretrained_cfg_overlay={"mean": (0.13,), "std": (0.3,)},
    )
    assert (preprocessing_of(model).mean, preprocessing_of(model).std) == ((0.13,), (0.3,))


def test_a_replaced_convolution_is_seen_after_the_model_was_saved(tmp_path: Any) -> None:
    from vitrim.saving.checkpoint import load, save

    model: Any = load(save(build(num_classes=2, dtype=torch.float32), tmp_path / "model"))
    old = model.patch_embed.proj
    model.patch_embed.proj = nn.Conv2d(1, old.out_channels, old.kernel_size, old.stride)
    assert preprocessing_of(model).channels == 1


def test_a_model_without_convolutions_has_the_channels_that_it_states() -> None:
    assert input_channels(nn.Linear(2, 2), 3) == 3
