"""Attentions and MLPs of timm's window and hierarchical transformers: one entry for each class."""

from collections.abc import Mapping
from typing import Any

from timm.models import (
    cait,
    convit,
    hiera,
    hieradet_sam2,
    maxxvit,
    mvitv2,
    swin_transformer,
    swin_transformer_v2,
    swin_transformer_v2_cr,
    tiny_vit,
    xcit,
)
from torch import nn

from vitrim.models.describing import Macs, cut_of, rows
from vitrim.models.timm.finders import (
    VALUE_WIDTH,
    HeadLayout,
    Part,
    chained_neurons,
    fit_num_heads_by_scale,
    fit_num_heads_by_temperature,
    fit_rel_pos,
    fused_heads,
    head_width_from_scale,
    heads_of,
    no_fit,
    other_value_width,
    plain_heads,
    qkv_biases,
    rel_pos_bias_macs,
    rel_pos_cuts,
    rel_pos_fixed_macs,
    replaced_by,
    temperature_heads,
    value_width,
)
from vitrim.models.timm.hierarchical_forwards import (
    CutClassAttn,
    CutConvitAttention,
    CutGPSA,
    CutMaskUnitAttention,
    CutMultiScaleAttention,
    CutSwinV2Attention,
    CutSwinV2CrAttention,
    CutTalkingHeadAttn,
    CutXCA,
)
from vitrim.structure import TensorCut, UnitGroup


