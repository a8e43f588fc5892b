"""All rows of all libraries, what is not prunable in them, and representatives for the expensive laws.

A row is a name and a function that builds a model of tiny size.
"""

from builders.families_hybrids import MADE_OF_SIZES, NOT_PRUNABLE_HYBRIDS, TIMM_HYBRIDS
from builders.families_stages import MADE_OF_CONFIGS, NOT_PRUNABLE_STAGES, TIMM_STAGES
from builders.families_timm import MADE_OF_CLASSES, TIMM
from builders.families_torchvision import MADE_OF_BLOCKS, TORCHVISION
from builders.families_transformers import HUGGINGFACE

NOT_PRUNABLE = {
    **NOT_PRUNABLE_STAGES,
    **NOT_PRUNABLE_HYBRIDS,
    "EVA-02 with norms inside": {"neurons": "normalises across neurons"},
    "BEiT-3": {"heads": "normalises across heads", "neurons": "normalises across neurons"},
    "BEiT, one bias for all blocks": {"heads": "all blocks use the position bias"},
    "relative position, residual post-norm": {"heads": "all blocks use the position bias"},
    "transformers BEiT, shared": {"heads": "all blocks use the position bias"},
}
ROWS = {**TIMM, **TIMM_STAGES, **TIMM_HYBRIDS, **HUGGINGFACE, **TORCHVISION}
MADE_BY_HAND = MADE_OF_CLASSES | MADE_OF_CONFIGS | MADE_OF_SIZES.keys() | MADE_OF_BLOCKS
EACH_KIND = {  # one row for each kind of layout; the other rows meet the expensive laws in the slow run
    "ViT, SwiGLU packed",
    "ViT, scaling blocks with biases",
    "ViT, two attentions and two MLPs in parallel",
    "NaFlexViT, rotary learned for each head",
    "SAM",
    "relative position",
    "EVA-02",
    "DINOv3",
    "BEiT",
    "Swin",
    "Hiera",
    "MViT v2",
    "MaxViT",
    "CaiT",
    "XCiT",
    "transformers ViT",
    "transformers BEiT, relative",
    "transformers Swin",
    "torchvision ViT",
    "torchvision Swin",
}
