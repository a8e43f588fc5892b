"""With which factors a block adds the outputs of its projections to the residual stream: as stated, else measured."""

import torch
from torch import Tensor, nn

from vitrim.precision import in_float64
from vitrim.recovery.blockwise import BlockIO, in_float32
from vitrim.structure import BlockStructure

NUM_PROBE_IMAGES = 16  # enough to measure how a block adds to the residual stream
MAX_MISFIT = 1e-3  # relative
MAX_ROUNDINGS = 8  # of the last digit of the hidden state
MIN_EQUATIONS = 4  # for each factor


def residual_scales(model: nn.Module, block: BlockStructure, block_io: BlockIO) -> dict[str, Tensor] | None:
    """The factor of each channel of each projection's output when the block adds it to its input.

    Returns:
        By the name of the projection, of a shape that multiplies its output, such as `(1, 1, D)`. None where
        `output = input + sum of scale * projection` does not hold.
    """
    if not block_io.projections:
        return None
    first = block_io.outputs[0]
    tensors = (block_io.inputs[0], *(values[0] for values in block_io.projections.values()))
    if any(tensor.shape != first.shape for tensor in tensors):
        return None
    stated = {group.output_proj: group.residual_scale for group in block.groups}
    if all(stated.get(name) is not None for name in block_io.projections):
        return {name: _stated(model, stated[name] or "", first) for name in block_io.projections}
    return _measured(block_io)


def _stated(model: nn.Module, parameter: str, state: Tensor) -> Tensor:
    """The scale that an adapter states: a parameter `(D,)`, or 1. Hidden states have their channels last there."""
    ones = torch.ones(state.shape[-1], device=state.device)
    scale = model.get_parameter(parameter).detach() if parameter else ones
    return scale.to(in_float32(state).dtype).view(*[1] * (state.ndim - 1), -1)


def _measured(block_io: BlockIO) -> dict[str, Tensor] | None:
    """The scales that explain the outputs for a few images."""
    parts = (block_io.outputs, block_io.inputs, *block_io.projections.values())
    first = [values[0][:NUM_PROBE_IMAGES] for values in parts]
    for dim in (-1, 1) if first[0].ndim == 4 else (-1,):  # an image may have its channels second
        # (C, T) each
        outputs, inputs, *projections = (in_float64(values).movedim(dim, 0).flatten(1) for values in first)
        digit = torch.finfo(first[0].dtype).eps
        rounding = MAX_ROUNDINGS * digit * inputs.norm(dim=1)
        factors = _factors(outputs - inputs, torch.stack(projections, dim=2), rounding)
        if factors is not None:
            shape = [1] * first[0].ndim
            shape[dim] = -1
            columns = factors.to(in_float32(first[0])).unbind(1)
            return {name: column.view(shape) for name, column in zip(block_io.projections, columns, strict=True)}
    return None


def _factors(change: Tensor, parts: Tensor, rounding: Tensor) -> Tensor | None:
    """For each channel the factors `(C, P)` with which `parts` `(C, T, P)` add up to `change` `(C, T)`.

    None where they do not, up to a norm of `rounding` `(C,)`, or where T is too small to tell.
    """
    if change.shape[1] < MIN_EQUATIONS * parts.shape[2]:
        return None
    factors = torch.linalg.pinv(parts.mT @ parts, hermitian=True) @ (parts.mT @ change[..., None])  # (C, P, 1)
    misfit = ((parts @ factors)[..., 0] - change).norm(dim=1)
    allowed = MAX_MISFIT * change.norm(dim=1) + rounding
    return factors[..., 0] if (misfit <= allowed).all() else None
