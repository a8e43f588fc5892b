"""`prune`: build the smaller model that a plan describes. Only this file changes the size of a tensor.

It decides nothing: what is kept is in the plan.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.copying import copied
from vitrim.errors import UnsupportedModel
from vitrim.models import adapter_for, describe, origin_of, record_origin
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.structure import HeadRows, TensorCut, UnitGroup, ViTStructure


def prune(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a smaller copy of `model` that keeps only the blocks, units and directions of heads in `plan`.

    The copy computes what the model computes when the outputs of the removed units and the removed directions of
    queries and values are set to zero, and the removed blocks are skipped. The model itself does not change, and the
    two have no tensor in common. Directions of a head are kept from the first one on, so rotate a model
    (`vitrim.rotation`) before its heads are narrowed.

    Raises:
        PlanMismatch: the plan keeps units or blocks that the model does not have, or removes some that it must keep.
        UnsupportedModel: vitrim does not support this class of models.
    """
    model = unwrapped(model)
    structure = describe(model)
    plan.check(structure)
    student = _cut_copy(model, structure, plan)
    adapter = adapter_for(student)
    adapter.fit_units(student, structure, plan)
    _keep_blocks(student, structure, plan)
    adapter.fit_depth(student, structure, plan)
    with suppress(UnsupportedModel):  # such a model can be pruned but not saved; `save` raises the error again
        record_origin(student, origin_of(model).cut_by(plan, structure))
    return student


def unit_rows(cut: TensorCut, count: int) -> Tensor:
    """Indices along `cut.dim` of the entries of each of `count` units, `(repeats, count, width)`."""
    rows = torch.arange(cut.repeats * count * cut.width, device="cpu")  # the default device may be meta
    return cut.first + rows.view(cut.repeats, count, cut.width)


def _cut_copy(model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> nn.Module:
    """A copy with all blocks, without the removed units. Memory for removed entries and blocks is never allocated."""
    removed, scales = _removed_entries(structure, plan), _query_scales(structure, plan)
    smaller = {name: _without(_tensor(model, name), entries, scales.get(name)) for name, entries in removed.items()}
    removed_blocks = [f"{structure.blocks[index].name}." for index in _removed_blocks(structure, plan)]
    copies: dict[int, Any] = {}  # the memo of `deepcopy`: the copy of each tensor, by the tensor's `id`
    for name in _tensors_of_one_module(model):
        old = _tensor(model, name)
        if name in smaller:
            copies[id(old)] = smaller[name]
        elif type(old) in (nn.Parameter, Tensor) and any(name.startswith(block) for block in removed_blocks):
            copies[id(old)] = _like(old, old.detach().new_empty(0))
    student = copied(model, copies)
    for name, tensor in smaller.items():
        module_name, _, key = name.rpartition(".")
        module = student.get_submodule(module_name)
        setattr(module, key, tensor)  # another module with the same tensor keeps all entries
        _fit_layer(module)
    return student


def _tensors_of_one_module(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that only one module holds."""
    tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    holders = Counter(map(id, tensors.values()))
    return [name for name, tensor in tensors.items() if holders[id(tensor)] == 1]


def _removed_entries(structure: ViTStructure, plan: PruningPlan) -> dict[str, dict[int, list[Tensor]]]:
    """Indices to remove from each tensor, by name and dimension; one tensor may store units of several groups."""
    removed: dict[str, dict[int, list[Tensor]]] = {}
    for kept in plan.blocks:
        for group in structure.blocks[kept.block].groups:
            removed_units = sorted(set(range(group.count)) - set(kept.units(group.key)))
            for cut in group.cuts if removed_units else ():
                rows = unit_rows(cut, group.count)[:, removed_units].flatten()
                removed.setdefault(cut.name, {}).setdefault(cut.dim, []).append(rows)
            if kept.width(group) < group.width:
                for name, dim, entries in _removed_directions(group, kept.width(group)):
                    removed.setdefault(name, {}).setdefault(dim, []).append(entries)
    blocks = _removed_blocks(structure, plan)
    for cut in {cut for index in blocks for cut in structure.blocks[index].cuts}:
        removed.setdefault(cut.name, {}).setdefault(cut.dim, []).append(torch.tensor(blocks, device="cpu"))
    return removed


def direction_rows(rows: HeadRows, count: int) -> Tensor:
    """Indices along dimension 0 of the directions of each of `count` heads, `(count, width)`."""
    starts = rows.first + rows.stride * torch.arange(count, device="cpu")
    return starts[:, None] + torch.arange(rows.width, device="cpu")


def _removed_directions(group: UnitGroup, width: int) -> Iterator[tuple[str, int, Tensor]]:
    """What all heads lose when they are narrowed: the name of a tensor, a dimension, and the entries to remove."""
    directions = group.directions
    assert directions is not None
    for rows in (*directions.queries, *directions.keys, *directions.values):
        yield rows.name, 0, direction_rows(rows, group.count)[:, width:].flatten()
    columns = HeadRows(name=f"{group.output_proj}.weight", width=group.width, stride=group.width, first=group.first)
    yield columns.name, 1, direction_rows(columns, group.count)[:, width:].flatten()


def _query_scales(structure: ViTStructure, plan: PruningPlan) -> dict[str, Tensor]:
    """Factors for the rows of the tensors that compute the queries of narrowed heads, by name.

    Attention divides the products of queries and keys by the square root of the head width. Narrowing from K to r would
    make them larger by the square root of K / r, so the queries become smaller by this factor.
    """
    scales: dict[str, Tensor] = {}
    for kept in plan.blocks:
        for group in structure.blocks[kept.block].groups:
            if group.directions and kept.width(group) < group.width:
                for rows in group.directions.queries:
                    factors = torch.ones(rows.end(group.count), dtype=torch.float64, device="cpu")
                    factors[direction_rows(rows, group.count).flatten()] = (kept.width(group) / group.width) ** 0.5
                    scales[rows.name] = factors
    return scales


def _removed_blocks(structure: ViTStructure, plan: PruningPlan) -> list[int]:
    return sorted(set(range(len(structure.blocks))) - {kept.block for kept in plan.blocks})


def _tensor(model: nn.Module, name: str) -> Tensor:
    module, _, key = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(module), key)
    return tensor


def _without(old: Tensor, entries: dict[int, list[Tensor]], scales: Tensor | None) -> Tensor:
    """A copy of a parameter or buffer without these entries along these dimensions.

    Args:
        scales: factors for the first rows, or None.
    """
    new = old.detach()
    if scales is not None:
        new = new.clone()
        new[: len(scales)] *= scales.to(new).view(-1, *(1 for _ in new.shape[1:]))
    for dim, indices in entries.items():
        is_kept = torch.ones(old.shape[dim], dtype=torch.bool, device="cpu")
        is_kept[torch.cat(indices)] = False
        new = new.index_select(dim, is_kept.nonzero().flatten().to(old.device))
    return _like(old, new.contiguous())


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new`, as a parameter if `old` is one."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _fit_layer(module: nn.Module) -> None:
    """Set the attributes of torch's layers that repeat the size of their weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        if module.groups > 1:  # depthwise
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
        module.num_features = len(module.weight)


def _keep_blocks(model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> None:
    """Delete the removed blocks from the model, in place."""
    for index in reversed(_removed_blocks(structure, plan)):  # last first: deletion renames the blocks that follow
        stage, _, key = structure.blocks[index].name.rpartition(".")
        container: Any = model.get_submodule(stage)
        if key.isdigit():
            del container[int(key)]
        else:  # deletion by position would rename the other blocks
            del container._modules[key]
