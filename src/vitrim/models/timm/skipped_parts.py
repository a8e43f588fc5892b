"""Attentions of timm's models of which no head can be removed or narrowed, with the reasons for each class."""

from collections.abc import Callable, Mapping
from typing import Any

from timm.models import (
    coat,
    efficientformer_v2,
    efficientvit_mit,
    efficientvit_msra,
    iformer,
    nest,
    shvit,
    swiftformer,
)
from torch import nn

from vitrim.models.describing import Macs, not_prunable_heads
from vitrim.models.timm.finders import Find, Part, no_fit
from vitrim.structure import UnitGroup


def _skipped_heads(count: Callable[[Any], int], reason: str, not_narrowable: str = "") -> Find:
    """Heads that are not prunable; `{}` in the reasons stands for the name of the attention."""

    def find(name: str, attn: nn.Module, macs: Macs) -> list[UnitGroup]:
        return [not_prunable_heads(count(attn), reason.format(name), not_narrowable.format(name))]

    return find


def _num_heads(attn: Any) -> int:
    return attn.num_heads


def _num_heads_by_width(attn: Any) -> int:
    return attn.qkv.conv.out_channels // (3 * attn.dim)


def _one_head(not_narrowable: str) -> Find:
    """A single head; `{}` in the reason not to narrow it stands for the name of the attention."""
    return _skipped_heads(lambda attn: 1, "`{}` has one head", not_narrowable)


SKIPPED_PARTS: Mapping[type[nn.Module], Part] = {
    iformer.SHMA: Part(_one_head("`{}.v_gate` multiplies each column of the head"), no_fit),
    shvit.SHSA: Part(_one_head("`{}.proj` begins with an activation of each column of the head"), no_fit),
    swiftformer.EfficientAdditiveAttention: Part(
        _one_head("`{}` multiplies queries and keys column by column"), no_fit
    ),
    coat.FactorAttnConvRelPosEnc: Part(
        _skipped_heads(
            _num_heads, "several blocks use the same `{}.crpe`", "`{}.crpe` filters each column of the values"
        ),
        no_fit,
    ),
    nest.Attention: Part(
        _skipped_heads(_num_heads, "the channels of all heads are interleaved before `{}.proj`"), no_fit
    ),
    efficientformer_v2.Attention2d: Part(
        _skipped_heads(
            _num_heads,
            "`{0}.talking_head1` and `{0}.talking_head2` mix the attention weights of all heads",
            "`{0}.v_local` filters each column of the values",
        ),
        no_fit,
    ),
    efficientvit_msra.CascadedGroupAttention: Part(
        _skipped_heads(
            _num_heads,
            "in `{}` each head takes the output of the previous head as input",
            "`{}.proj` begins with an activation of each column of the heads",
        ),
        no_fit,
    ),
    efficientvit_mit.LiteMLA: Part(
        _skipped_heads(
            _num_heads_by_width,
            "`{}.proj` takes each head at several scales as input",
            "`{}.kernel_func` is an activation of each column of queries and keys",
        ),
        no_fit,
    ),
}
