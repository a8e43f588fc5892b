"""transformers' attentions in which only the values can be narrowed, with another `forward`.

Each class is transformers' own. Names of parameters and attributes, and results, are unchanged. Only models with
narrower values contain these classes. This file imports transformers, so it is imported where such a model is made.

Shapes: `B` images, `N` tokens, `D` residual width, `H` heads, `K` head width.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3
from transformers.models.swinv2 import modeling_swinv2 as swinv2


def as_heads(layer: nn.Module, x: Tensor, num_heads: int) -> Tensor:
    """The output of a layer for tokens `(B, N, D)`, split into heads `(B, H, N, K)`."""
    heads: Tensor = layer(x).unflatten(2, (num_heads, -1)).transpose(1, 2)
    return heads


class CutDINOv3ViTAttention(dinov3.DINOv3ViTAttention):
    """transformers' `DINOv3ViTAttention` for values that are narrower than queries and keys."""

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **kwargs):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to the same shape; the second output is the attention weights, or None."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (as_heads(layer, hidden_states, self.num_heads) for layer in layers)
        q, k = dinov3.apply_rotary_pos_emb(q, k, *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, dinov3.eager_attention_forward)
        dropout = self.dropout if self.training else 0.0
        out, weights = attend(self, q, k, v, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs)
        return self.o_proj(out.flatten(2)), weights


class CutSwinv2SelfAttention(swinv2.Swinv2SelfAttention):
    """transformers' `Swinv2SelfAttention` for values that are narrower than queries and keys."""

    def forward(self, hidden_states, attention_mask=None, output_attentions=False):  # type: ignore[no-untyped-def]
        """Map windows `(B*windows, N, D)` to heads side by side `(B*windows, N, H*K)`, in a tuple."""
        layers = (self.query, self.key, self.value)
        q, k, v = (as_heads(layer, hidden_states, self.num_attention_heads) for layer in layers)
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
        table = self.continuous_position_bias_mlp(self.relative_coords_table).flatten(0, -2)  # (positions, H)
        bias = table[self.relative_position_index].permute(2, 0, 1)  # (H, N, N)
        scores = scores + 16 * bias.sigmoid()
        if attention_mask is not None:  # transformers adds the mask twice
            scores = (scores.unflatten(0, (-1, len(attention_mask))) + 2 * attention_mask[:, None]).flatten(0, 1)
        weights = self.dropout(scores.softmax(dim=-1))
        out = (weights @ v).transpose(1, 2).flatten(2)
        return (out, weights) if output_attentions else (out,)


WITH_NARROW_VALUES: Mapping[type[nn.Module], Any] = {
    dinov3.DINOv3ViTAttention: CutDINOv3ViTAttention,
    swinv2.Swinv2SelfAttention: CutSwinv2SelfAttention,
}