def _swin(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    table = cut_of(f"{name}.relative_position_bias_table", attn.relative_position_bias_table, dim=1)
    return fused_heads(name, attn, macs, width=head_width_from_scale(attn), more_cuts=table, not_narrowable="")


def _cosine_heads(name: str, attn: Any, macs: Macs, more_cuts: list[TensorCut], fixed_macs: int) -> list[UnitGroup]:
    """Heads whose scores are cosines of queries and keys."""
    values = attn.proj.in_features // attn.num_heads
    width = (attn.qkv.out_features // attn.num_heads - values) // 2
    cuts = [*more_cuts, *cut_of(f"{name}.logit_scale", attn.logit_scale)]
    if hasattr(attn, "q_bias"):
        cuts += qkv_biases(name, attn, width, values)
    layout = HeadLayout(
        width=values,
        producers={"qkv": (width, 3)},
        more_cuts=cuts,
        fixed_macs=fixed_macs,
        not_narrowable="",
        only_values=f"`{name}` normalises queries and keys",
    )
    return heads_of(name, attn, macs, layout)


def _swin_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    cuts = rows(f"{name}.cpb_mlp.2", attn.cpb_mlp[2])
    return _cosine_heads(name, attn, macs, cuts, macs.get(f"{name}.cpb_mlp.0", 0))


def _swin_v2_cr(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    cuts = rows(f"{name}.meta_mlp.fc2", attn.meta_mlp.fc2)
    return _cosine_heads(name, attn, macs, cuts, macs.get(f"{name}.meta_mlp.fc1", 0))


def _fit_num_heads_by_logit_scale(attn: Any) -> None:
    attn.num_heads = len(attn.logit_scale)


def _hiera(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    layout = HeadLayout(
        width=value_width(attn, attn.head_dim),
        producers={"qkv": (attn.head_dim, 3)},
        num_heads=attn.heads,
        not_narrowable="",
        only_values=f"`{name}` takes the maximum of several queries" if attn.q_stride > 1 else "",
    )
    return heads_of(name, attn, macs, layout)


def _fit_hiera(attn: Any) -> None:
    attn.dim_out = attn.proj.in_features
    attn.heads = attn.dim_out // value_width(attn, attn.head_dim)
    if hasattr(attn, VALUE_WIDTH):
        attn.__class__ = CutMaskUnitAttention


def _hiera_det(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = head_width_from_scale(attn)
    layout = HeadLayout(
        width=value_width(attn, width),
        producers={"qkv": (width, 3)},
        not_narrowable="",
        only_values="" if attn.q_pool is None else f"`{name}.q_pool` takes the maximum of several queries",
    )
    return heads_of(name, attn, macs, layout)


def _fit_hiera_det(attn: Any) -> None:
    fit_num_heads_by_scale(attn)
    if hasattr(attn, VALUE_WIDTH):
        attn.__class__ = CutMultiScaleAttention


def _mvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """All heads use the same pooling filters and the same relative positions."""
    reason = f"the pooling convolutions of `{name}` span all heads" if attn.unshared else ""
    narrow = f"`{name}` pools each column of the values by itself and adds the queries to the heads' outputs"
    return fused_heads(name, attn, macs, width=attn.head_dim, not_prunable=reason, not_narrowable=narrow)


def _fit_mvit(attn: Any) -> None:
    attn.dim_out = attn.proj.in_features
    attn.num_heads = attn.dim_out // attn.head_dim


def _maxvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """If `head_first` is set, `qkv` stores queries, keys and values of one head side by side."""
    width, rel_pos = attn.dim_head, f"{name}.rel_pos"
    layout = HeadLayout(
        width=width,
        producers={"qkv": (3 * width, 1) if attn.head_first else (width, 3)},
        more_cuts=rel_pos_cuts(rel_pos, attn.rel_pos),
        fixed_macs=rel_pos_fixed_macs(rel_pos, macs),
        bias_macs=rel_pos_bias_macs(rel_pos, attn.rel_pos, macs),
        not_narrowable="",
    )
    return heads_of(name, attn, macs, layout)


def _fit_maxvit(attn: Any) -> None:
    attn.num_heads = attn.proj.weight.shape[1] // attn.dim_head
    fit_rel_pos(attn.rel_pos, attn.num_heads)


def _tiny_vit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """`qkv` stores queries, keys and values of one head side by side."""
    layout = HeadLayout(
        width=attn.val_dim,
        producers={"qkv": (2 * attn.key_dim + attn.val_dim, 1)},
        more_cuts=cut_of(f"{name}.attention_biases", attn.attention_biases),
        not_narrowable=other_value_width(name, attn.key_dim, attn.val_dim),
    )
    return heads_of(name, attn, macs, layout)


def _fit_tiny_vit(attn: Any) -> None:
    attn.out_dim = attn.proj.in_features
    attn.num_heads = len(attn.attention_biases)
    attn.attention_bias_cache = {}


def _gpsa(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Each head has a map of positions and a gate of its own."""
    width = head_width_from_scale(attn)
    layout = HeadLayout(
        width=width,
        producers={"qk": (width, 2), "v": (width, 1), "pos_proj": (1, 1)},
        more_cuts=cut_of(f"{name}.gating_param", attn.gating_param),
        not_narrowable="",
    )
    return heads_of(name, attn, macs, layout)


def _class_attn(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = head_width_from_scale(attn)
    layout = HeadLayout(width=width, producers=dict.fromkeys("qkv", (width, 1)), not_narrowable="")
    return heads_of(name, attn, macs, layout)


def _talking_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Narrowing leaves the attention weights, which the heads exchange, as they are."""
    layout = HeadLayout(
        width=head_width_from_scale(attn),
        producers={"qkv": (head_width_from_scale(attn), 3)},
        fixed_macs=macs.get(f"{name}.proj_l", 0) + macs.get(f"{name}.proj_w", 0),
        not_prunable=f"`{name}.proj_l` and `{name}.proj_w` mix the attention weights of all heads",
        not_narrowable="",
    )
    return heads_of(name, attn, macs, layout)


HIERARCHICAL_PARTS: Mapping[type[nn.Module], Part] = {
    swin_transformer.WindowAttention: Part(_swin, fit_num_heads_by_scale),
    **replaced_by(swin_transformer_v2.WindowAttention, CutSwinV2Attention, _swin_v2, _fit_num_heads_by_logit_scale),
    **replaced_by(
        swin_transformer_v2_cr.WindowMultiHeadAttention,
        CutSwinV2CrAttention,
        _swin_v2_cr,
        _fit_num_heads_by_logit_scale,
    ),
    **dict.fromkeys((hiera.MaskUnitAttention, CutMaskUnitAttention), Part(_hiera, _fit_hiera)),
    **dict.fromkeys((hieradet_sam2.MultiScaleAttention, CutMultiScaleAttention), Part(_hiera_det, _fit_hiera_det)),
    mvitv2.MultiScaleAttention: Part(_mvit, _fit_mvit),
    maxxvit.Attention2d: Part(_maxvit, _fit_maxvit),
    maxxvit.AttentionCl: Part(_maxvit, _fit_maxvit),
    tiny_vit.Attention: Part(_tiny_vit, _fit_tiny_vit),
    tiny_vit.NormMlp: Part(chained_neurons("fc1", output_proj="fc2"), no_fit),
    tiny_vit.MBConv: Part(chained_neurons("conv1", "conv2", output_proj="conv3.conv"), no_fit),
    **replaced_by(convit.MHSA, CutConvitAttention, plain_heads, fit_num_heads_by_scale),
    **replaced_by(convit.GPSA, CutGPSA, _gpsa, fit_num_heads_by_scale),
    **replaced_by(xcit.XCA, CutXCA, temperature_heads, fit_num_heads_by_temperature),
    **replaced_by(cait.ClassAttn, CutClassAttn, _class_attn, fit_num_heads_by_scale),
    **replaced_by(cait.TalkingHeadAttn, CutTalkingHeadAttn, _talking_heads, no_fit),
}
