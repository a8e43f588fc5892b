"""Attentions of timm's window, hierarchical and hybrid models whose `forward` assumes the width of their heads.

As in `forwards`: each class is timm's own with another `forward`; only models that lost heads contain these classes.
This file imports torch, timm and `forwards` alone.

Shapes: `B` images or windows, `N` tokens, `D` residual width, `H` heads, `K` head width.
"""

import math
from typing import Any

import torch.nn.functional as F
from timm.models import (
    cait,
    convit,
    crossvit,
    davit,
    edgenext,
    fastvit,
    gcvit,
    hiera,
    hieradet_sam2,
    metaformer,
    nextvit,
    pvt_v2,
    swin_transformer_v2,
    swin_transformer_v2_cr,
    twins,
    volo,
    xcit,
)
from torch import Tensor

from vitrim.models.timm.forwards import attend, fused_qkv


def weighted(attn: Any, scores: Tensor, v: Tensor) -> Tensor:
    """Sum values `(B, H, N, K)` with the softmax of scores `(B, H, N, N)`; returns `(B, N, H*K)`."""
    return (attn.attn_drop(scores.softmax(dim=-1)) @ v).transpose(1, 2).flatten(2)


def cosines(q: Tensor, k: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosine similarity `(B, H, N, N)` of queries and keys `(B, H, N, K)`; the scale is at most 100."""
    scale = logit_scale.clamp(max=math.log(100)).exp().view(-1, 1, 1)
    return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale


def mask_windows(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Add `mask` `(windows, N, N)` to the scores of all windows `(B*windows, H, N, N)`."""
    if mask is None:
        return scores
    return (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)


class CutSwinV2Attention(swin_transformer_v2.WindowAttention):
    """timm's `swin_transformer_v2.WindowAttention` for any number of heads."""

    def forward(self, x, mask=None):  # type: ignore[no-untyped-def]
        """Map windows `(B*windows, N, D)` to the same shape."""
        q, k, v = fused_qkv(self, x)
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, -2)  # (relative positions, H)
        bias = table[self.relative_position_index].permute(2, 0, 1)  # (H, N, N)
        scores = cosines(q, k, self.logit_scale) + 16 * bias.sigmoid()
        return self.proj_drop(self.proj(weighted(self, mask_windows(scores, mask), v)))


class CutMaskUnitAttention(hiera.MaskUnitAttention):
    """timm's `hiera.MaskUnitAttention` for values that are narrower than queries and keys."""

    @property
    def num_heads(self) -> int:
        """Number of heads, under the name that other attentions use."""
        return int(self.heads)

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` of all windows to fewer tokens if queries are pooled. Neighbours belong to windows."""
        num_windows = x.shape[1] // (self.q_stride * self.window_size) if self.use_mask_unit_attn else 1
        by_window = x.unflatten(1, (-1, num_windows)).transpose(1, 2).flatten(0, 1)  # (B*windows, N, D)
        q, k, v = fused_qkv(self, by_window)
        if self.q_stride > 1:
            q = q.unflatten(2, (self.q_stride, -1)).amax(dim=2)
        out = attend(self, q, k, v).unflatten(0, (-1, num_windows))
        return self.proj(out.transpose(1, 2).flatten(1, 2))


class CutMultiScaleAttention(hieradet_sam2.MultiScaleAttention):
    """timm's `hieradet_sam2.MultiScaleAttention` for values that are narrower than queries and keys."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, h, w, D)` to images that are smaller if queries are pooled."""
        size = x.shape[1:3]
        q, k, v = fused_qkv(self, x.flatten(1, 2))
        if self.q_pool is not None:
            pooled = self.q_pool(q.transpose(2, 3).flatten(1, 2).unflatten(2, size))  # (B, H*K, h, w)
            size = pooled.shape[2:]
            q = pooled.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)
        return self.proj(attend(self, q, k, v).unflatten(1, size))


class CutSwinV2CrAttention(swin_transformer_v2_cr.WindowMultiHeadAttention):
    """timm's `swin_transformer_v2_cr.WindowMultiHeadAttention` for any number of heads."""

    def forward(self, x, mask=None):  # type: ignore[no-untyped-def]
        """Map windows `(B*windows, N, D)` to the same shape."""
        q, k, v = fused_qkv(self, x)
        scores = cosines(q, k, self.logit_scale) + self._relative_positional_encodings()
        return self.proj_drop(self.proj(weighted(self, mask_windows(scores, mask), v)))


