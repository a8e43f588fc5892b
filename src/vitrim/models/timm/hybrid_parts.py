"""Attentions of timm's models that mix them with convolutions: one entry for each class. MLPs are in `hybrid_mlps`."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from timm.models import (
    crossvit,
    davit,
    edgenext,
    efficientformer,
    efficientformer_v2,
    fastvit,
    gcvit,
    gemma4_vit,
    levit,
    mambaout,
    metaformer,
    mobilevit,
    nextvit,
    pvt_v2,
    tnt,
    twins,
    visformer,
    volo,
)
from timm.models.csatv2 import SpatialAttention
from torch import nn

from vitrim.models.describing import NO_NARROW_FORM, Macs, cut_of, heads, neurons, rows
from vitrim.models.timm.finders import (
    Find,
    Fit,
    HeadLayout,
    Part,
    between_channels,
    fit_num_heads_by_head_dim,
    fit_num_heads_by_scale,
    fit_num_heads_by_temperature,
    fit_rel_pos,
    fused_heads,
    head_width_from_scale,
    heads_of,
    layers_with_tensors,
    no_fit,
    other_value_width,
    plain_heads,
    rel_pos_cuts,
    replaced_by,
    separate_heads,
    temperature_heads,
    value_width,
)
from vitrim.models.timm.hierarchical_forwards import (
    CutChannelAttention,
    CutChannelAttentionV2,
    CutCrossAttention,
    CutCrossCovarianceAttn,
    CutDaVitWindowAttention,
    CutFastVitAttention,
    CutGlobalSubSampleAttn,
    CutLocallyGroupedAttn,
    CutMetaFormerAttention,
    CutNextVitAttention,
    CutOutlookAttention,
    CutPvtAttention,
    CutVoloAttention,
    CutWindowAttentionGlobal,
)
from vitrim.models.timm.hybrid_mlps import HYBRID_MLPS
from vitrim.structure import TensorCut, UnitGroup


def _no_units(name: str, module: nn.Module, macs: Macs) -> list[UnitGroup]:
    """No units: the attention works on one channel, and a norm over one channel is constant."""
    return []


def _levit(qkv: str, q: str, output_proj: str, name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """LeViT and its followers: queries, keys and values of one head lie side by side; values have their own width.

    Args:
        qkv: the layer of keys and values, and of queries too if `q` is empty.
        q: the layer of queries, or empty.
    """
    key_width, value_width = attn.key_dim, attn.val_dim
    cuts: list[TensorCut] = []
    for path, rows_per_head in ((qkv, (1 if q else 2) * key_width + value_width), (q, key_width)):
        for layer_name, layer in layers_with_tensors(f"{name}.{path}", attn.get_submodule(path)) if path else ():
            cuts += rows(layer_name, layer, rows_per_head)
    return [
        heads(
            count=attn.num_heads,
            width=value_width,
            output_proj=f"{name}.{output_proj}",
            cuts=[*cuts, *cut_of(f"{name}.attention_biases", attn.attention_biases)],
            macs=macs.get(name, 0),
            narrowing=_levit_reason(name, attn),
        )
    ]


def _levit_reason(name: str, attn: Any) -> str:
    if isinstance(attn, efficientformer.Attention):
        return other_value_width(name, attn.key_dim, attn.val_dim) or NO_NARROW_FORM
    return f"`{name}.proj` begins with an activation of each column of the heads"


def _fit_levit(attn: Any) -> None:
    attn.num_heads = len(attn.attention_biases)
    attn.key_attn_dim, attn.val_attn_dim = attn.key_dim * attn.num_heads, attn.val_dim * attn.num_heads
    attn.attention_bias_cache = {}


def _downsampling(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """EfficientFormerV2's attention between stages. Values also pass a depthwise filter."""
    widths = {"q.proj": attn.key_dim, "k": attn.key_dim, "v": attn.d, "v_local": attn.d}
    cuts: list[TensorCut] = []
    for submodule, width in widths.items():
        for layer_name, layer in layers_with_tensors(f"{name}.{submodule}", attn.get_submodule(submodule)):
            cuts += rows(layer_name, layer, width)
    return [
        heads(
            count=attn.num_heads,
            width=attn.d,
            output_proj=f"{name}.proj.conv",
            cuts=[*cuts, *cut_of(f"{name}.attention_biases", attn.attention_biases)],
            macs=macs.get(name, 0) - macs.get(f"{name}.q.local", 0),
            narrowing=f"`{name}.v_local` filters each column of the values",
        )
    ]


