"""The table of all attentions and MLPs of transformers that vitrim knows, and how blocks add their outputs.

transformers repeats a few attentions and MLPs under a new name in each family, and renames their layers between
releases. So a part is recognised by the names of its layers. If a part has any other parameter, it is not pruned.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from vitrim.models.changed_parts import find_or_skip, unknown_parts
from vitrim.models.describing import NO_NARROW_FORM, Macs, heads, neurons, not_prunable_heads, not_pruned, rows
from vitrim.models.layers import is_of_library, part_problem
from vitrim.structure import Directions, HeadRows, TensorCut, UnitGroup, UnitKind

Find = Callable[[str, Any, Macs], list[UnitGroup]]
NUM_HEADS_ATTRIBUTES = ("num_attention_heads", "num_heads")
HEAD_WIDTH_ATTRIBUTES = ("head_dim", "attention_head_size")
SCALE_ATTRIBUTES = ("scale", "scaling")
VALUE_WIDTH = "value_width"  # attribute of attentions in which only the values were narrowed
BIAS_TABLE = "relative_position_bias_table"  # one column for each head


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the layers of one attention or MLP.

    Attributes:
        kind: what its units are.
        producers: layers that compute the units.
        output_proj: the layer whose input columns are the units' outputs.
        repeats: how many times one unit occurs in the rows of a producer.
        per_unit: tensors with one entry for each unit along dimension 0.
        common: layers that serve all units.
    """

    kind: UnitKind
    producers: tuple[str, ...]
    output_proj: str
    repeats: int = 1
    per_unit: tuple[str, ...] = ()
    common: tuple[str, ...] = ()


PARTS = (
    Layout(kind="heads", producers=("q_proj", "k_proj", "v_proj"), output_proj="o_proj"),
    Layout(kind="heads", producers=("q_proj", "k_proj", "v_proj"), output_proj="out_proj"),
    Layout(
        kind="heads",
        producers=("attention.query", "attention.key", "attention.value"),
        output_proj="output.dense",
    ),
    Layout(
        kind="heads",
        producers=("self.query", "self.key", "self.value"),
        output_proj="output.dense",
        per_unit=("self.logit_scale", "self.continuous_position_bias_mlp.2.weight"),
        common=("self.continuous_position_bias_mlp.0",),
    ),
    Layout(kind="neurons", producers=("fc1",), output_proj="fc2"),
    Layout(kind="neurons", producers=("gate_proj", "up_proj"), output_proj="down_proj"),
    Layout(kind="neurons", producers=("up_proj",), output_proj="down_proj"),
    Layout(kind="neurons", producers=("weights_in",), output_proj="weights_out", repeats=2),
)
MLP_OF_A_BLOCK = Layout(kind="neurons", producers=("intermediate.dense",), output_proj="output.dense")

# attentions that can be narrowed, and for each, why only its values can; empty: queries and keys too. Other classes
# keep the width of their heads, because vitrim does not know what they do with queries, keys and values.
NARROWABLE: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "ViTAttention",
            "DeiTAttention",
            "Dinov2Attention",
            "Dinov2WithRegistersAttention",
            "BeitAttention",
            "SiglipAttention",
            "CLIPAttention",
            "ViTMAEAttention",
            "ViTMSNAttention",
            "IJepaAttention",
            "SwinAttention",
        ),
        "",
    ),
    "DINOv3ViTAttention": "rotary positions turn pairs of directions of queries and keys",
    "Swinv2Attention": "the attention normalises queries and keys",
}

_UNSCALED: Mapping[UnitKind, str] = {"heads": "", "neurons": ""}
_LAYER_SCALE: Mapping[UnitKind, str] = {"heads": "layer_scale1.lambda1", "neurons": "layer_scale2.lambda1"}
# for each class of blocks, the path in the block of the parameter that multiplies the output of its attention and of
# its MLP before the addition to the residual stream; empty: nothing multiplies it. In `Swinv2Layer` a norm comes in
# between, so it is not listed.
RESIDUAL_SCALES: Mapping[str, Mapping[UnitKind, str]] = {
    "ViTLayer": _UNSCALED,
    "DeiTLayer": _UNSCALED,
    "ViTMAELayer": _UNSCALED,
    "ViTMSNLayer": _UNSCALED,
    "IJepaLayer": _UNSCALED,
    "CLIPEncoderLayer": _UNSCALED,
    "SiglipEncoderLayer": _UNSCALED,
    "SwinLayer": _UNSCALED,
    "Dinov2Layer": _LAYER_SCALE,
    "Dinov2WithRegistersLayer": _LAYER_SCALE,
    "DINOv3ViTLayer": _LAYER_SCALE,
    "BeitLayer": {"heads": "lambda_1", "neurons": "lambda_2"},
}


