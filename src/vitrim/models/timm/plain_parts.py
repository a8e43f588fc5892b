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
    CutSamAttention,
)
from vitrim.structure import Directions, HeadRows, TensorCut, UnitGroup

ROTARY = "rotary positions turn pairs of directions of queries and keys"
SEVERAL_QUERY_HEADS = "several query heads of `{}` use the same keys and values"
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


def _attention(name: str, attn: Any, macs: Macs, *, only_values: str = "", bias_macs: int = 0) -> list[UnitGroup]:
    gate = rows(f"{name}.gate", getattr(attn, "gate", None), attn.head_dim)
    reason = normalises_across(getattr(attn, "norm", nn.Identity()), f"{name}.norm", "heads")
    layout = HeadLayout(
        width=value_width(attn, attn.head_dim),
        producers={"qkv": (attn.head_dim, 3)},
        more_cuts=gate,
        not_prunable=reason,
        not_narrowable=reason or gated_channels(name, attn),
        only_values=normalised_queries(name, attn) or only_values,
        bias_macs=bias_macs,
    )
    return heads_of(name, attn, macs, layout)


def _sam(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Relative positions multiply the queries: one product for each row and each column of the tokens."""
    if not attn.use_rel_pos:
        return _attention(name, attn, macs, only_values="" if attn.rope is None else ROTARY)
    reason = f"`{name}.rel_pos_h` multiplies the queries of all heads"
    num_tokens = macs.get(f"{name}.proj", 0) // attn.proj.weight.numel()
    num_products = num_tokens * (len(attn.rel_pos_h) + len(attn.rel_pos_w) + 2) // 2
    bias_macs = num_products * attn.num_heads * attn.head_dim
    return _attention(name, attn, macs, only_values=reason, bias_macs=bias_macs)


def _fit_sam(attn: Any) -> None:
    fit_num_heads_by_head_dim(attn)
    if hasattr(attn, VALUE_WIDTH):
        attn.__class__ = CutSamAttention


def _fit_attention(attn: Any) -> None:
    attn.attn_dim = attn.proj.in_features
    fit_num_heads_by_head_dim(attn)  # `scale` must keep the value of the head width
    if hasattr(attn, VALUE_WIDTH):
        attn.__class__ = CutAttention


def _attention_rope(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """With fewer key/value heads than query heads, a unit is one key/value head and all its query heads."""
    if attn.qkv is not None:
        return _attention(name, attn, macs, only_values=ROTARY)
    width, query_width = attn.head_dim, attn.head_dim * attn.num_kv_groups
    values = value_width(attn, width)
    reason = normalises_across(attn.norm, f"{name}.norm", "heads") or gated_channels(name, attn)
    layout = HeadLayout(
        width=values * attn.num_kv_groups,
        producers={"q_proj": (query_width, 1), "k_proj": (width, 1), "v_proj": (values, 1), "gate": (query_width, 1)},
        num_heads=attn.num_kv_heads,
        not_prunable=normalises_across(attn.norm, f"{name}.norm", "heads"),
        not_narrowable=reason or (SEVERAL_QUERY_HEADS.format(name) if attn.num_kv_groups > 1 else ""),
        only_values=normalised_queries(name, attn) or ROTARY,
    )
    return heads_of(name, attn, macs, layout)


def _fit_attention_rope(attn: Any) -> None:
    _fit_attention(attn)
    attn.num_kv_heads = attn.num_heads // attn.num_kv_groups
    attn.kv_dim = attn.num_kv_heads * attn.head_dim
    if hasattr(attn, "kept_heads") or hasattr(attn, VALUE_WIDTH):
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


def sub_norm(name: str) -> str:
    """The reason not to narrow the heads of differential attention."""
    return f"`{name}.sub_norm` normalises the output of each head"


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
    reason, narrow = normalises_across(attn.norm, f"{name}.norm", "heads"), sub_norm(name)
    return fused_heads(name, attn, macs, width=2 * attn.head_dim, not_prunable=reason, not_narrowable=narrow)


def _fit_diff_attention(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // (2 * attn.head_dim)


def _parallel_scaling(name: str, block: Any, macs: Macs) -> list[UnitGroup]:
    """The block of ViT-22B: one layer computes neurons, queries, keys and values, in this order."""
    num_neurons, attn_dim, _, value_dim = block.in_split
    width, values, dim = attn_dim // block.num_heads, value_dim // block.num_heads, block.in_proj.in_features
    is_fused = block.out_proj is not None
    mlp_output, attn_output = ("out_proj", "out_proj") if is_fused else ("mlp_out_proj", "attn_out_proj")
    num_tokens = macs.get(f"{name}.in_proj", 0) // block.in_proj.weight.numel()
    neuron_macs = 2 * num_tokens * dim * num_neurons
    neuron_cuts = [TensorCut(name=f"{name}.in_proj.{key}", dim=0) for key, _ in block.in_proj.named_parameters()]
    cuts = rows(f"{name}.in_proj", block.in_proj, width, repeats=2, first=num_neurons)
    cuts += rows(f"{name}.in_proj", block.in_proj, values, first=num_neurons + 2 * attn_dim)
    is_differential = isinstance(block, vision_transformer.DiffParallelScalingBlock)
    attn_macs = macs.get(name, 0) - neuron_macs
    narrowing = sub_norm(name) if is_differential else _parallel_directions(name, block, num_tokens, attn_macs)
    return [
        heads(
            count=block.num_heads,
            width=values,
            output_proj=f"{name}.{attn_output}",
            cuts=cuts,
            macs=attn_macs,
            narrowing=narrowing,
        ),
        neurons(
            count=num_neurons,
            output_proj=f"{name}.{mlp_output}",
            cuts=[*neuron_cuts, *cut_of(f"{name}.mlp_bias", block.mlp_bias)],
            macs=neuron_macs,
            first=value_dim if is_fused else 0,
        ),
    ]


def _parallel_directions(name: str, block: Any, num_tokens: int, attn_macs: int) -> Directions:
    """What narrowing the heads of a parallel block needs.

    Args:
        attn_macs: multiply-adds of the attention, with its rows of `in_proj` and its output projection.
    """
    num_neurons, attn_dim, _, value_dim = block.in_split
    width, values, layer_macs = (
        attn_dim // block.num_heads,
        value_dim // block.num_heads,
        num_tokens * block.in_proj.in_features,
    )
    starts = (num_neurons, num_neurons + attn_dim, num_neurons + 2 * attn_dim)
    queries, keys, value_rows = (
        tuple(
            HeadRows(name=f"{name}.in_proj.{key}", width=rows_per_head, stride=rows_per_head, first=first)
            for key, _ in block.in_proj.named_parameters()
        )
        for first, rows_per_head in zip(starts, (width, width, values), strict=True)
    )
    if reason := normalised_queries(name, block):
        products = attn_macs - 2 * layer_macs * (attn_dim + value_dim)  # with queries and keys, and with values
        of_values = 2 * layer_macs * value_dim + products * value_dim // (attn_dim + value_dim)
        return Directions(values=value_rows, only_values=reason, macs=of_values // value_dim)
    layer = f"{name}.in_proj"
    return Directions(
        queries=queries,
        keys=keys,
        values=value_rows,
        query_input=layer,
        key_input=layer,
        macs=attn_macs // value_dim,
    )


def _fit_parallel_scaling(block: Any) -> None:
    is_differential = isinstance(block, vision_transformer.DiffParallelScalingBlock)
    width = (2 if is_differential else 1) * block.head_dim
    values = value_width(block, width)
    if block.out_proj is None:
        num_neurons, value_dim = block.mlp_out_proj.in_features, block.attn_out_proj.in_features
        block.num_heads = value_dim // values
    else:
        block.num_heads = (block.in_proj.out_features - block.out_proj.in_features) // (2 * width)
        value_dim = block.num_heads * values
        num_neurons = block.out_proj.in_features - value_dim
    block.in_split = [num_neurons, block.num_heads * width, block.num_heads * width, value_dim]


PLAIN_PARTS: Mapping[type[nn.Module], Part] = {
    Mlp: Part(_mlp, no_fit),
    ConvMlp: Part(_mlp, no_fit),
    GluMlp: Part(neurons_of("fc1", packed=2), no_fit),
    SwiGLU: Part(neurons_of("fc1_g", "fc1_x"), no_fit),
    vitamin.GeGluMlp: Part(neurons_of("w0", "w1", output_proj="w2", norm=""), no_fit),
    GatedMlp: Part(_gated_mlp, no_fit),
    GlobalResponseNormMlp: Part(_grn_mlp, no_fit),
    **dict.fromkeys((Attention, CutAttention), Part(_attention, _fit_attention)),
    **dict.fromkeys((vision_transformer_sam.Attention, CutSamAttention), Part(_sam, _fit_sam)),
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
