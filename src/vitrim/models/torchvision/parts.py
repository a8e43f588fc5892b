"""The table of all attentions and MLPs of torchvision that vitrim knows, and how blocks add their outputs."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformerBlock,
)
from torchvision.models.vision_transformer import EncoderBlock, MLPBlock
from torchvision.ops import MLP

from vitrim.models.describing import Macs, cut_of, heads, neurons, rows
from vitrim.structure import TensorCut, UnitGroup, UnitKind

Find = Callable[[str, Any, Macs], UnitGroup]


def find_groups(block: nn.Module, name: str, macs: Macs) -> list[UnitGroup]:
    """The unit groups of a block, in the order of its attention and MLP."""
    groups = []
    for key, part in block.named_children():
        find = next((PARTS[cls] for cls in type(part).__mro__ if cls in PARTS), None)
        if find is not None:
            groups.append(find(f"{name}.{key}", part, macs))
    return groups


def _vit_attention(name: str, attention: Any, macs: Macs) -> UnitGroup:
    width = attention.head_dim
    return heads(
        count=attention.num_heads,
        width=width,
        output_proj=f"{name}.out_proj",
        cuts=[
            TensorCut(name=f"{name}.in_proj_weight", dim=0, width=width, repeats=3),
            *cut_of(f"{name}.in_proj_bias", attention.in_proj_bias, width=width, repeats=3),
        ],
        macs=macs.get(name, 0),
    )


def _swin_attention(name: str, attention: Any, macs: Macs) -> UnitGroup:
    table = cut_of(f"{name}.relative_position_bias_table", attention.relative_position_bias_table, dim=1)
    return _window_heads(name, attention, table, macs.get(name, 0))


def _swin_v2_attention(name: str, attention: Any, macs: Macs) -> UnitGroup:
    cuts = [*rows(f"{name}.cpb_mlp.2", attention.cpb_mlp[2]), TensorCut(name=f"{name}.logit_scale", dim=0)]
    fixed_macs = macs.get(f"{name}.cpb_mlp.0", 0)
    return _window_heads(name, attention, cuts, macs.get(name, 0) - fixed_macs)


def _window_heads(name: str, attention: Any, more_cuts: list[TensorCut], macs: int) -> UnitGroup:
    width = attention.proj.in_features // attention.num_heads
    return heads(
        count=attention.num_heads,
        width=width,
        output_proj=f"{name}.proj",
        cuts=[*rows(f"{name}.qkv", attention.qkv, width, repeats=3), *more_cuts],
        macs=macs,
    )


def _mlp(name: str, mlp: Any, macs: Macs) -> UnitGroup:
    """The MLP is a sequence: layer, activation, dropout, layer, dropout."""
    return neurons(
        count=mlp[3].in_features,
        output_proj=f"{name}.3",
        cuts=rows(f"{name}.0", mlp[0]),
        macs=macs.get(name, 0),
    )


PARTS: Mapping[type[nn.Module], Find] = {  # subclasses, such as those of `forwards`, are found too
    nn.MultiheadAttention: _vit_attention,
    ShiftedWindowAttention: _swin_attention,
    ShiftedWindowAttentionV2: _swin_v2_attention,
    MLPBlock: _mlp,
    MLP: _mlp,
}
# for each class of blocks, the path of the parameter that multiplies the output of its attention and of its MLP; empty:
# nothing multiplies it. In `SwinTransformerBlockV2` a norm comes in between, so it is not listed.
RESIDUAL_SCALES: Mapping[type[nn.Module], Mapping[UnitKind, str]] = {
    EncoderBlock: {"heads": "", "neurons": ""},
    SwinTransformerBlock: {"heads": "", "neurons": ""},
}
