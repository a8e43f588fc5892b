"""What each attention and each MLP of timm consists of: one entry for each class, found by the type of the module.

An entry has two halves. `find` tells the units: how many, who reads them, which tensors store them. `fit` is called
after a cut and sets the attributes that repeat a size; where the class takes a size for granted in its `forward`, it
becomes the one of `timm_attention` that does not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from timm.layers import Attention, AttentionRope, DiffAttention, Mlp
from timm.layers.mlp import ConvMlp, GatedMlp, GlobalResponseNormMlp, GluMlp, SwiGLU
from timm.layers.pos_embed_rel import RelPosBias, RelPosBiasTf, RelPosMlp
from timm.models import beit, eva, vision_transformer, vision_transformer_relpos, vision_transformer_sam, vitamin
from torch import nn

from vitrim.models.describing import Macs, cut_of, heads, neurons, not_prunable_neurons, rows
from vitrim.models.timm.forwards import (
    CutAttentionRope,
    CutBeitAttention,
    CutDiffAttention,
    CutDiffParallelScalingBlock,
    CutEvaAttention,
    CutParallelScalingBlock,
    CutRelPosAttention,
)
from vitrim.structure import TensorCut, UnitGroup

Find = Callable[[str, nn.Module, Macs], list[UnitGroup]]
Fit = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Part:
    """How to describe one class of attention or MLP, and what to set on it after a cut.

    `remembers`: whether `fit` finds on the module which heads were kept, counted in the dense model: `kept_heads`.
    """

    find: Find
    fit: Fit
    remembers: bool = False


def across(norm: nn.Module, name: str, units: str) -> str:
    """The reason not to cut in front of a normalisation over all units; empty if there is none."""
    return "" if isinstance(norm, nn.Identity) else f"`{name}` normalises across {units}"


def no_fit(module: nn.Module) -> None:
    """Nothing repeats a size."""


# MLPs: some layers give the neurons, one reads them


def mlp_of(*producers: str, output_proj: str = "fc2", packed: int = 1, norm: str = "norm") -> Find:
    """An MLP whose neurons are rows of each of the layers `producers`, `packed` of them, and columns of the reader.

    A norm in between stands in the way, unless it is a batch norm, which treats each neuron by itself.
    """

    def find(name: str, mlp: Any, macs: Macs) -> list[UnitGroup]:
        between = getattr(mlp, norm) if norm else nn.Identity()
        each_alone = isinstance(between, nn.modules.batchnorm._BatchNorm)
        cuts = [cut for layer in producers for cut in rows(f"{name}.{layer}", getattr(mlp, layer), repeats=packed)]
        return [
            neurons(
                count=getattr(mlp, output_proj).weight.shape[1],
                output_proj=f"{name}.{output_proj}",
                cuts=[*cuts, *(rows(f"{name}.{norm}", between) if each_alone else [])],
                macs=macs.get(name, 0),
                not_prunable="" if each_alone else across(between, f"{name}.{norm}", "neurons"),
            )
        ]

    return find


_mlp = mlp_of("fc1")


def _gated_mlp(name: str, mlp: Any, macs: Macs) -> list[UnitGroup]:
    if isinstance(mlp.gate, nn.Identity):
        return _mlp(name, mlp, macs)
    return [
        not_prunable_neurons(
            mlp.fc2.weight.shape[1], f"`{name}.gate` mixes the neurons' tokens after a norm across them"
        )
    ]


def _grn_mlp(name: str, mlp: Any, macs: Macs) -> list[UnitGroup]:
    return [not_prunable_neurons(mlp.fc2.weight.shape[1], f"`{name}.grn` normalises across neurons")]


# Attentions: qkv gives the heads, proj reads them


def heads_of(
    name: str,
    attn: Any,
    macs: Macs,
    *,
    width: int,
    producers: Mapping[str, tuple[int, int]],
    more: Sequence[TensorCut] = (),
    fixed: int = 0,
    count: int = 0,
    output_proj: str = "proj",
    not_prunable: str = "",
) -> list[UnitGroup]:
    """Heads, by the layers that give them: how many rows a head has in one stretch of a layer, and how many stretches.

    `more` are further tensors that store a part of each head, `fixed` multiply-adds that do not depend on their number.
    """
    cuts: list[TensorCut] = []
    for layer, (each, repeats) in producers.items():
        cuts += rows(f"{name}.{layer}", attrgetter(layer)(attn), each, repeats=repeats)
    return [
        heads(
            count=count or attn.num_heads,
            width=width,
            output_proj=f"{name}.{output_proj}",
            cuts=[*cuts, *more],
            macs=macs.get(name, 0) - fixed,
            not_prunable=not_prunable,
        )
    ]


def fused(name: str, attn: Any, macs: Macs, *, width: int, **others: Any) -> list[UnitGroup]:
    """Heads whose queries, keys and values come from one layer `qkv`; `others` as in `heads_of`."""
    return heads_of(name, attn, macs, width=width, producers={"qkv": (width, 3)}, **others)


def qkv_biases(name: str, attn: Any, width: int) -> list[TensorCut]:
    """Biases of a fused layer that are parameters of the attention."""
    biases = ("q_bias", "k_bias", "v_bias")
    return [cut for bias in biases for cut in cut_of(f"{name}.{bias}", getattr(attn, bias), width=width)]


def _attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    gate = rows(f"{name}.gate", getattr(attn, "gate", None), attn.head_dim)
    norm = across(getattr(attn, "norm", nn.Identity()), f"{name}.norm", "heads")
    return fused(name, attn, macs, width=attn.head_dim, more=gate, not_prunable=norm)


def _fit_attention(attn: Any) -> None:
    attn.attn_dim = attn.proj.in_features
    attn.num_heads = attn.attn_dim // attn.head_dim  # `scale` keeps the head width's value


def _attention_rope(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """With fewer key and value heads than query heads, a unit is one of those and all queries that share it."""
    if attn.qkv is not None:
        return _attention(name, attn, macs)
    width, shared = attn.head_dim, attn.head_dim * attn.num_kv_groups
    producers = {"q_proj": (shared, 1), "k_proj": (width, 1), "v_proj": (width, 1), "gate": (shared, 1)}
    norm = across(attn.norm, f"{name}.norm", "heads")
    return heads_of(name, attn, macs, width=shared, producers=producers, count=attn.num_kv_heads, not_prunable=norm)


def _fit_attention_rope(attn: Any) -> None:
    _fit_attention(attn)
    attn.num_kv_heads = attn.num_heads // attn.num_kv_groups
    attn.kv_dim = attn.num_kv_heads * attn.head_dim
    if hasattr(attn, "kept_heads"):
        attn.__class__ = CutAttentionRope


def _eva(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.head_dim
    producers = {"qkv": (width, 3)} | {layer: (width, 1) for layer in ("q_proj", "k_proj", "v_proj", "gate")}
    norm = across(attn.norm, f"{name}.norm", "heads")
    return heads_of(
        name, attn, macs, width=width, producers=producers, more=qkv_biases(name, attn, width), not_prunable=norm
    )


def _fit_eva(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // attn.head_dim
    attn.__class__ = CutEvaAttention


def _beit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.proj.in_features // attn.num_heads
    table = cut_of(f"{name}.relative_position_bias_table", attn.relative_position_bias_table, dim=1)
    return fused(name, attn, macs, width=width, more=[*qkv_biases(name, attn, width), *table])


def _fit_beit(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // round(attn.scale**-2)  # the head width stands nowhere else
    attn.__class__ = CutBeitAttention


def rel_pos_cuts(name: str, rel_pos: Any) -> list[TensorCut]:
    """What a position bias stores for each head."""
    if rel_pos is None:
        return []
    if isinstance(rel_pos, RelPosMlp):
        return rows(f"{name}.mlp.fc2", rel_pos.mlp.fc2)
    if isinstance(rel_pos, RelPosBiasTf):
        return cut_of(f"{name}.relative_position_bias_table", rel_pos.relative_position_bias_table)
    return cut_of(f"{name}.relative_position_bias_table", rel_pos.relative_position_bias_table, dim=1)


def rel_pos_fixed(name: str, macs: Macs) -> int:
    """Multiply-adds of a position bias that do not depend on the number of heads."""
    return macs.get(f"{name}.mlp.fc1", 0)


def fit_rel_pos(rel_pos: Any, num_heads: int) -> None:
    if isinstance(rel_pos, RelPosBias | RelPosMlp):
        rel_pos.bias_shape = (*rel_pos.bias_shape[:2], num_heads)
    if isinstance(rel_pos, RelPosBiasTf):
        rel_pos.bias_shape = (num_heads, *rel_pos.bias_shape[1:])
    if isinstance(rel_pos, RelPosBiasTf | RelPosMlp):
        rel_pos.num_heads = num_heads


def _rel_pos_attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    rel_pos = f"{name}.rel_pos"
    more, fixed = rel_pos_cuts(rel_pos, attn.rel_pos), rel_pos_fixed(rel_pos, macs)
    return fused(name, attn, macs, width=attn.head_dim, more=more, fixed=fixed)


def _fit_rel_pos_attention(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // attn.head_dim
    fit_rel_pos(attn.rel_pos, attn.num_heads)
    attn.__class__ = CutRelPosAttention


def _fit_num_heads(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // attn.head_dim


def _diff_attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """A head has two query and two key heads and values twice as wide."""
    return fused(name, attn, macs, width=2 * attn.head_dim, not_prunable=across(attn.norm, f"{name}.norm", "heads"))


def _fit_diff_attention(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // (2 * attn.head_dim)
    attn.__class__ = CutDiffAttention


def _parallel_scaling(name: str, block: Any, macs: Macs) -> list[UnitGroup]:
    """ViT-22B's block: one layer gives neurons, queries, keys and values, in this order."""
    num_neurons, attn_dim = block.in_split[0], block.in_split[1]
    width, dim = attn_dim // block.num_heads, block.in_proj.in_features
    fused = block.out_proj is not None
    of_neurons, of_heads = ("out_proj", "out_proj") if fused else ("mlp_out_proj", "attn_out_proj")
    num_tokens = macs.get(f"{name}.in_proj", 0) // block.in_proj.weight.numel()
    neuron_macs = 2 * num_tokens * dim * num_neurons
    before = [TensorCut(name=f"{name}.in_proj.{key}", dim=0) for key, _ in block.in_proj.named_parameters()]
    inside = rows(f"{name}.in_proj", block.in_proj, width, repeats=3, first=num_neurons)
    return [
        heads(
            count=block.num_heads,
            width=width,
            output_proj=f"{name}.{of_heads}",
            cuts=inside,
            macs=macs.get(name, 0) - neuron_macs,
        ),
        neurons(
            count=num_neurons,
            output_proj=f"{name}.{of_neurons}",
            cuts=[*before, *cut_of(f"{name}.mlp_bias", block.mlp_bias)],
            macs=neuron_macs,
            first=attn_dim if fused else 0,
        ),
    ]


