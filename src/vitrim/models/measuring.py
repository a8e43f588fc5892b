"""What a model does with one image, seen by running it on tensors without data: costs, shapes and order of its modules.

The counts are torch's own (`FlopCounterMode`, one multiply-add is two FLOPs), module by module, attention products
included. Nothing is computed and no weight is touched.
"""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitrim.errors import UnsupportedModel
from vitrim.hooks import input_state, output_state

MAX_CACHED = 512


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One forward pass of one image.

    Attributes:
        macs: multiply-adds of every module that ran, by name; the whole model's under the empty name.
        order: the modules that were asked for, in the order in which they first ran.
        taken, given: shapes of the hidden state that each of them took and gave, without the batch dimension.
    """

    macs: dict[str, int]
    order: tuple[str, ...]
    taken: dict[str, tuple[int, ...]]
    given: dict[str, tuple[int, ...]]


_remembered: OrderedDict[Any, Measurement] = OrderedDict()


def measure(model: nn.Module, image_shape: tuple[int, ...], watched: Mapping[str, int]) -> Measurement:
    """Run `model` on one image `(C, h, w)` of no content.

    `watched` are names of modules with the position of the hidden state among their arguments.

    Models built alike are measured once: the result is remembered by the shapes and plain attributes of all modules.

    Raises:
        UnsupportedModel: the model does not run on such an image; says why.
    """
    key = (image_shape, tuple(watched.items()), _construction(model))
    if key in _remembered:
        _remembered.move_to_end(key)
        return _remembered[key]
    found = _run(model, image_shape, watched)
    _remembered[key] = found
    if len(_remembered) > MAX_CACHED:
        _remembered.popitem(last=False)
    return found


def _construction(model: nn.Module) -> int:
    """A hash of everything that decides what a forward pass does, but for the values of the weights."""
    parts: list[Any] = []
    for name, module in model.named_modules():
        plain = [
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | tuple | list) and key != "training"
        ]
        held = (*module._parameters.items(), *module._buffers.items())
        tensors = [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in held if tensor is not None]
        parts.append((name, type(module), repr(plain), repr(tensors)))
    return hash(tuple(parts))


def _run(model: nn.Module, image_shape: tuple[int, ...], watched: Mapping[str, int]) -> Measurement:
    taken: dict[str, tuple[int, ...]] = {}
    given: dict[str, tuple[int, ...]] = {}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    model = copy.deepcopy(model, tensors)  # without its tensors; some models remember what they computed

    def watch(name: str, position: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            taken.setdefault(name, tuple(input_state(args, kwargs, position).shape[1:]))
            given.setdefault(name, tuple(output_state(output).shape[1:]))

        return hook

    for name, position in watched.items():
        model.get_submodule(name).register_forward_hook(watch(name, position), with_kwargs=True)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        model.eval()
        without_values = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("cpu"), without_values, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            state = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype)
                for name, tensor in (*model.named_parameters(), *model.named_buffers())
            }
            with FlopCounterMode(display=False) as counter:
                torch.func.functional_call(model, state, (torch.empty(1, *image_shape, dtype=dtype),))
    except (RuntimeError, AssertionError, ValueError, TypeError, NotImplementedError) as problem:
        first_line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        size = " x ".join(map(str, image_shape))
        raise UnsupportedModel(f"{type(model).__name__} does not run on one image of {size}: {first_line}") from problem
    return Measurement(
        macs=_by_name(model, counter.get_flop_counts()),
        order=tuple(given),
        taken=taken,
        given=given,
    )


def _by_name(model: nn.Module, counts: dict[str, dict[Any, int]]) -> dict[str, int]:
    """The counter's names begin with the class of the model, which is then the prefix to take off."""
    top = type(model).__name__
    found = {}
    for name, operations in counts.items():
        if name == top or name.startswith(f"{top}."):
            found[name.removeprefix(top).removeprefix(".")] = sum(operations.values()) // 2
    found.setdefault("", 0)
    return found