def find_units(block: nn.Module, name: str, macs: Macs, *, not_prunable: str = "") -> list[UnitGroup]:
    """The heads and neurons of a block; `not_prunable` is a reason why its heads cannot be removed."""
    groups: list[UnitGroup] = []
    parts = dict(_parts(block, name))
    for part_name, part in parts.items():
        if _is_attention(part):
            find: Find = partial(_heads, block, name, not_prunable=not_prunable)
            groups += find_or_skip(part_name, part, find, macs, num_heads=_num_heads(part))
        else:
            groups += find_or_skip(part_name, part, _neurons_of_part, macs)
    if _has(block, MLP_OF_A_BLOCK):  # its layers belong to the block itself
        intermediate = block.get_submodule("intermediate")
        problem = part_problem(f"{name}.intermediate", intermediate)
        problem = problem or part_problem(f"{name}.output", block.get_submodule("output"))
        mlp_macs = macs.get(f"{name}.intermediate", 0) + macs.get(f"{name}.output", 0)
        group = _neurons(block, name, MLP_OF_A_BLOCK, mlp_macs)
        groups.append(not_pruned(group, problem) if problem else group)
        parts |= {f"{name}.intermediate": intermediate, f"{name}.output": block.get_submodule("output")}
    return [*groups, *unknown_parts(name, block, parts)]


