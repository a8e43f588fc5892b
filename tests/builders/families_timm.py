"""Rows of timm's plain Vision Transformers: one row for each kind of model, at tiny size.

A row is a name and a function that builds the model. tests/models/test_families.py tests the same laws for every row.
"""

from collections.abc import Callable
from functools import partial

import timm
import torch
from timm.layers import SwiGLU
from timm.models import vision_transformer
from torch import nn

from builders.models import randomise
from vitrim.models import adapter_of_library

Row = Callable[[], nn.Module]

SMALL = {"num_classes": 5, "img_size": 32}
PLAIN = {**SMALL, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 4}


def timm_model(architecture: str, **arguments: object) -> Row:
    """A model by timm's name."""
    return lambda: adapter_of_library("timm").create(architecture, **arguments)


def vit_with(**parts: object) -> Row:
    """A plain ViT with other classes of parts, which no configuration file can store."""
    return lambda: timm.create_model("vit_tiny_patch16_224", **PLAIN, **parts)


EVA = {**PLAIN, "img_size": 28, "patch_size": 14}
NAFLEX = {"num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 4, "patch_size": 16}
TIMM: dict[str, Row] = {
    "ViT": timm_model("vit_tiny_patch16_224", **PLAIN),
    "ViT, attention pooling": timm_model(
        "vit_tiny_patch16_224", **PLAIN, class_token=False, global_pool="map", no_embed_class=True
    ),
    "ViT, residual post-norm": timm_model("vit_base_patch16_rpn_224", **PLAIN),
    "ViT, SwiGLU packed": timm_model("vit_giant_patch14_dinov2", **EVA, mlp_ratio=3.0),
    "ViT, scaling blocks in parallel": vit_with(block_fn=vision_transformer.ParallelScalingBlock),
    "ViT, scaling blocks with biases": vit_with(
        block_fn=partial(vision_transformer.ParallelScalingBlock, fuse_out_proj=True, qkv_bias=False)
    ),
    "ViT, two attentions and two MLPs in parallel": vit_with(block_fn=vision_transformer.ParallelThingsBlock),
    "ViT, differential attention": vit_with(attn_layer="diff"),
    "ViT, differential attention in parallel": vit_with(block_fn=vision_transformer.DiffParallelScalingBlock),
    "ViT, SwiGLU unpacked": vit_with(mlp_layer=SwiGLU),
    "ViT, hybrid stem": timm_model("vit_tiny_r_s16_p8_224", **{**PLAIN, "patch_size": 1}),
    "FlexiViT": timm_model("flexivit_small", **PLAIN),
    "ViTamin": timm_model("vitamin_small_224", num_classes=5, img_size=32),
    "AIMv2": timm_model("aimv2_large_patch14_224", **EVA),
    "CLIP": timm_model("vit_base_patch16_clip_224", **PLAIN),
    "SigLIP": timm_model("vit_base_patch16_siglip_224", **PLAIN),
    "NaFlexViT": timm_model("naflexvit_base_patch16_gap", **NAFLEX),
    "NaFlexViT, attention pooling": timm_model("naflexvit_base_patch16_map", **NAFLEX),
    "NaFlexViT, rotary": timm_model("naflexvit_base_patch16_gap", **NAFLEX, rope_type="axial"),
    "NaFlexViT, rotary learned for each head": timm_model("naflexvit_base_patch16_gap", **NAFLEX, rope_type="mixed"),
    "SAM": timm_model("samvit_base_patch16", **PLAIN, window_size=2, global_attn_indexes=(1,), neck_chans=8),
    "relative position": timm_model("vit_relpos_small_patch16_224", **PLAIN),
    "relative position, residual post-norm": timm_model("vit_srelpos_small_patch16_224", **PLAIN),
    "EVA": timm_model("eva_giant_patch14_224", **EVA),
    "EVA-02": timm_model("eva02_tiny_patch14_224", **EVA),
    "EVA-02 with norms inside": timm_model("eva02_base_patch14_448", **EVA),
    "DINOv3": timm_model("vit_small_patch16_dinov3", **PLAIN),
    "PE": timm_model("vit_pe_core_tiny_patch16_384", **PLAIN),
    "rotary": timm_model("vit_small_patch16_rope_224", **PLAIN),
    "rotary learned for each head": timm_model("vit_small_patch16_rope_mixed_224", **PLAIN),
    "BEiT": timm_model("beit_base_patch16_224", **PLAIN),
    "BEiT v2": timm_model("beitv2_base_patch16_224", **PLAIN),
    "BEiT-3": timm_model("beit3_base_patch16_224", **PLAIN),
    "BEiT, one bias for all blocks": timm_model(
        "beit_base_patch16_224", **PLAIN, use_rel_pos_bias=False, use_shared_rel_pos_bias=True
    ),
}


MADE_OF_CLASSES = {  # rows whose arguments are classes, which no file can store
    "ViT, scaling blocks in parallel",
    "ViT, scaling blocks with biases",
    "ViT, two attentions and two MLPs in parallel",
    "ViT, differential attention in parallel",
    "ViT, SwiGLU unpacked",
}


def build_row(row: Row, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The row's model in eval mode, with random weights and without dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = row()
        randomise(model)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.to(dtype).eval()