def _fit_downsampling(attn: Any) -> None:
    attn.num_heads = len(attn.attention_biases)
    attn.dh = attn.d * attn.num_heads
    attn.attention_bias_cache = {}


def _mambaout(name: str, block: Any, macs: Macs) -> list[UnitGroup]:
    """Two groups of neurons: first those without a depthwise filter, then those with one. Each has two rows of fc1."""
    hidden, num_unfiltered, num_filtered = block.split_indices
    groups = []
    for first, count in ((0, num_unfiltered), (num_unfiltered, num_filtered)):
        if not count:
            continue
        is_filtered = first == num_unfiltered
        cuts = [*rows(f"{name}.fc1", block.fc1, first=first), *rows(f"{name}.fc1", block.fc1, first=hidden + first)]
        cuts += rows(f"{name}.conv", block.conv) if is_filtered else []
        linear_macs = (macs.get(f"{name}.fc1", 0) + macs.get(f"{name}.fc2", 0)) // hidden * count
        groups.append(
            neurons(
                count=count,
                output_proj=f"{name}.fc2",
                cuts=cuts,
                macs=linear_macs + (macs.get(f"{name}.conv", 0) if is_filtered else 0),
                first=first,
            )
        )
    return groups


def _fit_mambaout(block: Any) -> None:
    hidden, num_filtered = block.fc2.in_features, block.conv.out_channels
    block.split_indices = (hidden, hidden - num_filtered, num_filtered)


