"""What attentions and MLPs consist of where timm mixes them with convolutions; entries as in `timm_units`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from timm.models import (
    coat,
    cpubone,
    crossvit,
    davit,
    edgenext,
    efficientformer,
    efficientformer_v2,
    efficientvit_mit,
    efficientvit_msra,
    fastvit,
    gcvit,
    gemma4_vit,
    iformer,
    levit,
    lowformer,
    mambaout,
    metaformer,
    mobilevit,
    nest,
    nextvit,
    pvt_v2,
    shvit,
    swiftformer,
    tnt,
    twins,
    visformer,
    volo,
)
from timm.models.csatv2 import SpatialAttention
from torch import nn

from vitrim.models.describing import Macs, cut_of, heads, neurons, not_prunable_heads, rows
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
from vitrim.models.timm.hierarchical_parts import (
    chain,
    cut_into,
    fit_num_heads,
    fit_xca,
    leaves,
    plain,
    scaled_width,
    xca_heads,
)
from vitrim.models.timm.hybrid_mlps import INVERTED, MLPS
from vitrim.models.timm.plain_parts import Find, Fit, Part, fit_rel_pos, fused, heads_of, no_fit, rel_pos_cuts
from vitrim.structure import TensorCut, UnitGroup


def separate(layers: Mapping[str, int], *fixed: str) -> Find:
    """Heads whose queries, keys and values come from several layers: how often each head occurs in each of them.

    `fixed` are parts whose multiply-adds do not depend on the number of heads.
    """

    def find(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
        width, count = attn.proj.in_features // attn.num_heads, attn.num_heads
        each = {layer: getattr(attn, layer).out_features // (repeats * count) for layer, repeats in layers.items()}
        producers = {layer: (each[layer], repeats) for layer, repeats in layers.items()}
        macs_of_fixed = sum(macs.get(f"{name}.{part}", 0) for part in fixed)
        return heads_of(name, attn, macs, width=width, producers=producers, fixed=macs_of_fixed)

    return find


def one_head(name: str, attn: nn.Module, macs: Macs) -> list[UnitGroup]:
    return [not_prunable_heads(1, f"`{name}` has one head")]


def nothing(name: str, module: nn.Module, macs: Macs) -> list[UnitGroup]:
    """A map of one channel, whose norm leaves nothing of what its few neurons take."""
    return []


def whole_heads(count: Callable[[Any], int], reason: str) -> Find:
    """An attention that is left alone; `{}` in the reason is its name."""

    def find(name: str, attn: nn.Module, macs: Macs) -> list[UnitGroup]:
        return [not_prunable_heads(count(attn), reason.format(name))]

    return find


def _num_heads(attn: Any) -> int:
    return attn.num_heads


# LeViT and those after it: queries, keys and values lie head by head, values have a width of their own


def _levit(qkv: str, q: str, output_proj: str, name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    key, value = attn.key_dim, attn.val_dim
    cuts: list[TensorCut] = []
    for path, each in ((qkv, (1 if q else 2) * key + value), (q, key)):
        for layer_name, layer in leaves(f"{name}.{path}", attn.get_submodule(path)) if path else ():
            cuts += rows(layer_name, layer, each)
    return [
        heads(
            count=attn.num_heads,
            width=value,
            output_proj=f"{name}.{output_proj}",
            cuts=[*cuts, *cut_of(f"{name}.attention_biases", attn.attention_biases)],
            macs=macs.get(name, 0),
        )
    ]


def _fit_levit(attn: Any) -> None:
    attn.num_heads = len(attn.attention_biases)
    attn.key_attn_dim, attn.val_attn_dim = attn.key_dim * attn.num_heads, attn.val_dim * attn.num_heads
    attn.attention_bias_cache = {}


def _downsampling(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """EfficientFormerV2's between stages; values pass a filter of their own, too."""
    value, output_proj = attn.d, f"{name}.proj.conv"
    each = {"q.proj": attn.key_dim, "k": attn.key_dim, "v": value, "v_local": value}
    layers = [(layer, width) for path, width in each.items() for layer in leaves(path, attn.get_submodule(path))]
    cuts = [cut for (path, layer), width in layers for cut in rows(f"{name}.{path}", layer, width)]
    biases = cut_of(f"{name}.attention_biases", attn.attention_biases)
    return [
        heads(
            count=attn.num_heads,
            width=value,
            output_proj=output_proj,
            cuts=[*cuts, *biases],
            macs=macs.get(name, 0) - macs.get(f"{name}.q.local", 0),
        )
    ]


def _fit_downsampling(attn: Any) -> None:
    attn.num_heads = len(attn.attention_biases)
    attn.dh = attn.d * attn.num_heads
    attn.attention_bias_cache = {}


