"""What attentions and MLPs of timm's window and hierarchical transformers consist of; entries as in `timm_units`."""

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

from vitrim.models.describing import Macs, cut_of, neurons, not_prunable_heads, rows
from vitrim.models.timm.hierarchical_forwards import (
    CutClassAttn,
    CutConvitAttention,
    CutGPSA,
    CutSwinV2Attention,
    CutSwinV2CrAttention,
    CutXCA,
)
from vitrim.models.timm.plain_parts import (
    Find,
    Fit,
    Part,
    fit_rel_pos,
    fused,
    heads_of,
    no_fit,
    qkv_biases,
    rel_pos_cuts,
    rel_pos_fixed,
)
from vitrim.structure import UnitGroup


def chain(*inner: str, output_proj: str, beside: str = "") -> Find:
    """The neurons between two layers: `inner` produces them, `output_proj` takes them as its input.

    The first layer of `inner` computes the neurons; the others act on each neuron alone. A layer `beside` the first one
    gates each neuron.
    """

    def find(name: str, module: nn.Module, macs: Macs) -> list[UnitGroup]:
        last = module.get_submodule(output_proj)
        weight: Any = last.weight
        present = [path for path in inner if getattr(module, path, module) is not None]  # some are left out by None
        layers = [layer for path in present for layer in leaves(path, module.get_submodule(path))]
        mixing = [path for path, layer in (*layers[1:], (output_proj, last)) if not _keeps_apart(layer, last)]
        mixing += [path for path, layer in layers[:1] if getattr(layer, "groups", 1) > 1]
        layers += leaves(beside, module.get_submodule(beside)) if beside else []
        cuts = [cut for path, layer in layers for cut in rows(f"{name}.{path}", layer)]
        return [
            neurons(
                count=weight.shape[1],
                output_proj=f"{name}.{output_proj}",
                cuts=cuts,
                macs=sum(macs.get(f"{name}.{path}", 0) for path in (output_proj, *(path for path, _ in layers))),
                not_prunable=f"`{name}.{mixing[0]}` mixes the neurons" if mixing else "",
            )
        ]

    return find


