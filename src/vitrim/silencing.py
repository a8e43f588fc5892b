"""Silence units and skip blocks at full size: the reference with which tests compare a pruned model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.hooks import columns_dim, eager_mode, forward_hooks, forward_pre_hooks, input_state, with_state
from vitrim.models import describe, hookable
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.structure import BlockStructure, UnitGroup
from vitrim.surgery import direction_rows


@contextmanager
def silence(model: nn.Module, plan: PruningPlan) -> Iterator[None]:
    """A context in which `model` computes, at full size, what `prune(model, plan)` computes.

    Raises:
        PlanMismatch: the plan does not fit the model.
        UnsupportedModel: vitrim does not support this class of models.
    """
    model = unwrapped(model)
    structure = describe(model)
    plan.check(structure)
    kept_blocks = {kept.block: kept for kept in plan.blocks}
    skipped = [block for index, block in enumerate(structure.blocks) if index not in kept_blocks]
    gates: list[tuple[UnitGroup, Tensor]] = []
    narrowed: list[tuple[UnitGroup, int]] = []
    for index, kept in kept_blocks.items():
        for group in structure.blocks[index].groups:
            width = kept.width(group)
            if kept.shrinks(group):
                gates.append((group, unit_gate(group, kept.units(group.key), width)))
            if width < group.width:
                narrowed.append((group, width))
    with eager_mode(model), _without_query_directions(model, narrowed), gated(model, gates), skipping(model, skipped):
        yield


@contextmanager
def _without_query_directions(model: nn.Module, narrowed: Sequence[tuple[UnitGroup, int]]) -> Iterator[None]:
    """A context in which all heads of these groups have queries of 0 beyond the first `width` directions.

    So these directions add nothing to the products of queries and keys.
    """
    before: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for group, width in narrowed:
                assert group.directions is not None
                for rows in group.directions.queries:
                    owner, _, key = rows.name.rpartition(".")
                    tensor = getattr(model.get_submodule(owner), key)
                    before.append((tensor, tensor.clone()))
                    tensor[direction_rows(rows, group.count)[:, width:].flatten().to(tensor.device)] = 0
        yield
    finally:
        with torch.no_grad():
            for tensor, values in reversed(before):
                tensor.copy_(values)


@contextmanager
def gated(model: nn.Module, gates: Iterable[tuple[UnitGroup, Tensor]]) -> Iterator[None]:
    """A context in which the outputs of units are multiplied by gates.

    Args:
        model: the model that runs inside the context.
        gates: for each group, a tensor `(count * width,)`: one factor for each of the group's columns in the input of
            its output projection.
    """
    with hookable(model):
        modules = [(model.get_submodule(group.output_proj), group, gate) for group, gate in gates]
        with forward_pre_hooks([(module, _multiply_columns(module, group, gate)) for module, group, gate in modules]):
            yield


def _multiply_columns(output_proj: nn.Module, group: UnitGroup, gate: Tensor) -> Callable[..., Any]:
    """A forward pre-hook that multiplies the group's columns of the input by the gate."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        dim = columns_dim(output_proj)
        factors = torch.ones(inputs[0].shape[dim], dtype=gate.dtype)
        factors[group.first : group.first + len(gate)] = gate
        shape = (-1,) if dim == -1 else (-1, *(1 for _ in inputs[0].shape[2:]))
        return (inputs[0] * factors.to(inputs[0]).view(shape), *inputs[1:])

    return hook


@contextmanager
def skipping(model: nn.Module, blocks: Sequence[BlockStructure]) -> Iterator[None]:
    """A context in which these blocks return their input hidden state unchanged."""

    def returning_input(position: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            return with_state(output, input_state(args, kwargs, position))

        return hook

    with forward_hooks([(model.get_submodule(block.name), returning_input(block.state)) for block in blocks]):
        yield


def unit_gate(group: UnitGroup, kept: tuple[int, ...], width: int | None = None) -> Tensor:
    """A gate `(count * group.width,)`: 1 for the first `width` columns of kept units, 0 for the others.

    Args:
        width: by default all columns of a unit.
    """
    gate = torch.zeros(group.count, group.width)
    gate[list(kept), :width] = 1.0
    return gate.flatten()
