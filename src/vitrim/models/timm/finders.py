"""Functions that describe the units of a part and fit its sizes after a cut; the tables in `*_parts.py` use them.

A *part* is one attention or one MLP. What holds for one class of timm only stands in `*_parts.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from timm.layers.pos_embed_rel import RelPosBias, RelPosBiasTf, RelPosMlp
from torch import nn

from vitrim.models.describing import Macs, cut_of, heads, neurons, rows
from vitrim.structure import TensorCut, UnitGroup

Find = Callable[[str, nn.Module, Macs], list[UnitGroup]]
Fit = Callable[[nn.Module], None]


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
        output_proj: name of the output projection in the attention.
        not_prunable: why no head can be removed; empty if heads can be removed.
    """

    width: int
    producers: Mapping[str, tuple[int, int]]
    num_heads: int = 0
    more_cuts: Sequence[TensorCut] = ()
    fixed_macs: int = 0
    output_proj: str = "proj"
    not_prunable: str = ""


def heads_of(name: str, attn: Any, macs: Macs, layout: HeadLayout) -> list[UnitGroup]:
    """The heads of an attention with this layout."""
    cuts: list[TensorCut] = []
    for layer, (rows_per_head, repeats) in layout.producers.items():
        cuts += rows(f"{name}.{layer}", attrgetter(layer)(attn), rows_per_head, repeats=repeats)
    return [
        heads(
            count=layout.num_heads or attn.num_heads,
            width=layout.width,
            output_proj=f"{name}.{layout.output_proj}",
            cuts=[*cuts, *layout.more_cuts],
            macs=macs.get(name, 0) - layout.fixed_macs,
            not_prunable=layout.not_prunable,
        )
    ]


def fused_heads(name: str, attn: Any, macs: Macs, *, width: int, **others: Any) -> list[UnitGroup]:
    """Heads whose queries, keys and values come from one layer `qkv`; `others` are fields of `HeadLayout`."""
    return heads_of(name, attn, macs, HeadLayout(width=width, producers={"qkv": (width, 3)}, **others))


def plain_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Heads of an attention that has only `qkv` and `proj`."""
    return fused_heads(name, attn, macs, width=head_width_from_scale(attn))


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
        fixed_macs = sum(macs.get(f"{name}.{submodule}", 0) for submodule in fixed)
        layout = HeadLayout(width=attn.proj.in_features // num_heads, producers=producers, fixed_macs=fixed_macs)
        return heads_of(name, attn, macs, layout)

    return find


def temperature_heads(name: str, attn: Any, macs: Macs) -> list[UnitGroup]:
    """Heads of a cross-covariance attention, with one temperature for each head."""
    temperature = cut_of(f"{name}.temperature", attn.temperature)
    return fused_heads(name, attn, macs, width=attn.proj.in_features // attn.num_heads, more_cuts=temperature)


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


def qkv_biases(name: str, attn: Any, width: int) -> list[TensorCut]:
    """Cuts of the biases of a fused qkv layer that are parameters of the attention."""
    biases = ("q_bias", "k_bias", "v_bias")
    return [cut for bias in biases for cut in cut_of(f"{name}.{bias}", getattr(attn, bias), width=width)]


def rel_pos_cuts(name: str, rel_pos: Any) -> list[TensorCut]:
    """Cuts of what a relative position bias stores for each head; empty where `rel_pos` is None."""
    if rel_pos is None:
        return []
    if isinstance(rel_pos, RelPosMlp):
        return rows(f"{name}.mlp.fc2", rel_pos.mlp.fc2)
    if isinstance(rel_pos, RelPosBiasTf):
        return cut_of(f"{name}.relative_position_bias_table", rel_pos.relative_position_bias_table)
    return cut_of(f"{name}.relative_position_bias_table", rel_pos.relative_position_bias_table, dim=1)


def rel_pos_fixed_macs(name: str, macs: Macs) -> int:
    """Multiply-adds of a relative position bias that do not depend on the number of heads."""
    return macs.get(f"{name}.mlp.fc1", 0)


def head_width_from_scale(attn: Any) -> int:
    """The head width K, from `attn.scale` = K ** -0.5, which a cut does not change."""
    return round(attn.scale**-2)


def no_fit(module: nn.Module) -> None:
    """Change nothing: the class has no attribute that repeats a size."""


def fit_num_heads_by_head_dim(attn: Any) -> None:
    """Set `num_heads` of an attention that stores its head width as `head_dim`."""
    attn.num_heads = attn.proj.in_features // attn.head_dim


def fit_num_heads_by_scale(attn: Any) -> None:
    """Set `num_heads` of an attention that stores its head width only in `scale`."""
    attn.num_heads = attn.proj.in_features // head_width_from_scale(attn)


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