def _outlook(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = value_width(attn, head_width_from_scale(attn))
    layout = HeadLayout(
        width=width,
        producers={"v": (width, 1), "attn": (attn.kernel_size**4, 1)},
        not_narrowable="",
        only_values=f"`{name}` has no queries and keys",
    )
    return heads_of(name, attn, macs, layout)


def _mobilevit_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Each channel attends by itself, and all channels use one query. So a head is a channel."""
    num_channels = attn.embed_dim
    query_macs = macs.get(f"{name}.qkv_proj", 0) // (1 + 2 * num_channels)
    return [
        heads(
            count=num_channels,
            width=1,
            output_proj=f"{name}.out_proj",
            cuts=rows(f"{name}.qkv_proj", attn.qkv_proj, repeats=2, first=1),
            macs=macs.get(name, 0) - query_macs,
            narrowing=f"each head of `{name}` is one channel",
        )
    ]


def _fit_mobilevit_v2(attn: Any) -> None:
    attn.embed_dim = attn.out_proj.in_channels


def _channel(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = head_width_from_scale(attn)
    return fused_heads(name, attn, macs, width=width, not_narrowable=between_channels(name))


def _channel_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    reason = between_channels(name)
    return fused_heads(name, attn, macs, width=attn.head_dim, num_heads=attn.groups, not_narrowable=reason)


def _fit_channel_v2(attn: Any) -> None:
    attn.groups = attn.proj.in_features // attn.head_dim


def _gcvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Half of the blocks use global queries of the stage, one for each head of the dense model."""
    layout = HeadLayout(
        width=value_width(attn, attn.head_dim),
        producers={"qkv": (attn.head_dim, 2 if attn.use_global else 3)},
        more_cuts=rel_pos_cuts(f"{name}.rel_pos", attn.rel_pos),
        not_narrowable="",
        only_values=f"`{name}` uses the global queries of its stage" if attn.use_global else "",
    )
    return heads_of(name, attn, macs, layout)


def _fit_gcvit(attn: Any) -> None:
    fit_num_heads_by_head_dim(attn)
    fit_rel_pos(attn.rel_pos, attn.num_heads)


def _gemma(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """A unit is one key/value head and all its query heads."""
    width, query_width = attn.head_dim, attn.head_dim * attn.num_kv_groups
    layout = HeadLayout(
        width=query_width,
        producers={"q_proj.linear": (query_width, 1), "k_proj.linear": (width, 1), "v_proj.linear": (width, 1)},
        num_heads=attn.num_kv_heads,
        output_proj="o_proj.linear",
        not_narrowable=f"`{name}.v_norm` normalises the values of each head",
    )
    return heads_of(name, attn, macs, layout)


def _fit_gemma(attn: Any) -> None:
    attn.num_heads = attn.o_proj.linear.in_features // attn.head_dim
    attn.num_kv_heads = attn.num_heads // attn.num_kv_groups


def _visformer(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    return fused_heads(name, attn, macs, width=attn.head_dim, not_narrowable="")


def _fit_visformer(attn: Any) -> None:
    attn.num_heads = attn.proj.in_channels // attn.head_dim


def _fit_tnt(attn: Any) -> None:
    attn.num_heads = attn.qk.out_features // (2 * attn.head_dim)
    attn.hidden_dim = attn.num_heads * attn.head_dim


_REPLACED: Sequence[tuple[type[nn.Module], type[nn.Module], Find, Fit]] = (  # arguments of `replaced_by`
    (metaformer.Attention, CutMetaFormerAttention, plain_heads, fit_num_heads_by_scale),
    (fastvit.Attention, CutFastVitAttention, plain_heads, fit_num_heads_by_scale),
    (volo.Attention, CutVoloAttention, plain_heads, fit_num_heads_by_scale),
    (volo.OutlookAttention, CutOutlookAttention, _outlook, fit_num_heads_by_scale),
    (crossvit.CrossAttention, CutCrossAttention, separate_heads({"wq": 1, "wk": 1, "wv": 1}), fit_num_heads_by_scale),
    (pvt_v2.Attention, CutPvtAttention, separate_heads({"q": 1, "kv": 2}, "sr"), fit_num_heads_by_scale),
    (
        twins.GlobalSubSampleAttn,
        CutGlobalSubSampleAttn,
        separate_heads({"q": 1, "kv": 2}, "sr"),
        fit_num_heads_by_scale,
    ),
    (twins.LocallyGroupedAttn, CutLocallyGroupedAttn, plain_heads, fit_num_heads_by_scale),
    (nextvit.EfficientAttention, CutNextVitAttention, separate_heads({"q": 1, "k": 1, "v": 1}), fit_num_heads_by_scale),
    (edgenext.CrossCovarianceAttn, CutCrossCovarianceAttn, temperature_heads, fit_num_heads_by_temperature),
    (davit.WindowAttention, CutDaVitWindowAttention, plain_heads, fit_num_heads_by_scale),
    (davit.ChannelAttention, CutChannelAttention, _channel, fit_num_heads_by_scale),
    (davit.ChannelAttentionV2, CutChannelAttentionV2, _channel_v2, _fit_channel_v2),
)
HYBRID_PARTS: Mapping[type[nn.Module], Part] = {
    **{cls: Part(find, no_fit) for cls, find in HYBRID_MLPS.items()},
    **{cls: part for entry in _REPLACED for cls, part in replaced_by(*entry).items()},
    **replaced_by(gcvit.WindowAttentionGlobal, CutWindowAttentionGlobal, _gcvit, _fit_gcvit, needs_kept_heads=True),
    levit.Attention: Part(partial(_levit, "qkv", "", "proj.ln.linear"), _fit_levit),
    levit.AttentionDownsample: Part(partial(_levit, "kv", "q.ln", "proj.ln.linear"), _fit_levit),
    efficientformer.Attention: Part(partial(_levit, "qkv", "", "proj"), _fit_levit),
    volo.ClassAttention: Part(separate_heads({"q": 1, "kv": 2}), fit_num_heads_by_scale),
    visformer.Attention: Part(_visformer, _fit_visformer),
    tnt.Attention: Part(separate_heads({"qk": 2, "v": 1}), _fit_tnt),
    mobilevit.LinearSelfAttention: Part(_mobilevit_v2, _fit_mobilevit_v2),
    mambaout.GatedConvBlock: Part(_mambaout, _fit_mambaout),
    gemma4_vit.Gemma4Attention: Part(_gemma, _fit_gemma),
    SpatialAttention: Part(_no_units, no_fit),
    efficientformer_v2.Attention2dDownsample: Part(_downsampling, _fit_downsampling),
}
