"""torchvision's attentions, with an output projection that runs as a module and with any number of heads.

torchvision passes the weights of the output projection to a function, so no hook sees its input. It also assumes that
all heads together are as wide as the residual stream. Each class here is torch's or torchvision's own with another
`forward`; names of parameters and attributes are unchanged. A model that lost heads contains these classes. Other
models contain them only inside `hookable`. This file imports torch and torchvision alone, because vitrim copies these
classes into the `modeling.py` of a saved model.

Shapes: `B` images, `N` tokens, `D` residual width, `H` heads, `K` head width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class HookableAttention(nn.MultiheadAttention):
    """Self-attention over `(B, N, D)`, as `EncoderBlock` calls it."""

    def forward(self, query, key, value, need_weights=False):  # type: ignore[no-untyped-def]
        """Map tokens `(B, N, D)` to the same shape; the second output, weights, is None."""
        assert query is key is value and self.batch_first and not need_weights
        qkv = F.linear(query, self.in_proj_weight, self.in_proj_bias)  # (B, N, 3*H*K)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # (B, H, N, K)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None


class HookableWindowAttention(ShiftedWindowAttention):
    """Window attention of Swin over `(B, h, w, D)`."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, h, w, D)` to the same shape."""
        q, k, v = to_heads(self, to_windows(self, x), self.qkv.bias)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return attend_in_windows(self, x, scores, v)


class HookableWindowAttentionV2(ShiftedWindowAttentionV2):
    """Window attention of Swin v2 over `(B, h, w, D)`."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        """Map images `(B, h, w, D)` to the same shape."""
        bias = self.qkv.bias
        if bias is not None:  # keys have none
            columns = (len(bias) - self.proj.in_features) // 2  # of queries, and of keys
            bias = torch.cat([bias[:columns], torch.zeros_like(bias[:columns]), bias[2 * columns :]])
        q, k, v = to_heads(self, to_windows(self, x), bias)
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * scale
        return attend_in_windows(self, x, scores, v)


def to_heads(attn: ShiftedWindowAttention, windows: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute queries, keys and values `(windows, H, N, K)` of windows `(windows, N, D)`. Values may be narrower."""
    qkv, columns = F.linear(windows, attn.qkv.weight, bias), attn.proj.in_features  # of the values
    qk, v = qkv[..., :-columns], qkv[..., -columns:]
    q, k = qk.unflatten(-1, (2, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)


def padding_and_shift(attn: ShiftedWindowAttention, x: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns to add to images `(B, h, w, D)` for full windows, and how far the windows are shifted."""
    padding = [-size % window for size, window in zip(x.shape[1:3], attn.window_size, strict=True)]
    padded = [size + added for size, added in zip(x.shape[1:3], padding, strict=True)]
    shifts = zip(attn.shift_size, attn.window_size, padded, strict=True)
    return padding, [0 if window >= size else shift for shift, window, size in shifts]


def to_windows(attn: ShiftedWindowAttention, x: Tensor) -> Tensor:
    """Pad, shift and split images `(B, h, w, D)` into windows `(B*windows, N, D)`."""
    (bottom, right), (down, along) = padding_and_shift(attn, x)
    return partition_windows(F.pad(x, (0, 0, 0, right, 0, bottom)).roll((-down, -along), dims=(1, 2)), attn.window_size)


def partition_windows(x: Tensor, window_size: list[int]) -> Tensor:
    """Split images `(B, h, w, D)` of full windows into `(B*windows, N, D)`."""
    height, width = window_size
    x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))  # (B, rows, height, columns, width, D)
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def attend_in_windows(attn: ShiftedWindowAttention, x: Tensor, scores: Tensor, v: Tensor) -> Tensor:
    """The attention's output for images `x` `(B, h, w, D)`, from scores `(B*windows, H, N, N)` and values `v`."""
    (bottom, right), (down, along) = padding_and_shift(attn, x)
    (height, width), batch = attn.window_size, x.shape[0]
    rows, columns = (x.shape[1] + bottom) // height, (x.shape[2] + right) // width
    scores = scores + attn.get_relative_position_bias()
    if down or along:
        mask = window_mask(attn, (rows * height, columns * width), (down, along), x)
        scores = (scores.unflatten(0, (batch, -1)) + mask[:, None]).flatten(0, 1)
    weights = F.dropout(scores.softmax(dim=-1), p=attn.attention_dropout, training=attn.training)
    out = attn.proj((weights @ v).transpose(1, 2).flatten(2))  # (B*windows, N, D)
    out = F.dropout(out, p=attn.dropout, training=attn.training)
    out = out.view(batch, rows, columns, height, width, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return out.roll((down, along), dims=(1, 2))[:, : x.shape[1], : x.shape[2]].contiguous()


def window_mask(attn: ShiftedWindowAttention, size: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """A mask `(windows, N, N)`: -100 between tokens that a shift brought together from different sides, else 0."""
    regions = []  # of rows and of columns: before, inside and after the part that the shift wrapped around
    for side, window, moved in zip(size, attn.window_size, shift, strict=True):
        place = torch.arange(side, device=like.device)
        regions.append((place >= side - window).int() + (place >= side - moved).int() if moved else 0 * place)
    region = partition_windows((3 * regions[0][:, None] + regions[1])[None, :, :, None], attn.window_size)
    apart = region != region.transpose(1, 2)
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, -100.0)


HOOKABLE = {
    nn.MultiheadAttention: HookableAttention,
    ShiftedWindowAttention: HookableWindowAttention,
    ShiftedWindowAttentionV2: HookableWindowAttentionV2,
}
