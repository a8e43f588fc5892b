"""Functions that describe the units of a part and fit its sizes after a cut; the tables in `*_parts.py` use them.

A *part* is one attention or one MLP. What holds for one class of timm only stands in `*_parts.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from timm.layers.pos_embed_rel import RelPosBias, RelPosBiasTf, RelPosMlp
from torch import nn

from vitrim.models.describing import NO_NARROW_FORM, Macs, cut_of, heads, neurons, rows
from vitrim.structure import Directions, HeadRows, TensorCut, UnitGroup

Find = Callable[[str, nn.Module, Macs], list[UnitGroup]]
Fit = Callable[[nn.Module], None]
HEAD_WIDTH_ATTRIBUTES = ("head_dim", "dim_head", "key_dim", "val_dim")
VALUE_WIDTH = "value_width"  # attribute of attentions in which only the values were narrowed


@dataclass(frozen=True)
class Part:
    """How vitrim describes and cuts one class of attention or MLP.

    Attributes:
        find: returns the unit groups of a module. Arguments: the module's name in the model, the module, and the
            multiply-adds of all modules by name.
        fit: sets the attributes that repeat a size, after the tensors were cut.
        needs_kept_heads: whether the module must know which heads of the dense model it kept. If so, the attribute
            `kept_heads` is set before `fit` runs.
    """

    find: Find
    fit: Fit
    needs_kept_heads: bool = False


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """Where the heads of one attention are stored.

    Attributes:
        width: columns of one head in the input of the output projection.
        producers: layers that compute the heads. For each: how many consecutive rows one head has, and how many times
            (3 in a fused qkv layer).
        num_heads: number of heads; 0 means `num_heads` of the attention.
        more_cuts: other tensors that store a part of each head.
        fixed_macs: multiply-adds of the attention that do not depend on the number of heads.
        bias_macs: multiply-adds of a position bias, of all heads, that no module of the attention counts and that do
            not depend on the width of the values.
        output_proj: name of the output projection in the attention.
        not_prunable: why no head can be removed; empty if heads can be removed.
        not_narrowable: why heads cannot be narrowed; empty if they can.
        only_values: why queries and keys cannot be narrowed; empty if they can.
    """

    width: int
    producers: Mapping[str, tuple[int, int]]
    num_heads: int = 0
    more_cuts: Sequence[TensorCut] = ()
    fixed_macs: int = 0
    bias_macs: int = 0
    output_proj: str = "proj"
    not_prunable: str = ""
    not_narrowable: str = NO_NARROW_FORM
    only_values: str = ""


def heads_of(name: str, attn: Any, macs: Macs, layout: HeadLayout) -> list[UnitGroup]:
    """The heads of an attention with this layout."""
    count = layout.num_heads or attn.num_heads
    cuts: list[TensorCut] = []
    for layer, (rows_per_head, repeats) in layout.producers.items():
        path, module = f"{name}.{layer}", attrgetter(layer)(attn)
        if _values_are_narrower(layout, layer):
            cuts += rows(path, module, rows_per_head, repeats=repeats - 1)
            cuts += rows(path, module, layout.width, first=(repeats - 1) * count * rows_per_head)
        else:
            cuts += rows(path, module, rows_per_head, repeats=repeats)
    return [
        heads(
            count=count,
            width=layout.width,
            output_proj=f"{name}.{layout.output_proj}",
            cuts=[*cuts, *layout.more_cuts],
            macs=macs.get(name, 0) - layout.fixed_macs,
            not_prunable=layout.not_prunable,
            narrowing=layout.not_narrowable or directions_of(name, attn, macs, layout, count),
        )
    ]


def directions_of(name: str, attn: Any, macs: Macs, layout: HeadLayout, count: int) -> Directions:
    """What narrowing the `count` heads of an attention with this layout needs."""
    found: dict[str, list[HeadRows]] = {"q": [], "k": [], "v": []}
    inputs = {"q": "", "k": "", "v": ""}
    for layer, (rows_per_head, repeats) in layout.producers.items():
        module, letters = attrgetter(layer)(attn), _letters(layer, repeats)
        is_fused, first = repeats == len(letters), 0
        for letter in letters if module else "":
            width = layout.width if letter == "v" else rows_per_head // (1 if is_fused else len(letters))
            stride = width if is_fused else rows_per_head
            for key, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                found[letter].append(HeadRows(name=f"{name}.{layer}.{key}", width=width, stride=stride, first=first))
            inputs[letter] = (
                f"{name}.{layer}" if macs.get(f"{name}.{layer}") else name
            )  # some pass weights to a function
            first += count * width if is_fused else width
    for letter, entries in found.items():
        if entries and getattr(attn, f"{letter}_bias", None) is not None:
            width = entries[0].width
            entries.append(HeadRows(name=f"{name}.{letter}_bias", width=width, stride=width))
    values, num_columns = tuple(found["v"]), count * layout.width
    of_values, of_all = _narrowed_macs(name, attn, macs, layout, count)
    if layout.only_values:
        return Directions(values=values, only_values=layout.only_values, macs=of_values // num_columns)
    return Directions(
        queries=tuple(found["q"]),
        keys=tuple(found["k"]),
        values=values,
        query_input=inputs["q"],
        key_input=inputs["k"],
        macs=of_all // num_columns,
    )


def _narrowed_macs(name: str, attn: Any, macs: Macs, layout: HeadLayout, count: int) -> tuple[int, int]:
    """Multiply-adds of an attention that are proportional to the width of the values, and to that of all its heads."""
    output = macs.get(f"{name}.{layout.output_proj}", 0)
    num_tokens = output // attrgetter(layout.output_proj)(attn).weight.numel()
    leaves = [key for key, module in attn.named_modules() if key and not any(module.children())]
    products = macs.get(name, 0) - layout.bias_macs - sum(macs.get(f"{name}.{key}", 0) for key in leaves)
    of_values, of_all, key_width = output, output + products, 0
    for layer, (rows_per_head, repeats) in layout.producers.items():
        module, letters = attrgetter(layer)(attn), _letters(layer, repeats)
        if not module or not letters:
            continue
        layer_macs = macs.get(f"{name}.{layer}", 0)
        of_all += layer_macs
        if not layer_macs:  # the attention passes the weight to a function
            layer_macs = num_tokens * module.weight.numel()
            products -= layer_macs
        if "v" in letters:
            of_values += layer_macs * count * layout.width // len(module.weight)
        if "k" in letters:
            key_width = rows_per_head // (len(letters) if repeats == 1 else 1)
    return of_values + products * layout.width // (key_width + layout.width), of_all


def _letters(layer: str, repeats: int) -> str:
    """What a layer computes, by its name: `qkv`, `q`, `kv`, ..., or nothing of these. A `qkv` of two parts has no q."""
    letters = "".join(letter for letter in layer.removesuffix("_proj") if letter in "qkv")
    if letters == "qkv" and repeats == 2:
        return "kv"
    return letters if letters in ("q", "k", "v", "qk", "kv", "qkv") else ""


def _values_are_narrower(layout: HeadLayout, layer: str) -> bool:
    """Whether a fused layer has fewer rows for the values of a head than for its queries."""
    rows_per_head, repeats = layout.producers[layer]
    letters = _letters(layer, repeats)
    return letters.endswith("v") and repeats == len(letters) > 1 and rows_per_head != layout.width


def fused_heads(name: str, attn: Any, macs: Macs, *, width: int, **others: Any) -> list[UnitGroup]:
    """Heads whose queries, keys and values come from one layer `qkv`; `others` are fields of `HeadLayout`."""
    return heads_of(name, attn, macs, HeadLayout(width=width, producers={"qkv": (width, 3)}, **others))


def plain_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Heads of an attention that has only `qkv` and `proj`."""
    return fused_heads(name, attn, macs, width=head_width_from_scale(attn), not_narrowable="")


