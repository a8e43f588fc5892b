"""Rows of the models of Hugging Face's transformers, at tiny size."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitrim.models import adapter_of_library

Row = Callable[[], nn.Module]

IMAGE = {"image_size": 32, "patch_size": 16, "num_labels": 5}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
PLAIN = {**IMAGE, **SIZES}
FIXED_POSITIONS = {"pos_embed_rescale": None}  # otherwise DINOv3 draws random positions in train mode
WITH_RATIO = {**{name: size for name, size in PLAIN.items() if name != "intermediate_size"}, "mlp_ratio": 2}
SWIN = {**IMAGE, "patch_size": 4, "embed_dim": 8, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}


def transformers_model(architecture: str, **arguments: Any) -> Row:
    """A model by the name of its class."""
    return lambda: adapter_of_library("transformers").create(architecture, **arguments)


def with_fixed_mask(**arguments: Any) -> Row:
    """A masked autoencoder that hides the same patches in every forward pass."""

    def with_noise(module: nn.Module, args: Any, kwargs: Any) -> Any:
        images = args[0]
        noise = torch.arange(4, dtype=images.dtype, device=images.device).expand(len(images), 4)
        return args, {"noise": noise, **kwargs}

    def build() -> nn.Module:
        model = adapter_of_library("transformers").create("ViTMAEModel", **arguments)
        model.register_forward_pre_hook(with_noise, with_kwargs=True)
        return model

    return build


CLASSIFIER = "ForImageClassification"
HUGGINGFACE: dict[str, Row] = {
    "transformers ViT": transformers_model(f"ViT{CLASSIFIER}", **PLAIN),
    "transformers ViT, no qkv bias": transformers_model(f"ViT{CLASSIFIER}", **PLAIN, qkv_bias=False),
    "transformers DeiT": transformers_model(f"DeiT{CLASSIFIER}", **PLAIN),
    "transformers DeiT, distilled": transformers_model(f"DeiT{CLASSIFIER}WithTeacher", **PLAIN),
    "transformers DINOv2": transformers_model(f"Dinov2{CLASSIFIER}", **WITH_RATIO),
    "transformers DINOv2, SwiGLU": transformers_model(f"Dinov2{CLASSIFIER}", **WITH_RATIO, use_swiglu_ffn=True),
    "transformers DINOv2, registers": transformers_model(f"Dinov2WithRegisters{CLASSIFIER}", **WITH_RATIO),
    "transformers BEiT": transformers_model(f"Beit{CLASSIFIER}", **PLAIN, drop_path_rate=0.0),
    "transformers BEiT, relative": transformers_model(
        f"Beit{CLASSIFIER}", **PLAIN, drop_path_rate=0.0, use_relative_position_bias=True
    ),
    "transformers BEiT, shared": transformers_model(
        f"Beit{CLASSIFIER}", **PLAIN, drop_path_rate=0.0, use_shared_relative_position_bias=True
    ),
    "transformers SigLIP": transformers_model(f"Siglip{CLASSIFIER}", **PLAIN),
    "transformers CLIP": transformers_model(f"CLIP{CLASSIFIER}", **PLAIN),
    "transformers MSN": transformers_model(f"ViTMSN{CLASSIFIER}", **PLAIN),
    "transformers I-JEPA": transformers_model(f"IJepa{CLASSIFIER}", **PLAIN),
    "transformers Swin": transformers_model(f"Swin{CLASSIFIER}", **SWIN, drop_path_rate=0.0),
    "transformers Swin v2": transformers_model(f"Swinv2{CLASSIFIER}", **SWIN, drop_path_rate=0.0),
}
# without a classifier, so without a loss; test_transformers.py tests the laws that need no loss
BACKBONES: dict[str, Row] = {
    "ViT": transformers_model("ViTModel", **PLAIN),
    "DINOv3": transformers_model("DINOv3ViTModel", **PLAIN, **FIXED_POSITIONS, num_register_tokens=1),
    "DINOv3, gated": transformers_model(
        "DINOv3ViTModel", **PLAIN, **FIXED_POSITIONS, num_register_tokens=2, use_gated_mlp=True
    ),
    "SigLIP": transformers_model("SiglipVisionModel", **PLAIN),
    "CLIP": transformers_model("CLIPVisionModel", **PLAIN),
    "MAE": with_fixed_mask(**PLAIN, mask_ratio=0.5),
    "Swin": transformers_model("SwinModel", **SWIN, drop_path_rate=0.0, use_absolute_embeddings=True),
}
