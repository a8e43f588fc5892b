"""Rows of timm's window and hierarchical transformers, at tiny size."""

from dataclasses import replace

from timm.models import mvitv2
from torch import nn

from builders.families_timm import Row, timm_model

COMMON = {"num_classes": 5, "drop_path_rate": 0.0}
TWO = {**COMMON, "img_size": 32, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16}


def timm_at(side: int, architecture: str, **arguments: object) -> Row:
    """A model that has no argument for its image size; `side` is the image size."""

    def build() -> nn.Module:
        model = timm_model(architecture, **{**COMMON, **arguments})()
        model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, side, side)}
        return model

    return build


def mvit(architecture: str, **changes: object) -> Row:
    """An MViT with other sizes than its name has in timm."""
    sizes = {"depths": (1, 2, 2), "embed_dim": (16, 32, 64), "num_heads": (2, 4, 8)}

    def build() -> nn.Module:
        config = replace(mvitv2.model_cfgs[architecture], stride_kv=None, **sizes, **changes)
        model = mvitv2.MultiScaleVit(config, img_size=32, num_classes=5)
        model.pretrained_cfg = {"architecture": architecture, "input_size": (3, 32, 32)}
        return model

    return build


CONV_AND_ATTENTION = {**COMMON, "img_size": 32, "stem_width": 8, "transformer_dim_head": 8}
MAXVIT = {**CONV_AND_ATTENTION, "depths": (2, 2), "embed_dim": (16, 32), "transformer_window_size": 2}
COATNET = {**CONV_AND_ATTENTION, "depths": (2, 3), "embed_dim": (16, 32), "block_type": ("C", "T")}
PIT = {"base_dims": (8, 8), "depth": (2, 2), "heads": (2, 4), "patch_size": 8, "stride": 4}
TINY_VIT = {"embed_dims": (16, 32), "depths": (2, 2), "num_heads": (2, 4), "window_sizes": (4, 2)}
CLASS_ATTENTION = {**COMMON, "img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 4}
MADE_OF_CONFIGS = {"MViT v2", "MViT v2, class token", "MViT v2, wider in its MLP"}  # rows whose sizes no file can store
NOT_PRUNABLE_STAGES = {"CaiT": {"heads": "mix the attention weights of all heads"}}
TIMM_STAGES: dict[str, Row] = {
    "Swin": timm_model("swin_tiny_patch4_window7_224", **TWO, window_size=2),
    "Swin, narrow heads": timm_model("swin_s3_tiny_224", **TWO, window_size=(3, 2)),
    "Swin V2": timm_model("swinv2_tiny_window8_256", **TWO, window_size=2),
    "Swin V2, cosine, resized": timm_model("swinv2_cr_tiny_224", **TWO, window_size=2),
    "Swin V2, cosine, norms on the main branch": timm_model("swinv2_cr_tiny_ns_224", **TWO, window_size=3),
    "Hiera": timm_model(
        "hiera_tiny_224",
        **COMMON,
        img_size=64,
        stages=(1, 2, 2),
        embed_dim=16,
        num_heads=2,
        q_pool=2,
        mask_unit_size=(4, 4),
        mask_unit_attn=(True, True, False),
    ),
    "Hiera of SAM 2": timm_at(
        64,
        "sam2_hiera_tiny",
        stages=(2, 2, 2),
        embed_dim=16,
        num_heads=2,
        q_pool=2,
        window_spec=(4, 2, 2),
        global_att_blocks=(3,),
    ),
    "MViT v2": mvit("mvitv2_tiny"),
    "MViT v2, class token": mvit("mvitv2_small_cls"),
    "MViT v2, wider in its MLP": mvit("mvitv2_large"),
    "MaxViT": timm_model("maxvit_tiny_rw_224", **MAXVIT),
    "MaxViT of TensorFlow": timm_model("maxvit_tiny_tf_224", **MAXVIT),
    "MaxViT, position MLP": timm_model("maxvit_rmlp_pico_rw_256", **MAXVIT),
    "MaxViT, parallel": timm_model("maxvit_tiny_pm_256", **MAXVIT),
    "MaxxViT": timm_model("maxxvit_rmlp_nano_rw_256", **MAXVIT),
    "MaxxViT v2": timm_model("maxxvitv2_nano_rw_256", **MAXVIT),
    "CoAtNet": timm_model("coatnet_0_rw_224", **COATNET),
    "CoAtNet, position MLP": timm_model("coatnet_rmlp_nano_rw_224", **COATNET),
    "CoAtNeXt": timm_model("coatnext_nano_rw_224", **COATNET),
    "PiT": timm_model("pit_ti_224", **COMMON, img_size=32, **PIT),
    "PiT, distilled": timm_model("pit_ti_distilled_224", **COMMON, img_size=32, **PIT),
    "TinyViT": timm_at(32, "tiny_vit_5m_224", **TINY_VIT),
    "ConViT": timm_model("convit_tiny", **{**CLASS_ATTENTION, "embed_dim": 4}, patch_size=8, local_up_to_layer=2),
    "XCiT": timm_model("xcit_nano_12_p8_224", **CLASS_ATTENTION, patch_size=8),
    "XCiT, norm of all tokens": timm_model("xcit_tiny_12_p16_224", **CLASS_ATTENTION),
    "CaiT": timm_model("cait_xxs24_224", **CLASS_ATTENTION),
}
