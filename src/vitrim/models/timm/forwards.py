"""Attentions of timm's plain transformers whose `forward` assumes that all heads are as wide as the residual stream.

Each class is timm's own with another `forward`, which reads the width of the heads from the tensors. Names of
parameters and attributes, and results, are timm's. Only models that lost heads contain these classes. This file imports
torch and timm alone, because vitrim copies the classes into the `modeling.py` of a saved model.

Shapes: `B` images, `N` tokens, `D` residual width, `H` heads, `K` head width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, DiffAttention, apply_rot_embed_cat
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos, vision_transformer_sam
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias
from torch import Tensor


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention of `q`, `k`, `v` `(B, H, N, K)` on the fused or unfused path of the module.

    Args:
        bias: added to the scores, or a boolean mask of the tokens to attend to.
        causal: whether tokens attend only to earlier tokens.

    Returns:
        The heads side by side, `(B, N, H*K)`.
    """
    if attn.fused_attn:
        dropout = attn.attn_drop.p if attn.training and hasattr(attn, "attn_drop") else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal)
    else:
        out = attention_weights(attn, q, k, bias, causal) @ v
    return out.transpose(1, 2).flatten(2)


def attention_weights(attn: Any, q: Tensor, k: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
    """The weights with which attention sums the values, `(B, H, N, N)`."""
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    if causal:
        bias = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
    if bias is not None:
        scores = scores.masked_fill(~bias, float("-inf")) if bias.dtype == torch.bool else scores + bias
    weights = scores.softmax(dim=-1)
    return attn.attn_drop(weights) if hasattr(attn, "attn_drop") else weights


def fused_qkv(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values `(B, H, N, K)` of a layer `qkv`, whose biases may be parameters of the attention.

    If the values were narrowed, they have `attn.value_width` directions instead of K.
    """
    qkv = attn.qkv(x)
    if getattr(attn, "q_bias", None) is not None:
        qkv = qkv + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    if not hasattr(attn, "value_width"):
        q, k, v = qkv.unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v
    columns = attn.num_heads * attn.value_width
    qk, v = qkv[..., :-columns], qkv[..., -columns:]
    q, k = qk.unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)


def rope_of_kept_heads(attn: Any, rope: Tensor) -> Tensor:
    """Learned frequencies of the kept heads, from those of all heads of the dense model, `(..., H, N, 2*K)`."""
    kept_heads = getattr(attn, "kept_heads", None)
    return rope if kept_heads is None else rope[..., list(kept_heads), :, :]


def rotate(attn: Any, x: Tensor, rope: Tensor, like: Tensor) -> Tensor:
    """Rotary embedding of `x` `(B, H, N, K)`, except for the prefix tokens, in the dtype of `like`."""
    rope = rope_of_kept_heads(attn, rope)
    prefix, patches = x[:, :, : attn.num_prefix_tokens], x[:, :, attn.num_prefix_tokens :]
    patches = apply_rot_embed_cat(patches, rope, half=getattr(attn, "rotate_half", False))
    return torch.cat([prefix, patches], dim=2).type_as(like)


class CutAttention(Attention):
    """timm's `Attention` for values that are narrower than queries and keys."""

    def forward(self, x, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = fused_qkv(self, x)
        return self.proj_drop(self.proj(attend(self, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)))


def rotary_attention(attn: Any, x: Tensor, rope: Tensor | None, mask: Tensor | None, causal: bool) -> Tensor:
    """Attention of tokens `(B, N, D)` with rotary positions, where each query head has keys and values of its own."""
    gate = attn.gate(x).sigmoid() if attn.gate is not None else None
    if attn.qkv is not None:
        q, k, v = fused_qkv(attn, x)
    else:
        layers = (attn.q_proj, attn.k_proj, attn.v_proj)
        q, k, v = (layer(x).unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for layer in layers)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = rotate(attn, q, rope, v), rotate(attn, k, rope, v)
    x = attn.norm(attend(attn, q, k, v, mask, causal))
    x = x * gate if gate is not None else x
    return attn.proj_drop(attn.proj(x))


class CutEvaAttention(eva.EvaAttention):
    """timm's `eva.EvaAttention` for any number of heads."""

    def forward(self, x, rope=None, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        return rotary_attention(self, x, rope, attn_mask, is_causal)


class CutSamAttention(vision_transformer_sam.Attention):
    """timm's `vision_transformer_sam.Attention` for values that are narrower than queries and keys."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, h, w, D)` to the same shape."""
        size, bias = tuple(x.shape[1:3]), None
        q, k, v = fused_qkv(self, x.flatten(1, 2))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.use_rel_pos:
            bias = get_decomposed_rel_pos_bias(q.flatten(0, 1), self.rel_pos_h, self.rel_pos_w, size, size)
            bias = bias.unflatten(0, q.shape[:2])
        elif self.rope is not None:
            rope = self.rope.get_embed()
            q, k = (apply_rot_embed_cat(t, rope).type_as(v) for t in (q, k))
        return self.proj_drop(self.proj(attend(self, q, k, v, bias))).unflatten(1, size)


class CutBeitAttention(beit.Attention):
    """timm's `beit.Attention` for any number of heads."""

    def forward(self, x, shared_rel_pos_bias=None):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        bias = shared_rel_pos_bias
        if self.relative_position_bias_table is not None:
            own_bias = self._get_rel_pos_bias()
            bias = own_bias if bias is None else own_bias + bias
        return self.proj_drop(self.proj(attend(self, *fused_qkv(self, x), bias)))


class CutRelPosAttention(vision_transformer_relpos.RelPosAttention):
    """timm's `vision_transformer_relpos.RelPosAttention` for any number of heads."""

    def forward(self, x, shared_rel_pos=None):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = fused_qkv(self, x)
        bias = self.rel_pos.get_bias() if self.rel_pos is not None else shared_rel_pos
        return self.proj_drop(self.proj(attend(self, self.q_norm(q), self.k_norm(k), v, bias)))


class CutDiffAttention(DiffAttention):
    """timm's `DiffAttention` for any number of heads."""

    def forward(self, x, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = self.qkv(x).chunk(3, dim=2)
        q, k = (t.unflatten(2, (2 * self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k))
        v = v.unflatten(2, (self.num_heads, 2 * self.head_dim)).transpose(1, 2)
        x = differential(self, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)
        return self.proj_drop(self.proj(self.norm(x)))


def differential(attn: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """Differential attention: the weights of the second head of each pair are subtracted from those of the first.

    Args:
        q, k: `(B, 2*H, N, K)`.
        v: `(B, H, N, 2*K)`.

    Returns:
        `(B, N, 2*H*K)`.
    """
    factor = attn._compute_lambda().type_as(q)
    if attn.fused_attn:
        (q1, q2), (k1, k2) = (t.unflatten(1, (attn.num_heads, 2)).unbind(2) for t in (q, k))
        one, two = attend(attn, q1, k1, v, bias, causal), attend(attn, q2, k2, v, bias, causal)
        out = (one - factor * two).unflatten(2, (attn.num_heads, -1))
    else:  # one product with the values instead of two
        one, two = attention_weights(attn, q, k, bias, causal).unflatten(1, (attn.num_heads, 2)).unbind(2)
        out = ((one - factor * two) @ v).transpose(1, 2)
    return (attn.sub_norm(out) * (1 - attn.lambda_init)).flatten(2)


class CutParallelScalingBlock(vision_transformer.ParallelScalingBlock):
    """timm's `vision_transformer.ParallelScalingBlock` for any number of heads."""

    def forward(self, x, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        mlp, q, k, v = self.in_proj(self.in_norm(x)).split(self.in_split, dim=-1)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)) for t in (q, k, v))
        q, k, v = self.q_norm(q).transpose(1, 2), self.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        attention = attend(self, q, k, v, attn_mask, is_causal)
        mlp = self.mlp_drop(self.mlp_act(mlp if self.mlp_bias is None else mlp + self.mlp_bias))
        if self.out_proj is not None:
            out = self.out_proj(torch.cat((attention, mlp), dim=-1))
        else:
            out = self.attn_out_proj(attention) + self.mlp_out_proj(mlp)
        return x + self.drop_path(self.ls(out))


class CutDiffParallelScalingBlock(vision_transformer.DiffParallelScalingBlock):
    """timm's `vision_transformer.DiffParallelScalingBlock` for any number of heads."""

    def forward(self, x, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        mlp, q, k, v = self.in_proj(self.in_norm(x)).split(self.in_split, dim=-1)
        q, k = (t.unflatten(2, (2 * self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k))
        v = v.unflatten(2, (self.num_heads, 2 * self.head_dim)).transpose(1, 2)
        attention = differential(self, self.q_norm(q), self.k_norm(k), v, attn_mask, is_causal)
        mlp = self.mlp_drop(self.mlp_act(mlp if self.mlp_bias is None else mlp + self.mlp_bias))
        return x + self.drop_path(self.ls(self.out_proj(torch.cat((attention, mlp), dim=-1))))


class CutAttentionRope(AttentionRope):
    """timm's `AttentionRope` for any number of heads."""

    def forward(self, x, rope=None, attn_mask=None, is_causal=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        if self.num_kv_groups == 1:
            return rotary_attention(self, x, rope, attn_mask, is_causal)
        rope = None if rope is None else rope_of_kept_heads(self, rope)
        return super().forward(x, rope=rope, attn_mask=attn_mask, is_causal=is_causal)