def leaves(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers in a module, or it itself, that hold a tensor."""
    found = [(f"{name}.{key}" if key else name, layer) for key, layer in module.named_modules()]
    return [(key, layer) for key, layer in found if layer._parameters or layer._buffers]


def _keeps_apart(layer: nn.Module, output_proj: nn.Module) -> bool:
    if layer is output_proj:
        return getattr(layer, "groups", 1) == 1
    if isinstance(layer, nn.Conv2d):
        return layer.groups == layer.in_channels == layer.out_channels
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def scaled_width(attn: Any) -> int:
    """The head width, from the scale that keeps its value."""
    return round(attn.scale**-2)


def fit_num_heads(attn: Any) -> None:
    attn.num_heads = attn.proj.in_features // scaled_width(attn)


def cut_into(
    own: type[nn.Module], cut: type[nn.Module], find: Find, fit: Fit, *, remembers: bool = False
) -> dict[type[nn.Module], Part]:
    """Entries of a class that takes the width of its heads for granted, and of the one it becomes."""

    def become(module: nn.Module) -> None:
        fit(module)
        module.__class__ = cut

    part = Part(find, become, remembers)
    return {own: part, cut: part}


def plain(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Nothing but `qkv` and `proj`."""
    return fused(name, attn, macs, width=scaled_width(attn))


def _swin(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    table = cut_of(f"{name}.relative_position_bias_table", attn.relative_position_bias_table, dim=1)
    return fused(name, attn, macs, width=scaled_width(attn), more=table)


def _swin_v2(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.proj.in_features // attn.num_heads
    more = [*rows(f"{name}.cpb_mlp.2", attn.cpb_mlp[2]), *cut_of(f"{name}.logit_scale", attn.logit_scale)]
    more += qkv_biases(name, attn, width)
    return fused(name, attn, macs, width=width, more=more, fixed=macs.get(f"{name}.cpb_mlp.0", 0))


def _swin_v2_cr(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = attn.proj.in_features // attn.num_heads
    more = [*rows(f"{name}.meta_mlp.fc2", attn.meta_mlp.fc2), *cut_of(f"{name}.logit_scale", attn.logit_scale)]
    return fused(name, attn, macs, width=width, more=more, fixed=macs.get(f"{name}.meta_mlp.fc1", 0))


def _fit_logit_scale(attn: Any) -> None:
    attn.num_heads = len(attn.logit_scale)


def _hiera(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    return fused(name, attn, macs, width=attn.head_dim, count=attn.heads)


def _fit_hiera(attn: Any) -> None:
    attn.dim_out = attn.proj.in_features
    attn.heads = attn.dim_out // attn.head_dim


def _mvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """All heads are pooled by the same filters, and share relative positions."""
    not_prunable = f"the convolutions that pool in `{name}` are as wide as all heads together" if attn.unshared else ""
    return fused(name, attn, macs, width=attn.head_dim, not_prunable=not_prunable)


def _fit_mvit(attn: Any) -> None:
    attn.dim_out = attn.proj.in_features
    attn.num_heads = attn.dim_out // attn.head_dim


def _maxvit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Queries, keys and values lie head by head where `head_first` is set."""
    width, rel_pos = attn.dim_head, f"{name}.rel_pos"
    producers = {"qkv": (3 * width, 1) if attn.head_first else (width, 3)}
    more, fixed = rel_pos_cuts(rel_pos, attn.rel_pos), rel_pos_fixed(rel_pos, macs)
    return heads_of(name, attn, macs, width=width, producers=producers, more=more, fixed=fixed)


def _fit_maxvit(attn: Any) -> None:
    attn.num_heads = attn.proj.weight.shape[1] // attn.dim_head
    fit_rel_pos(attn.rel_pos, attn.num_heads)


def _tiny_vit(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Queries, keys and values lie head by head."""
    biases = cut_of(f"{name}.attention_biases", attn.attention_biases)
    producers = {"qkv": (2 * attn.key_dim + attn.val_dim, 1)}
    return heads_of(name, attn, macs, width=attn.val_dim, producers=producers, more=biases)


def _fit_tiny_vit(attn: Any) -> None:
    attn.out_dim = attn.proj.in_features
    attn.num_heads = len(attn.attention_biases)
    attn.attention_bias_cache = {}


def _gpsa(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """A head has a map of positions and a gate of its own."""
    width = scaled_width(attn)
    gate = cut_of(f"{name}.gating_param", attn.gating_param)
    producers = {"qk": (width, 2), "v": (width, 1), "pos_proj": (1, 1)}
    return heads_of(name, attn, macs, width=width, producers=producers, more=gate)


def xca_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    temperature = cut_of(f"{name}.temperature", attn.temperature)
    return fused(name, attn, macs, width=attn.proj.in_features // attn.num_heads, more=temperature)


def fit_xca(attn: Any) -> None:
    attn.num_heads = len(attn.temperature)


def _class_attn(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    width = scaled_width(attn)
    return heads_of(name, attn, macs, width=width, producers=dict.fromkeys("qkv", (width, 1)))


def _talking_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    return [not_prunable_heads(attn.num_heads, f"`{name}.proj_l` and `{name}.proj_w` mix the weights of all heads")]


STAGE_PARTS: Mapping[type[nn.Module], Part] = {
    swin_transformer.WindowAttention: Part(_swin, fit_num_heads),
    **cut_into(swin_transformer_v2.WindowAttention, CutSwinV2Attention, _swin_v2, _fit_logit_scale),
    **cut_into(swin_transformer_v2_cr.WindowMultiHeadAttention, CutSwinV2CrAttention, _swin_v2_cr, _fit_logit_scale),
    hiera.MaskUnitAttention: Part(_hiera, _fit_hiera),
    hieradet_sam2.MultiScaleAttention: Part(plain, fit_num_heads),
    mvitv2.MultiScaleAttention: Part(_mvit, _fit_mvit),
    maxxvit.Attention2d: Part(_maxvit, _fit_maxvit),
    maxxvit.AttentionCl: Part(_maxvit, _fit_maxvit),
    tiny_vit.Attention: Part(_tiny_vit, _fit_tiny_vit),
    tiny_vit.NormMlp: Part(chain("fc1", output_proj="fc2"), no_fit),
    tiny_vit.MBConv: Part(chain("conv1", "conv2", output_proj="conv3.conv"), no_fit),
    **cut_into(convit.MHSA, CutConvitAttention, plain, fit_num_heads),
    **cut_into(convit.GPSA, CutGPSA, _gpsa, fit_num_heads),
    **cut_into(xcit.XCA, CutXCA, xca_heads, fit_xca),
    **cut_into(cait.ClassAttn, CutClassAttn, _class_attn, fit_num_heads),
    cait.TalkingHeadAttn: Part(_talking_heads, no_fit),
}
