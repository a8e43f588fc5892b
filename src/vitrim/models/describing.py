"""From what an adapter says about the blocks of a model to its `ViTStructure`: costs, shapes and general refusals.

An adapter names the blocks and, for each, the groups of units in it. What holds for every library is decided here: what
a unit costs, that shared weights are not cut, that a block which changes the shape of the stream stays.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from vitrim.models.measuring import Measurement, measure
from vitrim.structure import BlockStructure, TensorCut, UnitGroup, UnitKind, ViTStructure

Macs = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """What an adapter says about one block: see `BlockStructure`; `groups` still lack keys and parameters."""

    name: str
    find_groups: Callable[[Macs], list[UnitGroup]]
    state: int = 0
    cuts: tuple[TensorCut, ...] = ()
    not_prunable: str = ""


def structure_of(
    model: nn.Module,
    blocks: Sequence[BlockParts],
    *,
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    embed_dim: int,
    skipped_parts: Iterable[str] = (),
) -> ViTStructure:
    """Put a structure together.

    Args:
        image_shape: `(C, h, w)` of the images that the model takes.

    Raises:
        UnsupportedModel: the model does not run on such images.
    """
    found = measure(model, image_shape, {block.name: block.state for block in blocks})
    owners = _owners(model)
    in_order = sorted((block for block in blocks if block.name in found.order), key=lambda b: found.order.index(b.name))
    described = tuple(_describe_block(model, block, found, owners) for block in in_order)
    last = found.given[in_order[-1].name] if in_order else (embed_dim,)
    return ViTStructure(
        model=name,
        family=type(model).__name__,
        img_size=image_shape[1:],
        in_chans=image_shape[0],
        num_classes=num_classes,
        embed_dim=_width(last, embed_dim),
        num_tokens=math.prod(last) // _width(last, embed_dim) if in_order else 0,
        blocks=described,
        params=_num_params(model) - sum(block.params + _of_units(block, "params") for block in described),
        macs=found.macs[""] - sum(block.macs + _of_units(block, "macs") for block in described),
        skipped_parts=tuple(skipped_parts),
    )


def heads(
    *,
    count: int,
    width: int,
    output_proj: str,
    cuts: Sequence[TensorCut],
    macs: int,
    first: int = 0,
    not_prunable: str = "",
) -> UnitGroup:
    """The heads of one attention: what gives them (`cuts`), and the reader's columns; `macs` of all together."""
    return _units("heads", count, width, output_proj, cuts, macs, first, not_prunable)


def neurons(
    *, count: int, output_proj: str, cuts: Sequence[TensorCut], macs: int, first: int = 0, not_prunable: str = ""
) -> UnitGroup:
    """The hidden neurons of one MLP: what gives them (`cuts`), and the reader's columns; `macs` of all together."""
    return _units("neurons", count, 1, output_proj, cuts, macs, first, not_prunable)


def not_prunable_heads(count: int, reason: str) -> UnitGroup:
    """An attention that is left alone."""
    return UnitGroup(kind="heads", key="heads", count=count, not_prunable=reason)


def not_prunable_neurons(count: int, reason: str) -> UnitGroup:
    """An MLP that is left alone."""
    return UnitGroup(kind="neurons", key="neurons", count=count, not_prunable=reason)


def rows(name: str, layer: nn.Module | None, width: int = 1, *, repeats: int = 1, first: int = 0) -> list[TensorCut]:
    """The cuts of a layer whose outputs the units are: along dimension 0 of every tensor it holds."""
    tensors = dict(layer.named_parameters(recurse=False)) | dict(layer.named_buffers(recurse=False)) if layer else {}
    return [
        TensorCut(name=f"{name}.{key}", dim=0, width=width, repeats=repeats, first=first)
        for key, tensor in tensors.items()
        if tensor.ndim > 0  # a batch norm counts its batches in a tensor without dimensions
    ]


def cut_of(name: str, tensor: object, dim: int = 0, *, width: int = 1, repeats: int = 1) -> list[TensorCut]:
    """The cut of a parameter or buffer that may be missing."""
    return [] if tensor is None else [TensorCut(name=name, dim=dim, width=width, repeats=repeats)]


