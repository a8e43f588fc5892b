"""Cutting: the only code that changes the size of a tensor. It follows a plan and decides nothing."""

import copy
from collections import Counter
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.errors import UnsupportedModel
from vitrim.models import adapter_for, describe, origin_of, record_origin
from vitrim.plan import PruningPlan
from vitrim.structure import TensorCut, ViTStructure


def prune(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a smaller copy of `model` that keeps only what `plan` lists; the model itself is left as it was.

    The copy computes exactly what the model computes with the removed units' outputs set to zero and the removed
    blocks skipped. Parameters that lose nothing are copied too, never shared.

    Raises:
        PlanMismatch: the plan names units or blocks that the model does not have, or cannot lose.
    """
    structure = describe(model)
    plan.check(structure)
    student = _cut_copy(model, structure, plan)
    adapter = adapter_for(student)
    adapter.fit_units(student, structure, plan)
    _keep_blocks(student, structure, plan)
    adapter.fit_depth(student, structure, plan)
    with suppress(UnsupportedModel):  # a model that cannot be built again can still be cut; `save` will say so
        record_origin(student, origin_of(model).cut_by(plan, structure))
    return student


def unit_rows(cut: TensorCut, count: int) -> Tensor:
    """Indices along the cut dimension that store the units, `(repeats, count, width)`."""
    rows = torch.arange(cut.repeats * count * cut.width, device="cpu")  # with values, whatever the default device is
    return cut.first + rows.view(cut.repeats, count, cut.width)


def _cut_copy(model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> nn.Module:
    """A copy with all blocks, without the units that go; what goes is not copied first."""
    smaller = {name: _without(_tensor(model, name), losses) for name, losses in _losses(structure, plan).items()}
    copies: dict[int, Any] = {}  # by the identity of what they stand for, as `deepcopy` keeps them
    for name in _tensors_of_one_module(model):
        old = _tensor(model, name)
        if name in smaller:
            copies[id(old)] = smaller[name]
        elif any(name.startswith(f"{structure.blocks[index].name}.") for index in _gone(structure, plan)):
            copies[id(old)] = _like(old, old.detach().new_empty(0))
    student = copy.deepcopy(model, copies)
    for name, tensor in smaller.items():
        module_name, _, key = name.rpartition(".")
        module = student.get_submodule(module_name)
        setattr(module, key, tensor)  # another module that has the same tensor keeps it whole
        _fit_layer(module)
    return student


def _tensors_of_one_module(model: nn.Module) -> list[str]:
    """Names of the parameters and buffers that no second module holds, under whatever name."""
    tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    holders = Counter(map(id, tensors.values()))
    return [name for name, tensor in tensors.items() if holders[id(tensor)] == 1]


def _losses(structure: ViTStructure, plan: PruningPlan) -> dict[str, dict[int, list[Tensor]]]:
    """What goes from each tensor along each dimension; one tensor may store units of several groups."""
    losses: dict[str, dict[int, list[Tensor]]] = {}
    for kept in plan.blocks:
        for group in structure.blocks[kept.block].groups:
            gone = sorted(set(range(group.count)) - set(kept.units(group.key)))
            for cut in group.cuts if gone else ():
                rows = unit_rows(cut, group.count)[:, gone].flatten()
                losses.setdefault(cut.name, {}).setdefault(cut.dim, []).append(rows)
    gone_blocks = _gone(structure, plan)
    for cut in {cut for index in gone_blocks for cut in structure.blocks[index].cuts}:
        losses.setdefault(cut.name, {}).setdefault(cut.dim, []).append(torch.tensor(gone_blocks, device="cpu"))
    return losses


def _gone(structure: ViTStructure, plan: PruningPlan) -> list[int]:
    return sorted(set(range(len(structure.blocks))) - {kept.block for kept in plan.blocks})


def _tensor(model: nn.Module, name: str) -> Tensor:
    module, _, key = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(module), key)
    return found


def _without(old: Tensor, losses: dict[int, list[Tensor]]) -> Tensor:
    """A copy of a parameter or buffer without these entries along these dimensions."""
    new = old.detach()
    for dim, gone in losses.items():
        stays = torch.ones(old.shape[dim], dtype=torch.bool, device="cpu")
        stays[torch.cat(gone)] = False
        new = new.index_select(dim, stays.nonzero().flatten().to(old.device))
    return _like(old, new.contiguous())


def _like(old: Tensor, new: Tensor) -> Tensor:
    """`new` as a parameter, if `old` is one."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _fit_layer(module: nn.Module) -> None:
    """Set the attributes of torch's own layers that repeat the size of their weight."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        if module.groups > 1:  # one filter for each channel
            module.groups = len(module.weight)
        module.out_channels, module.in_channels = len(module.weight), module.weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.weight is not None:
        module.num_features = len(module.weight)


def _keep_blocks(model: nn.Module, structure: ViTStructure, plan: PruningPlan) -> None:
    for index in reversed(_gone(structure, plan)):  # the last first, so that names before it still hold
        stage, _, key = structure.blocks[index].name.rpartition(".")
        container: Any = model.get_submodule(stage)
        if key.isdigit():
            del container[int(key)]
        else:  # deleting by position would give all others other names
            del container._modules[key]