def fit_units(block: nn.Module, group: UnitGroup, width: int) -> None:
    """Set the attributes that hold the number and the width of heads, in a block that lost heads or directions.

    Args:
        group: the heads before.
        width: their new width.
    """
    for _, attention in _parts(block, ""):
        if not _is_attention(attention):
            continue
        layout = _layout(attention, "heads")
        assert layout is not None
        attn_dim = _num_columns(attention, layout)
        sizes: dict[str, float] = {"all_head_size": attn_dim}
        sizes |= dict.fromkeys(NUM_HEADS_ATTRIBUTES, attn_dim // width)
        if width < group.width and group.directions and not group.directions.only_values:
            sizes |= dict.fromkeys(HEAD_WIDTH_ATTRIBUTES, width) | dict.fromkeys(SCALE_ATTRIBUTES, width**-0.5)
        elif width < group.width:
            replace_forward(attention, width)
        for module in attention.modules():
            for attribute, size in sizes.items():
                if hasattr(module, attribute):
                    setattr(module, attribute, size)


def replace_forward(attention: nn.Module, width: int) -> None:
    """Note that the values of an attention are narrower, and give it a class of ours, which reads their width."""
    from vitrim.models.transformers.forwards import WITH_NARROW_VALUES  # imports transformers

    for module in attention.modules():
        if type(module) in WITH_NARROW_VALUES:
            module.__class__ = WITH_NARROW_VALUES[type(module)]
    setattr(attention, VALUE_WIDTH, width)


def has_units(module: nn.Module) -> bool:
    """Whether the module is an attention or an MLP."""
    is_attention = _is_attention(module) or isinstance(module, nn.MultiheadAttention)
    return is_attention or _layout(module, "neurons") is not None


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The attentions and MLPs in a module; nothing inside them is listed."""
    for key, child in module.named_children():
        child_name = f"{name}.{key}".removeprefix(".")
        if has_units(child):
            yield child_name, child
        else:
            yield from _parts(child, child_name)


def _is_attention(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Attention") and not isinstance(module, nn.MultiheadAttention)


def _has(module: nn.Module, layout: Layout) -> bool:
    layers = dict(module.named_modules())
    return all(isinstance(layers.get(name), nn.Linear) for name in (*layout.producers, layout.output_proj))


def _layout(module: nn.Module, kind: UnitKind) -> Layout | None:
    """The layout of this kind that explains every parameter of the module; None if there is none."""
    for layout in PARTS:
        if layout.kind == kind and _has(module, layout):
            layers = (*layout.producers, layout.output_proj, *layout.common)
            known = {tensor for layer in layers for tensor in _tensors(module, layer)} | {*layout.per_unit}
            parameters = [name for name, _ in module.named_parameters()]
            if all(name in known or name.endswith(BIAS_TABLE) for name in parameters):
                return layout
    return None


def _num_columns(module: nn.Module, layout: Layout) -> int:
    """Number of input columns of the output projection."""
    weight = module.get_submodule(layout.output_proj).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _tensors(module: nn.Module, layer: str) -> list[str]:
    return [f"{layer}.{key}" for key, _ in module.get_submodule(layer).named_parameters(recurse=False)]


def _head_width(attention: nn.Module) -> int:
    for module in attention.modules():
        for attribute in HEAD_WIDTH_ATTRIBUTES:
            if isinstance(width := getattr(module, attribute, None), int):
                return width
    raise AssertionError(f"{type(attention).__name__} has none of the attributes {HEAD_WIDTH_ATTRIBUTES}")


def _num_heads(attention: nn.Module) -> int:
    for module in attention.modules():
        for attribute in NUM_HEADS_ATTRIBUTES:
            if isinstance(count := getattr(module, attribute, None), int):
                return count
    return 1


def _heads(
    block: nn.Module, block_name: str, name: str, attention: Any, macs: Macs, not_prunable: str
) -> list[UnitGroup]:
    layout = _layout(attention, "heads")
    not_prunable = not_prunable or _function_problem(name, attention)
    if layout is None:
        reason = f"vitrim does not know which tensors store the heads of `{name}` ({type(attention).__name__})"
        return [not_prunable_heads(_num_heads(attention), reason)]
    width = _head_width(attention)
    values = getattr(attention, VALUE_WIDTH, width)
    cuts: list[TensorCut] = []
    for layer, layer_width in zip(layout.producers, (width, width, values), strict=True):
        cuts += rows(f"{name}.{layer}", attention.get_submodule(layer), layer_width)
    cuts += [TensorCut(name=f"{name}.{tensor}", dim=0) for tensor in layout.per_unit]
    for table, _ in block.named_parameters():
        if table.endswith(BIAS_TABLE):
            cuts.append(TensorCut(name=f"{block_name}.{table}", dim=1))
    common_macs = sum(macs.get(f"{name}.{layer}", 0) for layer in layout.common)
    group = heads(
        count=_num_columns(attention, layout) // values,
        width=values,
        output_proj=f"{name}.{layout.output_proj}",
        cuts=cuts,
        macs=macs.get(name, 0) - common_macs,
        not_prunable=not_prunable,
        narrowing=_function_problem(name, attention) or _narrowing(attention, name, layout, macs),
    )
    return [group]


def _function_problem(name: str, attention: nn.Module) -> str:
    """Why the function with which transformers computes the attention is not known; empty if it is transformers' own.

    A person registers a function under a name of `attn_implementation`.
    """
    library: Any = sys.modules.get("transformers.modeling_utils")
    implementation = getattr(getattr(attention, "config", None), "_attn_implementation", None)
    function = getattr(library, "ALL_ATTENTION_FUNCTIONS", {}).get(implementation, None)
    if function is None or is_of_library(function):
        return ""
    return f"`{name}` calls a function of its own for attention, registered as {implementation!r}"


def _narrowing(attention: Any, name: str, layout: Layout, macs: Macs) -> Directions | str:
    """What narrowing the heads of an attention needs, or why they cannot be narrowed."""
    only_values = NARROWABLE.get(type(attention).__name__.removeprefix("Cut"))
    if only_values is None:
        return NO_NARROW_FORM
    width, columns = _head_width(attention), _num_columns(attention, layout)
    values = getattr(attention, VALUE_WIDTH, width)
    found: list[tuple[HeadRows, ...]] = []
    for layer, layer_width in zip(layout.producers, (width, width, values), strict=True):
        tensors = [f"{name}.{tensor}" for tensor in _tensors(attention, layer)]
        found.append(tuple(HeadRows(name=tensor, width=layer_width, stride=layer_width) for tensor in tensors))
    queries, keys, value_rows = found
    query_layer, key_layer, value_layer = (f"{name}.{layer}" for layer in layout.producers)
    leaves = [key for key, module in attention.named_modules() if key and not any(module.children())]
    products = macs.get(name, 0) - sum(macs.get(f"{name}.{key}", 0) for key in leaves)
    of_values = macs.get(value_layer, 0) + macs.get(f"{name}.{layout.output_proj}", 0)
    if only_values:
        of_values += products * values // (width + values)
        return Directions(values=value_rows, only_values=only_values, macs=of_values // columns)
    of_all = of_values + macs.get(query_layer, 0) + macs.get(key_layer, 0) + products
    return Directions(
        queries=queries,
        keys=keys,
        values=value_rows,
        query_input=query_layer,
        key_input=key_layer,
        macs=of_all // columns,
    )


def _neurons_of_part(name: str, part: nn.Module, macs: Macs) -> list[UnitGroup]:
    layout = _layout(part, "neurons")
    assert layout is not None
    return [_neurons(part, name, layout, macs.get(name, 0))]


def _neurons(part: nn.Module, name: str, layout: Layout, macs: int) -> UnitGroup:
    cuts: list[TensorCut] = []
    for layer in layout.producers:
        cuts += rows(f"{name}.{layer}", part.get_submodule(layer), repeats=layout.repeats)
    return neurons(
        count=_num_columns(part, layout),
        output_proj=f"{name}.{layout.output_proj}",
        cuts=cuts,
        macs=macs,
    )
