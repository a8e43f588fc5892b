"""Attentions and MLPs of timm's plain Vision Transformers: one entry for each class, by the type of the module."""

from collections.abc import Mapping
from typing import Any

from timm.layers import Attention, AttentionRope, DiffAttention, Mlp
from timm.layers.mlp import ConvMlp, GatedMlp, GlobalResponseNormMlp, GluMlp, SwiGLU
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos, vision_transformer_sam, vitamin
from torch import nn

from vitrim.models.describing import Macs, cut_of, heads, neurons, not_prunable_neurons, rows
from vitrim.models.timm.finders import (
    VALUE_WIDTH,
    HeadLayout,
    Part,
    fit_num_heads_by_head_dim,
    fit_num_heads_by_scale,
    fit_rel_pos,
    fused_heads,
    heads_of,
    neurons_of,
    no_fit,
    normalises_across,
    qkv_biases,
    rel_pos_cuts,
    rel_pos_fixed_macs,
    replaced_by,
    value_width,
)
from vitrim.models.timm.forwards import (
    CutAttention,
    CutAttentionRope,
    CutBeitAttention,
    CutDiffAttention,
    CutDiffParallelScalingBlock,
    CutEvaAttention,
    CutParallelScalingBlock,
    CutRelPosAttention,
)
from vitrim.structure import TensorCut, UnitGroup

ROTARY = "rotary positions turn pairs of directions of queries and keys"
_mlp = neurons_of("fc1")


def _gated_mlp(name: str, mlp: Any, macs: Macs) -> list[UnitGroup]:
    if isinstance(mlp.gate, nn.Identity):
        return _mlp(name, mlp, macs)
    reason = f"`{name}.gate` normalises across neurons and mixes tokens"
    return [not_prunable_neurons(mlp.fc2.weight.shape[1], reason)]


def _grn_mlp(name: str, mlp: Any, macs: Macs) -> list[UnitGroup]:
    return [not_prunable_neurons(mlp.fc2.weight.shape[1], f"`{name}.grn` normalises across neurons")]


def normalised_queries(name: str, attn: Any) -> str:
    """The reason not to narrow queries and keys that are normalised; empty if they are not."""
    return "" if isinstance(attn.q_norm, nn.Identity) else f"`{name}.q_norm` normalises the queries of each head"


def gated_channels(name: str, attn: Any) -> str:
    """The reason not to rotate heads whose columns a gate multiplies; empty if there is no gate."""
    return "" if getattr(attn, "gate", None) is None else f"`{name}.gate` multiplies each column of the heads"


def _attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    gate = rows(f"{name}.gate", getattr(attn, "gate", None), attn.head_dim)
    reason = normalises_across(getattr(attn, "norm", nn.Identity()), f"{name}.norm", "heads")
    layout = HeadLayout(
        width=value_width(attn, attn.head_dim),
        producers={"qkv": (attn.head_dim, 3)},
        more_cuts=gate,
        not_prunable=reason,
        not_narrowable=reason or gated_channels(name, attn),
        only_values=normalised_queries(name, attn),
    )
    return heads_of(name, attn, macs, layout)


def _fit_attention(attn: Any) -> None:
    attn.attn_dim = attn.proj.in_features
    fit_num_heads_by_head_dim(attn)  # `scale` must keep the value of the head width
    if hasattr(attn, VALUE_WIDTH):
        attn.__class__ = CutAttention


