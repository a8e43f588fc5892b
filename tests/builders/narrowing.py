"""What can be narrowed in the rows of `rows`, and plans that narrow heads."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from builders.families_timm import Row
from builders.families_transformers import BACKBONES
from builders.rows import ROWS
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import UnitGroup, ViTStructure

ALL_ROWS: dict[str, Row] = {**ROWS, **{f"backbone {name}": row for name, row in BACKBONES.items()}}
BOTH = "both"  # queries and keys, and values
ROTARY = "rotary positions"
COSINE = "normalises queries and keys"
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
}
SOME_NARROWABLE = {"XCiT", "XCiT, norm of all tokens", "DaViT", "DaViT, Florence"}  # of the rows in NOT_NARROWABLE
NARROWABLE = [name for name in ALL_ROWS if name not in NO_HEADS | (NOT_NARROWABLE.keys() - SOME_NARROWABLE)]
FAST = {  # one row for each kind of attention; the others meet the laws in the slow run
    "ViT, SwiGLU packed",
    "ViT, scaling blocks with biases",
    "NaFlexViT, rotary learned for each head",
    "SAM",
    "relative position",
    "EVA-02",
    "BEiT",
    "Swin",
    "Swin V2",
    "Hiera",
    "CaiT",
    "transformers ViT",
    "transformers Swin v2",
    "backbone DINOv3",
    "torchvision ViT",
    "torchvision Swin",
    "torchvision Swin v2",
}


def groups_of_heads(structure: ViTStructure) -> Iterator[UnitGroup]:
    """The heads of all attentions."""
    for block in structure.blocks:
        yield from (group for group in block.groups if group.kind == "heads")


def narrowed(structure: ViTStructure, plan: PruningPlan, seed: int) -> PruningPlan:
    """The same plan, and in every attention that can be narrowed, heads of a random smaller width."""
    rng = np.random.default_rng(seed)
    blocks = []
    for kept in plan.blocks:
        widths = {
            group.key: int(rng.integers(1, group.width))
            for group in structure.blocks[kept.block].groups
            if group.directions and group.width > 1
        }
        blocks.append(KeptBlock.of(kept.block, dict(kept.items()), widths))
    return replace(plan, blocks=tuple(blocks))
