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

from vitrim.models.changed_parts import find_or_skip, unknown_parts
from vitrim.models.describing import Macs, UnknownLayer, cut_of, heads, neurons, rows
from vitrim.models.layers import is_unit_by_unit
from vitrim.structure import Directions, HeadRows, TensorCut, UnitGroup, UnitKind

Find = Callable[[str, Any, Macs], UnitGroup]


def find_groups(block: nn.Module, name: str, macs: Macs) -> list[UnitGroup]:
    """The unit groups of a block, in the order of its attention and MLP."""
    groups: list[UnitGroup] = []
    parts = {f"{name}.{key}": part for key, part in block.named_children() if _find_of(part)}
    for path, part in parts.items():
        find, num_heads = _find_of(part), getattr(part, "num_heads", 0)
        assert find is not None
        groups += find_or_skip(path, part, _as_list(find), macs, num_heads=num_heads)
    return [*groups, *unknown_parts(name, block, parts)]


def _find_of(part: nn.Module) -> Find | None:
    """How to find the units of a part; a subclass of an unknown kind is found too, and then not pruned."""
    return next((PARTS[cls] for cls in type(part).__mro__ if cls in PARTS), None)


def _as_list(find: Find) -> Callable[[str, Any, Macs], list[UnitGroup]]:
    return lambda name, part, macs: [find(name, part, macs)]


def _vit_attention(name: str, attention: Any, macs: Macs) -> UnitGroup:
    width = attention.head_dim
    cuts = [
        TensorCut(name=f"{name}.in_proj_weight", dim=0, width=width, repeats=3),
        *cut_of(f"{name}.in_proj_bias", attention.in_proj_bias, width=width, repeats=3),
    ]
    return heads(
        count=attention.num_heads,
        width=width,
        output_proj=f"{name}.out_proj",
        cuts=cuts,
        macs=macs.get(name, 0),
        narrowing=_directions(name, [cut.name for cut in cuts], attention.num_heads, width, macs.get(name, 0)),
    )


def _swin_attention(name: str, attention: Any, macs: Macs) -> UnitGroup:
    width, count = attention.proj.in_features // attention.num_heads, attention.num_heads
    cuts, tensors = rows(f"{name}.qkv", attention.qkv, width, repeats=3), _qkv_tensors(name, attention)
    cuts += cut_of(f"{name}.relative_position_bias_table", attention.relative_position_bias_table, dim=1)
    return heads(
        count=count,
        width=width,
        output_proj=f"{name}.proj",
        cuts=cuts,
        macs=macs.get(name, 0),
        narrowing=_directions(name, tensors, count, width, macs.get(name, 0)),
    )


def _swin_v2_attention(name: str, attention: Any, macs: Macs) -> UnitGroup:
    """Scores are cosines of queries and keys, so only values can be narrowed."""
    count, columns = attention.num_heads, attention.proj.in_features
    qk_rows = len(attention.qkv.weight) - columns  # of queries and keys
    cuts = rows(f"{name}.qkv", attention.qkv, qk_rows // (2 * count), repeats=2)
    cuts += rows(f"{name}.qkv", attention.qkv, columns // count, first=qk_rows)
    cuts += [*rows(f"{name}.cpb_mlp.2", attention.cpb_mlp[2]), TensorCut(name=f"{name}.logit_scale", dim=0)]
    all_macs, output_macs = macs.get(name, 0) - macs.get(f"{name}.cpb_mlp.0", 0), macs.get(f"{name}.proj", 0)
    num_tokens = output_macs // attention.proj.weight.numel()
    products = all_macs - macs.get(f"{name}.cpb_mlp.2", 0) - output_macs - num_tokens * attention.qkv.weight.numel()
    value_products = products * columns // (qk_rows // 2 + columns)
    stride = columns // count
    return heads(
        count=count,
        width=columns // count,
        output_proj=f"{name}.proj",
        cuts=cuts,
        macs=all_macs,
        narrowing=Directions(
            values=tuple(
                HeadRows(name=tensor, width=stride, stride=stride, first=qk_rows)
                for tensor in _qkv_tensors(name, attention)
            ),
            only_values=f"`{name}` normalises queries and keys",
            macs=(2 * output_macs + value_products) // columns,
        ),
    )


def _qkv_tensors(name: str, attention: Any) -> list[str]:
    return [f"{name}.qkv.{key}" for key, _ in attention.qkv.named_parameters()]


def _directions(name: str, tensors: list[str], count: int, width: int, macs: int) -> Directions:
    """What narrowing `count` heads needs if each of the tensors stores queries, keys and values, in this order.

    Args:
        macs: multiply-adds of the attention.
    """
    queries, keys, values = (
        tuple(HeadRows(name=tensor, width=width, stride=width, first=part * count * width) for tensor in tensors)
        for part in range(3)
    )
    return Directions(
        queries=queries,
        keys=keys,
        values=values,
        query_input=name,  # no layer inside the attention runs as a module
        key_input=name,
        macs=macs // (count * width),
    )


def _mlp(name: str, mlp: Any, macs: Macs) -> UnitGroup:
    """The MLP is a sequence: layer, activation, dropout, layer, dropout."""
    others = [path for path, layer in mlp.named_children() if path not in ("0", "3") and not is_unit_by_unit(layer)]
    if len(mlp) != 5 or others:
        raise UnknownLayer(f"it has {', '.join(type(layer).__name__ for layer in mlp)}")
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