def _attention_rope(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """With fewer key/value heads than query heads, a unit is one key/value head and all its query heads."""
    if attn.qkv is not None:
        return _attention(name, attn, macs)
    width, query_width = attn.head_dim, attn.head_dim * attn.num_kv_groups
    layout = HeadLayout(
        width=query_width,
        producers={"q_proj": (query_width, 1), "k_proj": (width, 1), "v_proj": (width, 1), "gate": (query_width, 1)},
        num_heads=attn.num_kv_heads,
        not_prunable=normalises_across(attn.norm, f"{name}.norm", "heads"),
        not_narrowable=f"several query heads of `{name}` may have one key head",
    )
    return heads_of(name, attn, macs, layout)


def _fit_attention_rope(attn: Any) -> None:
    _fit_attention(attn)
    attn.num_kv_heads = attn.num_heads // attn.num_kv_groups
    attn.kv_dim = attn.num_kv_heads * attn.head_dim
    if hasattr(attn, "kept_heads"):
        attn.__class__ = CutAttentionRope


def _eva(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width, values = attn.head_dim, value_width(attn, attn.head_dim)
    reason = normalises_across(attn.norm, f"{name}.norm", "heads")
    layout = HeadLayout(
        width=values,
        producers={"qkv": (width, 3)}
        | {layer: (width, 1) for layer in ("q_proj", "k_proj")}
        | {layer: (values, 1) for layer in ("v_proj", "gate")},
        more_cuts=qkv_biases(name, attn, width, values),
        not_prunable=reason,
        not_narrowable=reason or gated_channels(name, attn),
        only_values=normalised_queries(name, attn) or ROTARY,
    )
    return heads_of(name, attn, macs, layout)


def _beit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.proj.in_features // attn.num_heads
    table = cut_of(f"{name}.relative_position_bias_table", attn.relative_position_bias_table, dim=1)
    biases = qkv_biases(name, attn, width, width)
    return fused_heads(name, attn, macs, width=width, more_cuts=[*biases, *table], not_narrowable="")


def _rel_pos_attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    rel_pos = f"{name}.rel_pos"
    layout = HeadLayout(
        width=value_width(attn, attn.head_dim),
        producers={"qkv": (attn.head_dim, 3)},
        more_cuts=rel_pos_cuts(rel_pos, attn.rel_pos),
        fixed_macs=rel_pos_fixed_macs(rel_pos, macs),
        not_narrowable="",
        only_values=normalised_queries(name, attn),
    )
    return heads_of(name, attn, macs, layout)


def _fit_rel_pos_attention(attn: Any) -> None:
    fit_num_heads_by_head_dim(attn)
    fit_rel_pos(attn.rel_pos, attn.num_heads)


def _diff_attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """A head has two query heads, two key heads, and values that are twice as wide."""
    reason = normalises_across(attn.norm, f"{name}.norm", "heads")
    return fused_heads(name, attn, macs, width=2 * attn.head_dim, not_prunable=reason)


def _fit_diff_attention(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // (2 * attn.head_dim)


def _parallel_scaling(name: str, block: Any, macs: Macs) -> list[UnitGroup]:
    """The block of ViT-22B: one layer computes neurons, queries, keys and values, in this order."""
    num_neurons, attn_dim = block.in_split[0], block.in_split[1]
    width, dim = attn_dim // block.num_heads, block.in_proj.in_features
    is_fused = block.out_proj is not None
    mlp_output, attn_output = ("out_proj", "out_proj") if is_fused else ("mlp_out_proj", "attn_out_proj")
    num_tokens = macs.get(f"{name}.in_proj", 0) // block.in_proj.weight.numel()
    neuron_macs = 2 * num_tokens * dim * num_neurons
    neuron_cuts = [TensorCut(name=f"{name}.in_proj.{key}", dim=0) for key, _ in block.in_proj.named_parameters()]
    return [
        heads(
            count=block.num_heads,
            width=width,
            output_proj=f"{name}.{attn_output}",
            cuts=rows(f"{name}.in_proj", block.in_proj, width, repeats=3, first=num_neurons),
            macs=macs.get(name, 0) - neuron_macs,
        ),
        neurons(
            count=num_neurons,
            output_proj=f"{name}.{mlp_output}",
            cuts=[*neuron_cuts, *cut_of(f"{name}.mlp_bias", block.mlp_bias)],
            macs=neuron_macs,
            first=attn_dim if is_fused else 0,
        ),
    ]


def _fit_parallel_scaling(block: Any) -> None:
    if block.out_proj is None:
        num_neurons, attn_dim = block.mlp_out_proj.in_features, block.attn_out_proj.in_features
    else:
        attn_dim = (block.in_proj.out_features - block.out_proj.in_features) // 2
        num_neurons = block.out_proj.in_features - attn_dim
    is_differential = isinstance(block, vision_transformer.DiffParallelScalingBlock)
    block.num_heads = attn_dim // ((2 if is_differential else 1) * block.head_dim)
    block.in_split = [num_neurons, attn_dim, attn_dim, attn_dim]


PLAIN_PARTS: Mapping[type[nn.Module], Part] = {
    Mlp: Part(_mlp, no_fit),
    ConvMlp: Part(_mlp, no_fit),
    GluMlp: Part(neurons_of("fc1", packed=2), no_fit),
    SwiGLU: Part(neurons_of("fc1_g", "fc1_x"), no_fit),
    vitamin.GeGluMlp: Part(neurons_of("w0", "w1", output_proj="w2", norm=""), no_fit),
    GatedMlp: Part(_gated_mlp, no_fit),
    GlobalResponseNormMlp: Part(_grn_mlp, no_fit),
    **dict.fromkeys((Attention, CutAttention), Part(_attention, _fit_attention)),
    vision_transformer_sam.Attention: Part(_attention, fit_num_heads_by_head_dim),
    **dict.fromkeys((AttentionRope, CutAttentionRope), Part(_attention_rope, _fit_attention_rope)),
    **replaced_by(DiffAttention, CutDiffAttention, _diff_attention, _fit_diff_attention),
    **replaced_by(eva.EvaAttention, CutEvaAttention, _eva, fit_num_heads_by_head_dim),
    **replaced_by(beit.Attention, CutBeitAttention, _beit, fit_num_heads_by_scale),
    **replaced_by(
        vision_transformer_relpos.RelPosAttention, CutRelPosAttention, _rel_pos_attention, _fit_rel_pos_attention
    ),
    **replaced_by(
        vision_transformer.ParallelScalingBlock, CutParallelScalingBlock, _parallel_scaling, _fit_parallel_scaling
    ),
    **replaced_by(
        vision_transformer.DiffParallelScalingBlock,
        CutDiffParallelScalingBlock,
        _parallel_scaling,
        _fit_parallel_scaling,
    ),
}