def _fit_parallel_scaling(block: Any) -> None:
    if block.out_proj is None:
        num_neurons, attn_dim = block.mlp_out_proj.in_features, block.attn_out_proj.in_features
    else:
        attn_dim = (block.in_proj.out_features - block.out_proj.in_features) // 2
        num_neurons = block.out_proj.in_features - attn_dim
    pair = 2 if isinstance(block, vision_transformer.DiffParallelScalingBlock) else 1
    block.num_heads = attn_dim // (pair * block.head_dim)
    block.in_split = [num_neurons, attn_dim, attn_dim, attn_dim]
    block.__class__ = CutDiffParallelScalingBlock if pair == 2 else CutParallelScalingBlock


PARTS: Mapping[type[nn.Module], Part] = {
    Mlp: Part(_mlp, no_fit),
    ConvMlp: Part(_mlp, no_fit),
    GluMlp: Part(mlp_of("fc1", packed=2), no_fit),
    SwiGLU: Part(mlp_of("fc1_g", "fc1_x"), no_fit),
    vitamin.GeGluMlp: Part(mlp_of("w0", "w1", output_proj="w2", norm=""), no_fit),
    GatedMlp: Part(_gated_mlp, no_fit),
    GlobalResponseNormMlp: Part(_grn_mlp, no_fit),
    Attention: Part(_attention, _fit_attention),
    AttentionRope: Part(_attention_rope, _fit_attention_rope),
    CutAttentionRope: Part(_attention_rope, _fit_attention_rope),
    DiffAttention: Part(_diff_attention, _fit_diff_attention),
    CutDiffAttention: Part(_diff_attention, _fit_diff_attention),
    eva.EvaAttention: Part(_eva, _fit_eva),
    CutEvaAttention: Part(_eva, _fit_eva),
    beit.Attention: Part(_beit, _fit_beit),
    CutBeitAttention: Part(_beit, _fit_beit),
    vision_transformer_relpos.RelPosAttention: Part(_rel_pos_attention, _fit_rel_pos_attention),
    CutRelPosAttention: Part(_rel_pos_attention, _fit_rel_pos_attention),
    vision_transformer_sam.Attention: Part(_attention, _fit_num_heads),
    vision_transformer.ParallelScalingBlock: Part(_parallel_scaling, _fit_parallel_scaling),
    CutParallelScalingBlock: Part(_parallel_scaling, _fit_parallel_scaling),
    vision_transformer.DiffParallelScalingBlock: Part(_parallel_scaling, _fit_parallel_scaling),
    CutDiffParallelScalingBlock: Part(_parallel_scaling, _fit_parallel_scaling),
}