class CutConvitAttention(convit.MHSA):
    """timm's `convit.MHSA` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = fused_qkv(self, x)
        return self.proj_drop(self.proj(weighted(self, (q * self.scale) @ k.transpose(-2, -1), v)))


class CutGPSA(convit.GPSA):
    """timm's `convit.GPSA` for any number of heads."""

    def get_attention(self, x):  # type: ignore[no-untyped-def]
        """Attention weights `(B, H, N, N)`: content and position, mixed by a gate for each head."""
        q, k = self.qk(x).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        content = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        offsets = self.rel_indices.expand(len(x), -1, -1, -1)  # (B, N, N, 3)
        position = self.pos_proj(offsets).permute(0, 3, 1, 2).softmax(dim=-1)
        gate = self.gating_param.sigmoid().view(-1, 1, 1)
        mixed = (1 - gate) * content + gate * position
        return self.attn_drop(mixed / mixed.sum(dim=-1, keepdim=True))

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        if self.rel_indices is None or self.rel_indices.shape[1] != x.shape[1]:
            self.rel_indices = self.get_rel_indices(x.shape[1])
        v = self.v(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        return self.proj_drop(self.proj((self.get_attention(x) @ v).transpose(1, 2).flatten(2)))


def cross_covariance(attn: Any, x: Tensor) -> Tensor:
    """Attention between the channels of each head, over tokens `(B, N, D)`."""
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 4, 1).unbind(0)  # (B, H, K, N)
    q, k = F.normalize(q, dim=-1) * attn.temperature, F.normalize(k, dim=-1)
    if getattr(attn, "fused_attn", False):
        out = F.scaled_dot_product_attention(q, k, v, scale=1.0)
    else:
        out = attn.attn_drop((q @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
    return attn.proj_drop(attn.proj(out.permute(0, 3, 1, 2).flatten(2)))


class CutXCA(xcit.XCA):
    """timm's `xcit.XCA` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        return cross_covariance(self, x)


class CutClassAttn(cait.ClassAttn):
    """timm's `cait.ClassAttn` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to a new class token `(B, 1, D)`."""
        q, k, v = self.q(x[:, :1]), self.k(x), self.v(x)
        q, k, v = (t.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.proj_drop(self.proj(attend(self, q, k, v)))


class CutTalkingHeadAttn(cait.TalkingHeadAttn):
    """timm's `cait.TalkingHeadAttn` for heads of any width."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = fused_qkv(self, x)
        scores = self.proj_l(((q * self.scale) @ k.transpose(-2, -1)).permute(0, 2, 3, 1))  # (B, N, N, H)
        weights = self.attn_drop(self.proj_w(scores.softmax(dim=2)).permute(0, 3, 1, 2))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


def self_attention(attn: Any, x: Tensor) -> Tensor:
    """Plain attention between tokens `(B, N, D)`."""
    return attn.proj_drop(attn.proj(attend(attn, *fused_qkv(attn, x))))


def as_heads(layer: Any, x: Tensor, num_heads: int) -> Tensor:
    """The output of a layer for tokens `(B, N, D)`, split into heads `(B, H, N, K)`."""
    return layer(x).unflatten(2, (num_heads, -1)).transpose(1, 2)


def pooled_attention(attn: Any, x: Tensor, size: Any) -> Tensor:
    """Attention with queries of all tokens `(B, N, D)`, and keys and values of a coarser grid; `size` is `(h, w)`."""
    q = as_heads(attn.q, x, attn.num_heads)
    if attn.sr is not None:
        grid = x.transpose(1, 2).unflatten(2, tuple(size))  # (B, D, h, w)
        pool, act = getattr(attn, "pool", None), getattr(attn, "act", None)
        x = attn.norm(attn.sr(grid if pool is None else pool(grid)).flatten(2).transpose(1, 2))
        x = x if act is None else act(x)
    k, v = attn.kv(x).unflatten(2, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return attn.proj_drop(attn.proj(attend(attn, q, k, v)))


class CutMetaFormerAttention(metaformer.Attention):
    """timm's `metaformer.Attention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        return self_attention(self, x)


class CutFastVitAttention(fastvit.Attention):
    """timm's `fastvit.Attention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, D, h, w)` to the same shape."""
        return self_attention(self, x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class CutVoloAttention(volo.Attention):
    """timm's `volo.Attention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, h, w, D)` to the same shape."""
        out = attend(self, *fused_qkv(self, x.flatten(1, 2))).unflatten(1, x.shape[1:3])  # (B, h, w, H*K)
        return self.proj_drop(self.proj(out))


class CutOutlookAttention(volo.OutlookAttention):
    """timm's `volo.OutlookAttention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, h, w, D)` to the same shape."""
        size, area, heads = x.shape[1:3], self.kernel_size**2, self.num_heads
        v = self.unfold(self.v(x).permute(0, 3, 1, 2)).unflatten(1, (heads, -1, area)).permute(0, 1, 4, 3, 2)
        pooled = self.pool(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B, N, D)
        scores = self.attn(pooled).unflatten(2, (heads, area, area)).transpose(1, 2) * self.scale
        out = self.attn_drop(scores.softmax(dim=-1)) @ v  # (B, H, N, area, K)
        out = out.permute(0, 1, 4, 3, 2).flatten(1, 3)
        out = F.fold(out, size, kernel_size=self.kernel_size, padding=self.padding, stride=self.stride)
        return self.proj_drop(self.proj(out.permute(0, 2, 3, 1)))


class CutCrossAttention(crossvit.CrossAttention):
    """timm's `crossvit.CrossAttention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to a new class token `(B, 1, D)`."""
        q = as_heads(self.wq, x[:, :1], self.num_heads)
        k, v = as_heads(self.wk, x, self.num_heads), as_heads(self.wv, x, self.num_heads)
        return self.proj_drop(self.proj(weighted(self, (q * self.scale) @ k.transpose(-2, -1), v)))


class CutPvtAttention(pvt_v2.Attention):
    """timm's `pvt_v2.Attention` for any number of heads."""

    def forward(self, x, feat_size):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        return pooled_attention(self, x, feat_size)


class CutGlobalSubSampleAttn(twins.GlobalSubSampleAttn):
    """timm's `twins.GlobalSubSampleAttn` for any number of heads."""

    def forward(self, x, size):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        return pooled_attention(self, x, size)


class CutLocallyGroupedAttn(twins.LocallyGroupedAttn):
    """timm's `twins.LocallyGroupedAttn` for any number of heads."""

    def forward(self, x, size):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        (height, width), side = size, self.ws
        grid = F.pad(x.unflatten(1, (height, width)), (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = grid.shape[1] // side, grid.shape[2] // side
        windows = grid.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3)
        out = attend(self, *fused_qkv(self, windows.flatten(3, 4).flatten(0, 2)))  # (B * windows, N, H*K)
        out = out.unflatten(1, (side, side)).unflatten(0, (-1, rows, columns)).transpose(2, 3).flatten(3, 4)
        out = out.flatten(1, 2)[:, :height, :width].flatten(1, 2)
        return self.proj_drop(self.proj(out))


class CutNextVitAttention(nextvit.EfficientAttention):
    """timm's `nextvit.EfficientAttention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q = as_heads(self.q, x, self.num_heads)
        if self.sr is not None:
            x = self.norm(self.sr(x.transpose(1, 2))).transpose(1, 2)
        k, v = as_heads(self.k, x, self.num_heads), as_heads(self.v, x, self.num_heads)
        return self.proj_drop(self.proj(attend(self, q, k, v)))


class CutCrossCovarianceAttn(edgenext.CrossCovarianceAttn):
    """timm's `edgenext.CrossCovarianceAttn` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        return cross_covariance(self, x)


class CutDaVitWindowAttention(davit.WindowAttention):
    """timm's `davit.WindowAttention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map windows `(B*windows, N, D)` to the same shape."""
        return self.proj(attend(self, *fused_qkv(self, x)))


class CutChannelAttention(davit.ChannelAttention):
    """timm's `davit.ChannelAttention` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = fused_qkv(self, x)
        weights = ((k * self.scale).transpose(-1, -2) @ v).softmax(dim=-1)  # (B, H, K, K)
        return self.proj((weights @ q.transpose(-1, -2)).permute(0, 3, 1, 2).flatten(2))


class CutChannelAttentionV2(davit.ChannelAttentionV2):
    """timm's `davit.ChannelAttentionV2` for any number of heads."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to tokens of the same shape."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.groups, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        scale = (x.shape[1] if self.dynamic_scale else self.head_dim) ** -0.5
        weights = ((q * scale).transpose(-1, -2) @ k).softmax(dim=-1)
        return self.proj((weights @ v.transpose(-1, -2)).permute(0, 3, 1, 2).flatten(2))


class CutWindowAttentionGlobal(gcvit.WindowAttentionGlobal):
    """timm's `gcvit.WindowAttentionGlobal` for any number of heads."""

    def forward(self, x, q_global=None):  # type: ignore[no-untyped-def]
        """Map windows `(B*windows, N, D)` to the same shape."""
        qkv = self.qkv(x)
        columns = self.num_heads * getattr(self, "value_width", self.head_dim)
        v = qkv[..., -columns:].unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        parts = qkv[..., :-columns].unflatten(2, (-1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        k = parts[-1]
        if self.use_global and q_global is not None:
            all_queries = q_global.flatten(1, 2).unflatten(2, (-1, self.head_dim))  # of the dense model's heads
            q = (
                all_queries[:, :, list(self.kept_heads)]
                .transpose(1, 2)
                .repeat_interleave(len(x) // len(q_global), dim=0)
            )
        else:
            q = parts[0]
        scores = self.rel_pos((q * self.scale) @ k.transpose(-2, -1))
        return self.proj_drop(self.proj(weighted(self, scores, v)))
