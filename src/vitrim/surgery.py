"""Cutting: the only code that changes the size of a tensor. It follows a plan and decides nothing."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from vitrim.adapters import adapter_for, describe, origin_of, record_origin
from vitrim.errors import UnsupportedModel
from vitrim.plan import PruningPlan
from vitrim.structure import UNIT_KINDS, BlockStructure, TensorCut, UnitGroup, ViTStructure


def prune(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a smaller copy of `model` that keeps only what `plan` lists; the model itself is left as it was.

    The copy computes exactly what the model computes with the removed units' outputs set to zero and the removed
    blocks skipped. Parameters that lose nothing are copied too, never shared.

    Raises:
        PlanMismatch: the plan names units or blocks that the model does not have, or cannot lose.
    """
    structure = describe(model)
    plan.check(structure)
    student = copy.deepcopy(model)
    for kept in plan.blocks:
        block = structure.blocks[kept.block]
        for kind in UNIT_KINDS:
            _cut_group(student, block.group(kind), kept.units(kind))
    _keep_blocks(student, structure, [kept.block for kept in plan.blocks])
    adapter_for(student).mend(student, structure)
    with suppress(UnsupportedModel):  # a model that cannot be built again can still be cut; `save` will say so
        record_origin(student, origin_of(model).cut_by(plan))
    return student


@contextmanager
def silence(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Within the context, `model` computes at full size what `prune(model, plan)` must compute."""
    structure = describe(model)
    plan.check(structure)
    kept_blocks = {kept.block: kept for kept in plan.blocks}
    gates: dict[str, Tensor] = {}
    skipped = [block for index, block in enumerate(structure.blocks) if index not in kept_blocks]
    for index, kept in kept_blocks.items():
        for kind in UNIT_KINDS:
            group = structure.blocks[index].group(kind)
            if len(kept.units(kind)) < group.count:
                gates[group.reader] = unit_gate(group, kept.units(kind))
    with gated(model, gates), skipping(model, skipped):
        yield


@contextmanager
def gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Within the context, the input of each named reader is multiplied by its gate, `(columns,)`."""
    handles = []
    for name, gate in gates.items():

        def multiply(module: nn.Module, inputs: tuple[Tensor, ...], gate: Tensor = gate) -> tuple[Tensor, ...]:
            return (inputs[0] * gate.to(inputs[0]), *inputs[1:])

        handles.append(model.get_submodule(name).register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def skipping(model: nn.Module, blocks: list[BlockStructure]) -> Iterator[None]:
    """Within the context, these blocks hand their input on unchanged."""
    handles = [
        model.get_submodule(block.name).register_forward_hook(lambda module, inputs, output: inputs[0])
        for block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unit_gate(group: UnitGroup, kept: tuple[int, ...]) -> Tensor:
    """One for the columns of kept units, zero for the others, `(count * width,)`."""
    gate = torch.zeros(group.count, group.width)
    gate[list(kept)] = 1.0
    return gate.flatten()


def _cut_group(model: nn.Module, group: UnitGroup, kept: tuple[int, ...]) -> None:
    if len(kept) == group.count:
        return
    for cut in group.cuts:
        module_name, _, parameter_name = cut.name.rpartition(".")
        module = model.get_submodule(module_name)
        old = getattr(module, parameter_name)
        rows = _positions(cut, group.count, kept).to(old.device)
        new = nn.Parameter(old.detach().index_select(cut.dim, rows).contiguous(), requires_grad=old.requires_grad)
        setattr(module, parameter_name, new)
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape


def _positions(cut: TensorCut, count: int, kept: tuple[int, ...]) -> Tensor:
    """Indices along the cut dimension, laid out `(repeats, units, width)`."""
    layout = torch.arange(cut.repeats * count * cut.width).view(cut.repeats, count, cut.width)
    return layout[:, list(kept)].flatten()


def _keep_blocks(model: nn.Module, structure: ViTStructure, kept: list[int]) -> None:
    parent_name, _, name = structure.blocks_name.rpartition(".")
    parent = model.get_submodule(parent_name)
    blocks = getattr(parent, name)
    if len(kept) < len(blocks):
        setattr(parent, name, type(blocks)(*(blocks[index] for index in kept)))
