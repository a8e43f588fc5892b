"""Which models of torchvision vitrim can prune, and their sizes. Plain data.

torchvision does not note how a model was made. A model is recognised by its sizes and built again by its name.
"""

from collections.abc import Mapping
from typing import Any

from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock

MODELS = (VisionTransformer, SwinTransformer)
BLOCKS = (EncoderBlock, SwinTransformerBlock)
SIZES_BY_NAME: Mapping[str, tuple[Any, ...]] = {
    # patch_size, num_layers, num_heads, hidden_dim, mlp_dim
    "vit_b_16": (16, 12, 12, 768, 3072),
    "vit_b_32": (32, 12, 12, 768, 3072),
    "vit_l_16": (16, 24, 16, 1024, 4096),
    "vit_l_32": (32, 24, 16, 1024, 4096),
    "vit_h_14": (14, 32, 16, 1280, 5120),
    # patch_size, embed_dim, depths, num_heads, window_size
    "swin_t": ([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [7, 7]),
    "swin_s": ([4, 4], 96, [2, 2, 18, 2], [3, 6, 12, 24], [7, 7]),
    "swin_b": ([4, 4], 128, [2, 2, 18, 2], [4, 8, 16, 32], [7, 7]),
    "swin_v2_t": ([4, 4], 96, [2, 2, 6, 2], [3, 6, 12, 24], [8, 8]),
    "swin_v2_s": ([4, 4], 96, [2, 2, 18, 2], [3, 6, 12, 24], [8, 8]),
    "swin_v2_b": ([4, 4], 128, [2, 2, 18, 2], [4, 8, 16, 32], [8, 8]),
}
PREPROCESSING = {  # of most published weights
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "crop_mode": "center",
}
