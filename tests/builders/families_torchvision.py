"""Rows of torchvision's models, at tiny size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

from vitrim.models import adapter_of_library
from vitrim.models.torchvision.adapter import IMG_SIZE

Row = Callable[[], nn.Module]

torch.backends.mha.set_fastpath_enabled(False)  # counters do not see inside this single operation

VIT = {"img_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 24}
SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [2, 4],
    "mlp_ratio": 1.5,
    "stochastic_depth_prob": 0.0,
    "num_classes": 5,
}


def torchvision_model(architecture: str, **arguments: Any) -> Row:
    """A model by torchvision's name or class."""
    return lambda: adapter_of_library("torchvision").create(architecture, **arguments)


def swin_v2(**arguments: Any) -> Row:
    """A Swin v2 that is smaller than those with a name."""

    def build() -> nn.Module:
        model = SwinTransformer(**arguments, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)
        setattr(model, IMG_SIZE, 32)
        return model

    return build


TORCHVISION: dict[str, Row] = {
    "torchvision ViT": torchvision_model("VisionTransformer", **VIT, num_classes=5),
    "torchvision ViT, deeper head": torchvision_model("VisionTransformer", **VIT, num_classes=5, representation_size=8),
    "torchvision Swin": torchvision_model("SwinTransformer", **SWIN, img_size=32, window_size=[4, 4]),
    "torchvision Swin, padded": torchvision_model("SwinTransformer", **SWIN, img_size=32, window_size=[3, 3]),
    "torchvision Swin v2": swin_v2(**SWIN, window_size=[4, 4]),
    "torchvision Swin v2, padded": swin_v2(**SWIN, window_size=[4, 3]),
}
MADE_OF_BLOCKS = {
    name for name in TORCHVISION if "v2" in name
}  # rows whose arguments are classes, which no file can store
