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

from vitrim.models.describing import Macs, cut_of, not_prunable_heads, rows
from vitrim.models.timm.finders import (
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
    plain_heads,
    qkv_biases,
    rel_pos_cuts,
    rel_pos_fixed_macs,
    replaced_by,
    temperature_heads,
)
from vitrim.models.timm.hierarchical_forwards import (
    CutClassAttn,
    CutConvitAttention,
    CutGPSA,
    CutSwinV2Attention,
    CutSwinV2CrAttention,
    CutXCA,
)
from vitrim.structure import UnitGroup


def _swin(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    table = cut_of(f"{name}.relative_position_bias_table", attn.relative_position_bias_table, dim=1)
    return fused_heads(name, attn, macs, width=head_width_from_scale(attn), more_cuts=table, not_narrowable="")


def _swin_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.proj.in_features // attn.num_heads
    cuts = [*rows(f"{name}.cpb_mlp.2", attn.cpb_mlp[2]), *cut_of(f"{name}.logit_scale", attn.logit_scale)]
    cuts += qkv_biases(name, attn, width, width)
    fixed_macs = macs.get(f"{name}.cpb_mlp.0", 0)
    return fused_heads(name, attn, macs, width=width, more_cuts=cuts, fixed_macs=fixed_macs)


def _swin_v2_cr(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.proj.in_features // attn.num_heads
    cuts = [*rows(f"{name}.meta_mlp.fc2", attn.meta_mlp.fc2), *cut_of(f"{name}.logit_scale", attn.logit_scale)]
    fixed_macs = macs.get(f"{name}.meta_mlp.fc1", 0)
    return fused_heads(name, attn, macs, width=width, more_cuts=cuts, fixed_macs=fixed_macs)


def _fit_num_heads_by_logit_scale(attn: Any) -> None:
    attn.num_heads = len(attn.logit_scale)


def _hiera(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    return fused_heads(name, attn, macs, width=attn.head_dim, num_heads=attn.heads)


def _fit_hiera(attn: Any) -> None:
    attn.dim_out = attn.proj.in_features
    attn.heads = attn.dim_out // attn.head_dim


def _mvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """All heads use the same pooling filters and the same relative positions."""
    reason = f"the pooling convolutions of `{name}` span all heads" if attn.unshared else ""
    return fused_heads(name, attn, macs, width=attn.head_dim, not_prunable=reason)


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
    )
    return heads_of(name, attn, macs, layout)


def _class_attn(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = head_width_from_scale(attn)
    return heads_of(name, attn, macs, HeadLayout(width=width, producers=dict.fromkeys("qkv", (width, 1))))


def _talking_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    reason = f"`{name}.proj_l` and `{name}.proj_w` mix the attention weights of all heads"
    return [not_prunable_heads(attn.num_heads, reason)]


HIERARCHICAL_PARTS: Mapping[type[nn.Module], Part] = {
    swin_transformer.WindowAttention: Part(_swin, fit_num_heads_by_scale),
    **replaced_by(swin_transformer_v2.WindowAttention, CutSwinV2Attention, _swin_v2, _fit_num_heads_by_logit_scale),
    **replaced_by(
        swin_transformer_v2_cr.WindowMultiHeadAttention,
        CutSwinV2CrAttention,
        _swin_v2_cr,
        _fit_num_heads_by_logit_scale,
    ),
    hiera.MaskUnitAttention: Part(_hiera, _fit_hiera),
    hieradet_sam2.MultiScaleAttention: Part(plain_heads, fit_num_heads_by_scale),
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
    cait.TalkingHeadAttn: Part(_talking_heads, no_fit),
}
