"""Silence units and skip blocks at full size: the reference that a cut model is compared with."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.hooks import columns_dim, input_state, with_state
from vitrim.models import describe, hookable
from vitrim.plan import PruningPlan
from vitrim.structure import BlockStructure, UnitGroup


@contextmanager
def silence(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """Within the context, `model` computes at full size what `prune(model, plan)` must compute."""
    structure = describe(model)
    plan.check(structure)
    kept_blocks = {kept.block: kept for kept in plan.blocks}
    skipped = [block for index, block in enumerate(structure.blocks) if index not in kept_blocks]
    gates: list[tuple[UnitGroup, Tensor]] = []
    for index, kept in kept_blocks.items():
        for group in structure.blocks[index].groups:
            if len(kept.units(group.key)) < group.count:
                gates.append((group, unit_gate(group, kept.units(group.key))))
    with gated(model, gates), skipping(model, skipped):
        yield


@contextmanager
def gated(model: nn.Module, gates: Iterable[tuple[UnitGroup, Tensor]]) -> Iterator[None]:
    """Within the context, each group's columns of its reader's input are multiplied by a gate, `(count * width,)`."""
    with ExitStack() as stack:
        stack.enter_context(hookable(model))
        for group, gate in gates:
            output_proj = model.get_submodule(group.output_proj)
            stack.callback(output_proj.register_forward_pre_hook(_multiplier(output_proj, group, gate)).remove)
        yield


def _multiplier(output_proj: nn.Module, group: UnitGroup, gate: Tensor):  # type: ignore[no-untyped-def]
    def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dim = columns_dim(output_proj)
        whole = torch.ones(inputs[0].shape[dim], dtype=gate.dtype)
        whole[group.first : group.first + len(gate)] = gate
        shape = (-1,) if dim == -1 else (-1, *(1 for _ in inputs[0].shape[2:]))
        return (inputs[0] * whole.to(inputs[0]).view(shape), *inputs[1:])

    return multiply


@contextmanager
def skipping(model: nn.Module, blocks: Sequence[BlockStructure]) -> Iterator[None]:
    """Within the context, these blocks hand their input on unchanged."""

    def handing_on(position: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return with_state(output, input_state(args, kwargs, position))

        return hook

    handles = [
        model.get_submodule(block.name).register_forward_hook(handing_on(block.state), with_kwargs=True)
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