def _mambaout(name: str, block: Any, macs: Macs) -> list[UnitGroup]:
    """Some neurons have a filter of their own, the others come first; each has two rows of fc1."""
    hidden, plain, filtered = block.split_indices
    found = []
    for first, count in ((0, plain), (plain, filtered)):
        if not count:
            continue
        cuts = [cut for start in (first, hidden + first) for cut in _stretch(f"{name}.fc1", block.fc1, start)]
        cuts += rows(f"{name}.conv", block.conv) if first == plain else []
        shared = (macs.get(f"{name}.fc1", 0) + macs.get(f"{name}.fc2", 0)) // hidden * count
        found.append(
            neurons(
                count=count,
                output_proj=f"{name}.fc2",
                cuts=cuts,
                macs=shared + (macs.get(f"{name}.conv", 0) if first == plain else 0),
                first=first,
            )
        )
    return found


def _stretch(name: str, layer: nn.Module, first: int) -> list[TensorCut]:
    return rows(name, layer, first=first)


def _fit_mambaout(block: Any) -> None:
    hidden, filtered = block.fc2.in_features, block.conv.out_channels
    block.split_indices = (hidden, hidden - filtered, filtered)


def _outlook(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = scaled_width(attn)
    return heads_of(name, attn, macs, width=width, producers={"v": (width, 1), "attn": (attn.kernel_size**4, 1)})


def _mobilevit_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Keys and values attend channel by channel, by one query for all: a head is a channel."""
    count = attn.embed_dim
    query = macs.get(f"{name}.qkv_proj", 0) // (1 + 2 * count)
    return [
        heads(
            count=count,
            width=1,
            output_proj=f"{name}.out_proj",
            cuts=rows(f"{name}.qkv_proj", attn.qkv_proj, repeats=2, first=1),
            macs=macs.get(name, 0) - query,
        )
    ]


def _fit_mobilevit_v2(attn: Any) -> None:
    attn.embed_dim = attn.out_proj.in_channels


def _channel_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    return fused(name, attn, macs, width=attn.head_dim, count=attn.groups)


def _fit_channel_v2(attn: Any) -> None:
    attn.groups = attn.proj.in_features // attn.head_dim


def _gcvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Half of the blocks take their queries from the stage, one for each head; `kept_heads` says which are used."""
    width, more = attn.head_dim, rel_pos_cuts(f"{name}.rel_pos", attn.rel_pos)
    producers = {"qkv": (width, 2 if attn.use_global else 3)}
    return heads_of(name, attn, macs, width=width, producers=producers, more=more)


def _fit_gcvit(attn: Any) -> None:
    fit_num_heads(attn)
    fit_rel_pos(attn.rel_pos, attn.num_heads)


def _conv_attention(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """LowFormer's and CPUBone's, on a coarser grid; what reads the heads may be a part of the way back up."""
    stands = [path for path in ("o_proj", "upsampling.0") if _is_convolution(attn, path)]
    if not stands:
        return [not_prunable_heads(attn.num_heads, f"`{name}.upsampling` reads the heads, a transposed convolution")]
    width, output_proj = attn.head_dim, f"{name}.{stands[0]}"
    outside = macs.get(f"{name}.conv_proj", 0) + macs.get(f"{name}.upsampling", 0)
    inside = macs.get(output_proj, 0) if stands[0] != "o_proj" else 0
    return [
        heads(
            count=attn.num_heads,
            width=width,
            output_proj=output_proj,
            cuts=rows(f"{name}.pwise", attn.pwise, 3 * width),
            macs=macs.get(name, 0) - outside + inside,
        )
    ]


def _is_convolution(module: nn.Module, path: str) -> bool:
    try:
        return isinstance(module.get_submodule(path), nn.Conv2d)
    except AttributeError:
        return False


def _fit_conv_attention(attn: Any) -> None:
    attn.o_proj_inpdim = attn.pwise.out_channels // attn.num_keys
    attn.num_heads = attn.o_proj_inpdim // attn.head_dim


def _block_of(attention: str, mlp: Sequence[str]) -> Find:
    """A block whose MLP is a row of plain layers and thus known by the block alone."""
    inner, output_proj = mlp
    between = chain(inner, output_proj=output_proj)

    def find(name: str, block: nn.Module, macs: Macs) -> list[UnitGroup]:
        found: list[UnitGroup] = []
        for path, module in block.named_modules():
            if path == attention:
                found += _conv_attention(f"{name}.{path}", module, macs)
            elif path == output_proj:
                found += between(name, block, macs)
            elif type(module) in INVERTED:
                found += INVERTED[type(module)](f"{name}.{path}", module, macs)
        return found

    return find


def _fit_block(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, lowformer.ConvAttention | cpubone.ConvAttention):
            _fit_conv_attention(module)


def _gemma(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """A unit is a key and value head and all queries that share it."""
    width, shared = attn.head_dim, attn.head_dim * attn.num_kv_groups
    producers = {"q_proj.linear": (shared, 1), "k_proj.linear": (width, 1), "v_proj.linear": (width, 1)}
    count, output_proj = attn.num_kv_heads, "o_proj.linear"
    return heads_of(name, attn, macs, width=shared, producers=producers, count=count, output_proj=output_proj)


def _fit_gemma(attn: Any) -> None:
    attn.num_heads = attn.o_proj.linear.in_features // attn.head_dim
    attn.num_kv_heads = attn.num_heads // attn.num_kv_groups


def _visformer(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    return fused(name, attn, macs, width=attn.head_dim)


def _fit_visformer(attn: Any) -> None:
    attn.num_heads = attn.proj.in_channels // attn.head_dim


def _fit_tnt(attn: Any) -> None:
    attn.num_heads = attn.qk.out_features // (2 * attn.head_dim)
    attn.hidden_dim = attn.num_heads * attn.head_dim


def _of_width(attn: Any) -> int:
    return attn.qkv.conv.out_channels // (3 * attn.dim)


CUT: Sequence[tuple[type[nn.Module], type[nn.Module], Find, Fit]] = (
    (metaformer.Attention, CutMetaFormerAttention, plain, fit_num_heads),
    (fastvit.Attention, CutFastVitAttention, plain, fit_num_heads),
    (volo.Attention, CutVoloAttention, plain, fit_num_heads),
    (volo.OutlookAttention, CutOutlookAttention, _outlook, fit_num_heads),
    (crossvit.CrossAttention, CutCrossAttention, separate({"wq": 1, "wk": 1, "wv": 1}), fit_num_heads),
    (pvt_v2.Attention, CutPvtAttention, separate({"q": 1, "kv": 2}, "sr"), fit_num_heads),
    (twins.GlobalSubSampleAttn, CutGlobalSubSampleAttn, separate({"q": 1, "kv": 2}, "sr"), fit_num_heads),
    (twins.LocallyGroupedAttn, CutLocallyGroupedAttn, plain, fit_num_heads),
    (nextvit.EfficientAttention, CutNextVitAttention, separate({"q": 1, "k": 1, "v": 1}), fit_num_heads),
    (edgenext.CrossCovarianceAttn, CutCrossCovarianceAttn, xca_heads, fit_xca),
    (davit.WindowAttention, CutDaVitWindowAttention, plain, fit_num_heads),
    (davit.ChannelAttention, CutChannelAttention, plain, fit_num_heads),
    (davit.ChannelAttentionV2, CutChannelAttentionV2, _channel_v2, _fit_channel_v2),
)
HYBRID_PARTS: Mapping[type[nn.Module], Part] = {
    **{cls: Part(find, no_fit) for cls, find in MLPS.items()},
    **{cls: part for entry in CUT for cls, part in cut_into(*entry).items()},
    **cut_into(gcvit.WindowAttentionGlobal, CutWindowAttentionGlobal, _gcvit, _fit_gcvit, remembers=True),
    levit.Attention: Part(partial(_levit, "qkv", "", "proj.ln.linear"), _fit_levit),
    levit.AttentionDownsample: Part(partial(_levit, "kv", "q.ln", "proj.ln.linear"), _fit_levit),
    efficientformer.Attention: Part(partial(_levit, "qkv", "", "proj"), _fit_levit),
    volo.ClassAttention: Part(separate({"q": 1, "kv": 2}), fit_num_heads),
    visformer.Attention: Part(_visformer, _fit_visformer),
    tnt.Attention: Part(separate({"qk": 2, "v": 1}), _fit_tnt),
    mobilevit.LinearSelfAttention: Part(_mobilevit_v2, _fit_mobilevit_v2),
    mambaout.GatedConvBlock: Part(_mambaout, _fit_mambaout),
    gemma4_vit.Gemma4Attention: Part(_gemma, _fit_gemma),
    lowformer.LowFormerBlock: Part(_block_of("attn.main.1", ("mlp.main.1", "mlp.main.3")), _fit_block),
    cpubone.CPUBoneBlock: Part(_block_of("total.0.0.main.1", ("total.0.1.main.1", "total.0.1.main.3")), _fit_block),
    **dict.fromkeys((iformer.SHMA, shvit.SHSA, swiftformer.EfficientAdditiveAttention), Part(one_head, no_fit)),
    SpatialAttention: Part(nothing, no_fit),
    coat.FactorAttnConvRelPosEnc: Part(
        whole_heads(_num_heads, "`{}.crpe` filters the same heads in several blocks"), no_fit
    ),
    nest.Attention: Part(whole_heads(_num_heads, "`{}.proj` reads the channels of all heads in turn"), no_fit),
    efficientformer_v2.Attention2d: Part(
        whole_heads(_num_heads, "`{0}.talking_head1` and `{0}.talking_head2` mix the weights of all heads"), no_fit
    ),
    efficientformer_v2.Attention2dDownsample: Part(_downsampling, _fit_downsampling),
    efficientvit_msra.CascadedGroupAttention: Part(
        whole_heads(_num_heads, "each head of `{}` reads what the one before it gave"), no_fit
    ),
    efficientvit_mit.LiteMLA: Part(whole_heads(_of_width, "`{}.proj` reads each head at several scales"), no_fit),
}
