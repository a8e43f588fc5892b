"""What can be narrowed in the rows of `rows`, and random plans that narrow heads."""

from collections.abc import Iterator
from functools import partial

from timm.layers import AttentionRope
from timm.models import vision_transformer
from torch import nn

from builders.families_timm import PLAIN, Row, timm_model, vit_with
from builders.families_transformers import BACKBONES
from builders.rows import ROWS
from tools.random_models import random_head_widths as random_head_widths
from vitrim.structure import UnitGroup, ViTStructure


def rotary_with(**arguments: object) -> Row:
    """A ViT with rotary positions and other settings of its attentions."""

    def build() -> nn.Module:
        model = timm_model("vit_small_patch16_rope_224", **PLAIN)()
        for block in model.blocks:
            attn = AttentionRope(16, 4, norm_layer=nn.LayerNorm, **arguments)
            attn.num_prefix_tokens, attn.rotate_half = block.attn.num_prefix_tokens, block.attn.rotate_half
            block.attn = attn
        return model

    return build


SAM = {**PLAIN, "window_size": 2, "global_attn_indexes": (1,), "neck_chans": 8, "use_rel_pos": False}
SCALING = vision_transformer.ParallelScalingBlock
SETTINGS: dict[str, Row] = {  # settings of attentions that few models of timm have
    "ViT, qk norm": timm_model("vit_tiny_patch16_224", **PLAIN, qk_norm=True),
    "ViT, scaling blocks, qk norm": vit_with(block_fn=SCALING, qk_norm=True),
    "ViT, scaling blocks, qk norm, one projection": vit_with(
        block_fn=partial(SCALING, fuse_out_proj=True), qk_norm=True
    ),
    "SAM, no positions": timm_model("samvit_base_patch16", **SAM),
    "SAM, rotary positions": timm_model("samvit_base_patch16", **SAM, use_rope=True),
    "relative position, qk norm": timm_model("vit_relpos_small_patch16_224", **PLAIN, qk_norm=True),
    "rotary, separate layers": rotary_with(qkv_fused=False),
    "rotary, separate layers, qk norm": rotary_with(qkv_fused=False, qk_norm=True),
    "rotary, grouped queries": rotary_with(qkv_fused=False, num_kv_heads=2),
    "rotary, gate": rotary_with(gated=True),
    "rotary, separate layers, gate": rotary_with(qkv_fused=False, gated=True),
    "rotary, norm across heads": rotary_with(qkv_fused=False, scale_norm=True),
}
ALL_ROWS: dict[str, Row] = {**ROWS, **{f"backbone {name}": row for name, row in BACKBONES.items()}, **SETTINGS}
BOTH = "both"  # queries and keys, and values
ROTARY = "rotary positions"
COSINE = "normalises queries and keys"
QK_NORM = "normalises the queries of each head"
NO_HEADS = {
    "PoolFormer",
    "Mixer",
    "gMixer",
    "ResMLP",
    "gMLP",
    "FocalNet",
    "ConvNeXt",
    "ConvNeXt, linear",
    "ConvNeXt v2",
    "MambaOut",
    "MambaOut, a filter for each",
    "RepViT",
    "Sequencer",
    "InceptionNeXt",
}
ONLY_VALUES: dict[str, set[str]] = {  # rows in which not all heads can lose queries and keys: BOTH, and reasons
    "NaFlexViT, rotary": {ROTARY},
    "NaFlexViT, rotary learned for each head": {ROTARY},
    "SAM": {"multiplies the queries of all heads"},
    "EVA": {ROTARY},
    "EVA-02": {ROTARY},
    "EVA-02 with norms inside": {ROTARY},
    "DINOv3": {ROTARY},
    "PE": {ROTARY},
    "rotary": {ROTARY},
    "rotary learned for each head": {ROTARY},
    "Swin V2": {COSINE},
    "Swin V2, cosine, resized": {COSINE},
    "Swin V2, cosine, norms on the main branch": {COSINE},
    "Hiera": {BOTH, "takes the maximum of several queries"},
    "Hiera of SAM 2": {BOTH, "takes the maximum of several queries"},
    "VOLO": {BOTH, "has no queries and keys"},
    "GCViT": {BOTH, "uses the global queries of its stage"},
    "DeepSeek-VL ViT": {ROTARY},
    "Qwen3-VL ViT": {ROTARY},
    "Qwen3-VL ViT, merging": {ROTARY},
    "transformers Swin v2": {COSINE},
    "torchvision Swin v2": {COSINE},
    "torchvision Swin v2, padded": {COSINE},
    "backbone DINOv3": {ROTARY},
    "backbone DINOv3, gated": {ROTARY},
    "ViT, qk norm": {QK_NORM},
    "ViT, scaling blocks, qk norm": {QK_NORM},
    "ViT, scaling blocks, qk norm, one projection": {QK_NORM},
    "SAM, rotary positions": {ROTARY},
    "relative position, qk norm": {QK_NORM},
    "rotary, separate layers": {ROTARY},
    "rotary, separate layers, qk norm": {QK_NORM},
}
CHANNELS, ACTIVATION = "attends between channels", "begins with an activation"
NOT_NARROWABLE: dict[str, str] = {  # rows with heads that keep their width, and a part of the reason
    "ViT, differential attention": "sub_norm` normalises the output",
    "ViT, differential attention in parallel": "sub_norm` normalises the output",
    "BEiT-3": "normalises across heads",
    "MViT v2": "pools each column",
    "MViT v2, class token": "pools each column",
    "MViT v2, wider in its MLP": "pools each column",
    "XCiT": CHANNELS,
    "XCiT, norm of all tokens": CHANNELS,
    "NesT": "are interleaved",
    "LeViT": ACTIVATION,
    "LeViT, convolutions": ACTIVATION,
    "MobileViT v2": "is one channel",
    "CoaT": "filters each column",
    "CoaT-Lite": "filters each column",
    "DaViT": CHANNELS,
    "DaViT, Florence": CHANNELS,
    "EdgeNeXt": CHANNELS,
    "EfficientFormer": "keys have width 32 and values 128",
    "EfficientFormer v2": "filters each column",
    "EfficientViT": "is an activation",
    "EfficientViT, large": "is an activation",
    "EfficientViT of cascaded groups": ACTIVATION,
    "SHViT": ACTIVATION,
    "SwiftFormer": "column by column",
    "iFormer": "multiplies each column",
    "LowFormer": "a transposed convolution",
    "Gemma 4 ViT": "normalises the values",
    "rotary, grouped queries": "use the same keys and values",
    "rotary, gate": "gate` multiplies each column",
    "rotary, separate layers, gate": "gate` multiplies each column",
    "rotary, norm across heads": "normalises across heads",
}
SOME_NARROWABLE = {"XCiT", "XCiT, norm of all tokens", "DaViT", "DaViT, Florence"}  # of the rows in NOT_NARROWABLE
NARROWABLE = [name for name in ALL_ROWS if name not in NO_HEADS | (NOT_NARROWABLE.keys() - SOME_NARROWABLE)]
FAST = {  # one row for each kind of attention; the others meet the laws in the slow run
    "ViT, SwiGLU packed",
    "ViT, scaling blocks with biases",
    "NaFlexViT, rotary learned for each head",
    "SAM",
    "EVA-02",
    "BEiT",
    "Swin",
    "Swin V2",
    "Hiera",
    "CaiT",
    "transformers ViT",
    "backbone DINOv3",
    "torchvision ViT",
    "torchvision Swin v2",
}


def groups_of_heads(structure: ViTStructure) -> Iterator[UnitGroup]:
    """The heads of all attentions."""
    for block in structure.blocks:
        yield from (group for group in block.groups if group.kind == "heads")