def separate_heads(layers: Mapping[str, int], *fixed: str) -> Find:
    """Find heads whose queries, keys and values come from several layers.

    Args:
        layers: for each layer, how many times one head occurs in its rows.
        fixed: submodules whose multiply-adds do not depend on the number of heads.
    """

    def find(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
        num_heads = attn.num_heads
        producers = {
            layer: (getattr(attn, layer).out_features // (repeats * num_heads), repeats)
            for layer, repeats in layers.items()
        }
        width, key_width = attn.proj.in_features // num_heads, next(iter(producers.values()))[0]
        layout = HeadLayout(
            width=width,
            producers=producers,
            fixed_macs=sum(macs.get(f"{name}.{submodule}", 0) for submodule in fixed),
            not_narrowable=other_value_width(name, key_width, width),
        )
        return heads_of(name, attn, macs, layout)

    return find


def temperature_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Heads of a cross-covariance attention, with one temperature for each head."""
    temperature = cut_of(f"{name}.temperature", attn.temperature)
    width = attn.proj.in_features // attn.num_heads
    return fused_heads(name, attn, macs, width=width, more_cuts=temperature, not_narrowable=between_channels(name))


def neurons_of(*producers: str, output_proj: str = "fc2", packed: int = 1, norm: str = "norm") -> Find:
    """Find the neurons of an MLP.

    A neuron is `packed` rows of each layer in `producers`, and one column of `output_proj`. A norm before the output
    projection makes the neurons not prunable, unless it is a batch norm, which treats each neuron by itself.
    """

    def find(name: str, mlp: Any, macs: Macs) -> list[UnitGroup]:
        norm_layer = getattr(mlp, norm) if norm else nn.Identity()
        is_batch_norm = isinstance(norm_layer, nn.modules.batchnorm._BatchNorm)
        cuts = [cut for layer in producers for cut in rows(f"{name}.{layer}", getattr(mlp, layer), repeats=packed)]
        return [
            neurons(
                count=getattr(mlp, output_proj).weight.shape[1],
                output_proj=f"{name}.{output_proj}",
                cuts=[*cuts, *(rows(f"{name}.{norm}", norm_layer) if is_batch_norm else [])],
                macs=macs.get(name, 0),
                not_prunable="" if is_batch_norm else normalises_across(norm_layer, f"{name}.{norm}", "neurons"),
            )
        ]

    return find


def chained_neurons(*layers: str, output_proj: str, gate: str = "") -> Find:
    """Find the neurons between the first of `layers` and `output_proj`.

    The first layer computes the neurons. The others must treat each neuron by itself: depthwise convolutions and batch
    norms. A second layer, `gate`, may multiply each neuron. Layers that the module sets to None are skipped.
    """

    def find(name: str, module: nn.Module, macs: Macs) -> list[UnitGroup]:
        last = module.get_submodule(output_proj)
        weight: Any = last.weight
        present = [path for path in layers if getattr(module, path, module) is not None]
        found = [layer for path in present for layer in layers_with_tensors(path, module.get_submodule(path))]
        mixing = [path for path, layer in (*found[1:], (output_proj, last)) if not _keeps_neurons_apart(layer, last)]
        mixing += [path for path, layer in found[:1] if getattr(layer, "groups", 1) > 1]
        found += layers_with_tensors(gate, module.get_submodule(gate)) if gate else []
        cuts = [cut for path, layer in found for cut in rows(f"{name}.{path}", layer)]
        return [
            neurons(
                count=weight.shape[1],
                output_proj=f"{name}.{output_proj}",
                cuts=cuts,
                macs=sum(macs.get(f"{name}.{path}", 0) for path in (output_proj, *(path for path, _ in found))),
                not_prunable=f"`{name}.{mixing[0]}` mixes the neurons" if mixing else "",
            )
        ]

    return find


def layers_with_tensors(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules, or the module itself, that hold a parameter or buffer, with their names."""
    found = [(f"{name}.{key}" if key else name, layer) for key, layer in module.named_modules()]
    return [(key, layer) for key, layer in found if layer._parameters or layer._buffers]


def _keeps_neurons_apart(layer: nn.Module, output_proj: nn.Module) -> bool:
    if layer is output_proj:
        return getattr(layer, "groups", 1) == 1
    if isinstance(layer, nn.Conv2d):
        return layer.groups == layer.in_channels == layer.out_channels
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def normalises_across(norm: nn.Module, name: str, units: str) -> str:
    """The reason not to prune units that `norm` normalises together; empty if the norm is an identity."""
    return "" if isinstance(norm, nn.Identity) else f"`{name}` normalises across {units}"


def between_channels(name: str) -> str:
    """The reason not to narrow the heads of an attention whose weights are between channels."""
    return f"`{name}` attends between channels"


def other_value_width(name: str, key_width: int, value_width: int) -> str:
    """The reason not to narrow heads whose values are wider than their keys; empty if they have one width."""
    return "" if key_width == value_width else f"in `{name}` keys have width {key_width} and values {value_width}"


def qkv_biases(name: str, attn: Any, width: int, value_width: int) -> list[TensorCut]:
    """Cuts of the biases of a fused qkv layer that are parameters of the attention."""
    widths = {"q_bias": width, "k_bias": width, "v_bias": value_width}
    return [cut for bias, size in widths.items() for cut in cut_of(f"{name}.{bias}", getattr(attn, bias), width=size)]


def rel_pos_cuts(name: str, rel_pos: Any) -> list[TensorCut]:
    """Cuts of what a relative position bias stores for each head; empty where `rel_pos` is None."""
    if rel_pos is None:
        return []
    if isinstance(rel_pos, RelPosMlp):
        return rows(f"{name}.mlp.fc2", rel_pos.mlp.fc2)
    if isinstance(rel_pos, RelPosBiasTf):
        return cut_of(f"{name}.relative_position_bias_table", rel_pos.relative_position_bias_table)
    return cut_of(f"{name}.relative_position_bias_table", rel_pos.relative_position_bias_table, dim=1)


def rel_pos_bias_macs(name: str, rel_pos: Any, macs: Macs) -> int:
    """Multiply-adds with which TensorFlow's relative position bias selects its entries, if no module counts them.

    Only unfused attention calls the bias as a module. Other kinds of biases need none.
    """
    if not isinstance(rel_pos, RelPosBiasTf) or macs.get(name, 0):
        return 0
    height, width = rel_pos.window_size
    num_heads, rows, columns = rel_pos.relative_position_bias_table.shape
    return int(num_heads * height**2 * columns * (rows + width**2))


def rel_pos_fixed_macs(name: str, macs: Macs) -> int:
    """Multiply-adds of a relative position bias that do not depend on the number of heads."""
    return macs.get(f"{name}.mlp.fc1", 0)


def head_width_from_scale(attn: Any) -> int:
    """The head width K, from `attn.scale` = K ** -0.5, which a cut does not change."""
    return round(attn.scale**-2)


def value_width(attn: Any, width: int) -> int:
    """The width of the values of one head, which is `width` unless only the values were narrowed."""
    return getattr(attn, VALUE_WIDTH, width)


def set_head_width(attn: Any, group: UnitGroup, width: int) -> None:
    """Note on an attention that its heads, or only their values, are narrower now.

    Args:
        group: the heads before.
        width: their new width.
    """
    assert group.directions is not None
    if group.directions.only_values:
        setattr(attn, VALUE_WIDTH, width)
        return
    for attribute in HEAD_WIDTH_ATTRIBUTES:
        if hasattr(attn, attribute):
            setattr(attn, attribute, width)
    if hasattr(attn, "scale"):
        factor = attn.scale * group.width**0.5  # 1 in all models of timm, up to rounding
        attn.scale = width**-0.5 * (1 if abs(factor - 1) < 1e-6 else factor)


def no_fit(module: nn.Module) -> None:
    """Change nothing: the class has no attribute that repeats a size."""


def fit_num_heads_by_head_dim(attn: Any) -> None:
    """Set `num_heads` of an attention that stores its head width as `head_dim`."""
    attn.num_heads = attn.proj.in_features // value_width(attn, attn.head_dim)


def fit_num_heads_by_scale(attn: Any) -> None:
    """Set `num_heads` of an attention that stores its head width only in `scale`."""
    attn.num_heads = attn.proj.in_features // value_width(attn, head_width_from_scale(attn))


def fit_num_heads_by_temperature(attn: Any) -> None:
    """Set `num_heads` of an attention with one temperature for each head."""
    attn.num_heads = len(attn.temperature)


def fit_rel_pos(rel_pos: Any, num_heads: int) -> None:
    """Set the sizes of a relative position bias to this number of heads."""
    if isinstance(rel_pos, RelPosBias | RelPosMlp):
        rel_pos.bias_shape = (*rel_pos.bias_shape[:2], num_heads)
    if isinstance(rel_pos, RelPosBiasTf):
        rel_pos.bias_shape = (num_heads, *rel_pos.bias_shape[1:])
    if isinstance(rel_pos, RelPosBiasTf | RelPosMlp):
        rel_pos.num_heads = num_heads


def replaced_by(
    original: type[nn.Module], ours: type[nn.Module], find: Find, fit: Fit, *, needs_kept_heads: bool = False
) -> dict[type[nn.Module], Part]:
    """Entries for an attention whose `forward` assumes a width, and for our class that replaces it after a cut."""

    def fit_and_replace(module: nn.Module) -> None:
        fit(module)
        module.__class__ = ours

    part = Part(find, fit_and_replace, needs_kept_heads)
    return {original: part, ours: part}