def _units(
    kind: UnitKind,
    count: int,
    width: int,
    output_proj: str,
    cuts: Sequence[TensorCut],
    macs: int,
    first: int,
    not_prunable: str,
) -> UnitGroup:
    assert not_prunable or macs % count == 0, (
        f"{macs} multiply-adds do not divide among the {count} {kind} behind {output_proj}"
    )
    return UnitGroup(
        kind=kind,
        key=kind,
        count=count,
        output_proj=output_proj,
        width=width,
        first=first,
        cuts=(*cuts, TensorCut(name=f"{output_proj}.weight", dim=1, width=width, first=first)),
        macs=macs // count,
        not_prunable=not_prunable,
    )


def _describe_block(
    model: nn.Module, block: BlockParts, found: Measurement, owners: Mapping[int, list[str]]
) -> BlockStructure:
    groups: list[UnitGroup] = []
    for group in block.find_groups(found.macs):
        earlier = sum(other.kind == group.kind for other in groups)
        key = f"{group.kind}.{earlier}" if earlier else group.kind
        groups.append(_finished(model, replace(group, key=key), found, owners))
    taken, given = found.taken[block.name], found.given[block.name]
    not_prunable = block.not_prunable
    if taken != given and not not_prunable:
        not_prunable = f"`{block.name}` changes the shape of the stream from {_shape(taken)} to {_shape(given)}"
    params, macs = _own_params(model, block.name, owners), found.macs.get(block.name, 0)
    for cut in block.cuts:  # its share of what all blocks have in common
        tensor, owner = _tensor(model, cut.name), cut.name.rpartition(".")[0]
        params += tensor.numel() // tensor.shape[cut.dim]
        macs += found.macs.get(owner, 0) // tensor.shape[cut.dim]
    return BlockStructure(
        name=block.name,
        groups=tuple(groups),
        params=params - sum(group.count * group.params for group in groups),
        macs=macs - sum(group.count * group.macs for group in groups),
        state=block.state,
        qkv=_qkv_of(groups),
        cuts=block.cuts,
        not_prunable=not_prunable,
    )


def _of_units(block: BlockStructure, cost: Literal["params", "macs"]) -> int:
    return sum(group.count * getattr(group, cost) for group in block.groups)


def _finished(model: nn.Module, group: UnitGroup, found: Measurement, owners: Mapping[int, list[str]]) -> UnitGroup:
    """The group with its parameters counted, locked if what it consists of is used elsewhere or not at all."""
    not_prunable, params = group.not_prunable, 0
    for cut in group.cuts:
        tensor = _tensor(model, cut.name)
        if isinstance(tensor, nn.Parameter):
            params += tensor.numel() // tensor.shape[cut.dim] * cut.width * cut.repeats
            names = owners[id(tensor)]
            if len(names) > 1 and not not_prunable:
                not_prunable = f"`{names[0]}` and `{names[1]}` are one tensor"
    if group.output_proj and not found.macs.get(group.output_proj) and not not_prunable:
        not_prunable = f"`{group.output_proj}` takes no part in classifying an image"
    return replace(group, params=params, not_prunable=not_prunable)


def _qkv_of(groups: Sequence[UnitGroup]) -> str:
    """The layer of the first attention that gives queries, keys and values in one, and of one width."""
    for group in groups:
        if group.kind == "heads":
            for cut in group.cuts:
                if cut.repeats == 3 and cut.name.endswith(".weight") and not cut.first:
                    return cut.name.removesuffix(".weight")
    return ""


def _tensor(model: nn.Module, name: str) -> Tensor:
    parent, _, key = name.rpartition(".")
    return getattr(model.get_submodule(parent), key)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """All names of each parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names


def _own_params(model: nn.Module, name: str, owners: Mapping[int, list[str]]) -> int:
    """Parameters that go with the module, those left out that others use, too."""
    own = [p for p in model.get_submodule(name).parameters() if all(o.startswith(f"{name}.") for o in owners[id(p)])]
    return sum(parameter.numel() for parameter in own)


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _width(shape: tuple[int, ...], expected: int) -> int:
    """The width of a state `(N, D)`, `(h, w, D)` or `(D, h, w)`; some models are wider behind their blocks."""
    if expected in shape or len(shape) < 3:
        return expected if expected in shape else shape[-1]
    if shape[0] == shape[1] or shape[1] == shape[2]:
        return shape[-1] if shape[0] == shape[1] else shape[0]
    return max(shape)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
