"""What the blocks of transformers' Vision Transformers consist of: which layers give and read heads and neurons.

transformers repeats the same few attentions and MLPs under a new name in each family, and renames their layers between
releases. So a part is known by the layers that it has, and only if it holds nothing else that is trained: an attention
with something more is left whole, and the description says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vitrim.models.describing import Macs, heads, neurons, not_prunable_heads, rows
from vitrim.structure import TensorCut, UnitGroup

SIZES_OF_HEADS = ("num_attention_heads", "num_heads")
WIDTHS_OF_HEADS = ("head_dim", "attention_head_size")
BIAS_TABLE = "relative_position_bias_table"  # one column for each head


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Names of the layers that give the units, and of the one that reads them.

    `packed` are the stretches in which the first layer stores a unit; `each` names tensors with one entry for each unit
    along dimension 0, `beside` layers of which all units read the same.
    """

    producers: tuple[str, ...]
    reads: str
    packed: int = 1
    each: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


ATTENTIONS = (
    Layout(producers=("q_proj", "k_proj", "v_proj"), reads="o_proj"),
    Layout(producers=("q_proj", "k_proj", "v_proj"), reads="out_proj"),
    Layout(producers=("attention.query", "attention.key", "attention.value"), reads="output.dense"),
    Layout(
        producers=("self.query", "self.key", "self.value"),
        reads="output.dense",
        each=("self.logit_scale", "self.continuous_position_bias_mlp.2.weight"),
        beside=("self.continuous_position_bias_mlp.0",),
    ),
)
MLPS = (
    Layout(producers=("fc1",), reads="fc2"),
    Layout(producers=("gate_proj", "up_proj"), reads="down_proj"),
    Layout(producers=("up_proj",), reads="down_proj"),
    Layout(producers=("weights_in",), reads="weights_out", packed=2),
)
MLP_OF_A_BLOCK = Layout(producers=("intermediate.dense",), reads="output.dense")


def find_units(block: nn.Module, name: str, macs: Macs, *, not_prunable: str = "") -> list[UnitGroup]:
    """The heads and neurons of a block; `not_prunable` is a reason why its heads are left alone."""
    found: list[UnitGroup] = []
    for part_name, part in _parts(block, name):
        if _is_attention(part):
            found.append(_heads(block, name, part, part_name, macs, not_prunable))
        else:
            layout = _layout(part, MLPS)
            assert layout is not None
            found.append(_neurons(part, part_name, layout, macs.get(part_name, 0)))
    if _has(block, MLP_OF_A_BLOCK):  # its layers are the block's own
        cost = macs.get(f"{name}.intermediate", 0) + macs.get(f"{name}.output", 0)
        found.append(_neurons(block, name, MLP_OF_A_BLOCK, cost))
    return found


def fit_units(block: nn.Module) -> None:
    """Set what counts the heads in a block that lost some."""
    for _, attention in _parts(block, ""):
        if not _is_attention(attention):
            continue
        layout, width = _layout(attention, ATTENTIONS), _head_width(attention)
        assert layout is not None
        attn_dim = _read_by(attention, layout)
        sizes = dict.fromkeys(SIZES_OF_HEADS, attn_dim // width) | {"all_head_size": attn_dim}
        for module in attention.modules():
            for attribute, size in sizes.items():
                if hasattr(module, attribute):
                    setattr(module, attribute, size)


def has_units(module: nn.Module) -> bool:
    return _is_attention(module) or isinstance(module, nn.MultiheadAttention) or _layout(module, MLPS) is not None


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The attentions and MLPs in a module; parts of parts belong to them."""
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
    return all(isinstance(layers.get(name), nn.Linear) for name in (*layout.producers, layout.reads))


def _layout(module: nn.Module, layouts: tuple[Layout, ...]) -> Layout | None:
    """The layout that accounts for every parameter of the module."""
    for layout in layouts:
        if _has(module, layout):
            known = {
                name for layer in (*layout.producers, layout.reads, *layout.beside) for name in _tensors(module, layer)
            }
            known |= {*layout.each}
            own = {name for name, _ in module.named_parameters()}
            if all(name in known or name.endswith(BIAS_TABLE) for name in own):
                return layout
    return None


def _read_by(module: nn.Module, layout: Layout) -> int:
    """How many columns the reader has."""
    weight = module.get_submodule(layout.reads).weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _tensors(module: nn.Module, layer: str) -> list[str]:
    return [f"{layer}.{key}" for key, _ in module.get_submodule(layer).named_parameters(recurse=False)]


def _head_width(attention: nn.Module) -> int:
    for module in attention.modules():
        for attribute in WIDTHS_OF_HEADS:
            if isinstance(width := getattr(module, attribute, None), int):
                return width
    raise AssertionError(f"{type(attention).__name__} does not say how wide a head is")


def _num_heads(attention: nn.Module) -> int:
    for module in attention.modules():
        for attribute in SIZES_OF_HEADS:
            if isinstance(count := getattr(module, attribute, None), int):
                return count
    return 1


def _heads(block: nn.Module, block_name: str, attention: Any, name: str, macs: Macs, not_prunable: str) -> UnitGroup:
    layout = _layout(attention, ATTENTIONS)
    if layout is None:
        reason = f"vitrim does not know what a head of `{name}` ({type(attention).__name__}) consists of"
        return not_prunable_heads(_num_heads(attention), reason)
    width = _head_width(attention)
    cuts: list[TensorCut] = []
    for layer in layout.producers:
        cuts += rows(f"{name}.{layer}", attention.get_submodule(layer), width)
    cuts += [TensorCut(name=f"{name}.{tensor}", dim=0) for tensor in layout.each]
    for table, _ in block.named_parameters():
        if table.endswith(BIAS_TABLE):
            cuts.append(TensorCut(name=f"{block_name}.{table}", dim=1))
    beside = sum(macs.get(f"{name}.{layer}", 0) for layer in layout.beside)
    return heads(
        count=_read_by(attention, layout) // width,
        width=width,
        output_proj=f"{name}.{layout.reads}",
        cuts=cuts,
        macs=macs.get(name, 0) - beside,
        not_prunable=not_prunable,
    )


def _neurons(part: nn.Module, name: str, layout: Layout, macs: int) -> UnitGroup:
    cuts: list[TensorCut] = []
    for layer in layout.producers:
        cuts += rows(f"{name}.{layer}", part.get_submodule(layer), repeats=layout.packed)
    return neurons(
        count=_read_by(part, layout),
        output_proj=f"{name}.{layout.reads}",
        cuts=cuts,
        macs=macs,
    )
