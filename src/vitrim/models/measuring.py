"""Run a model on one image without computing anything, to measure costs, shapes and the order of its modules.

torch's `FlopCounterMode` counts the multiply-adds of each module, attention products included (one multiply-add is two
FLOPs). The tensors hold no data, and no weight changes.
"""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vitrim.copying import copied
from vitrim.errors import UnsupportedModel
from vitrim.hooks import input_state, output_state
from vitrim.models.layers import is_of_torch

MAX_CACHED = 512
CANNOT_RUN = (RuntimeError, AssertionError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One forward pass of one image.

    Attributes:
        macs: multiply-adds of every module that ran, by name; the empty name stands for the whole model.
        order: the watched modules, in the order in which they first ran.
        repeated: the watched modules that ran more than once.
        input_shapes, output_shapes: shapes of the hidden state in the input and output of each watched module, without
            the batch dimension.
        logits_shape: shape of the model's logits or features, without the batch dimension; empty if its output is
            neither a tensor nor has logits.
    """

    macs: dict[str, int]
    order: tuple[str, ...]
    repeated: tuple[str, ...]
    input_shapes: dict[str, tuple[int, ...]]
    output_shapes: dict[str, tuple[int, ...]]
    logits_shape: tuple[int, ...] = ()


_cache: OrderedDict[Any, Measurement] = OrderedDict()


def measure(model: nn.Module, image_shape: tuple[int, ...], watched: Mapping[str, int]) -> Measurement:
    """Run `model` on one image without data.

    Two models with the same shapes and plain attributes in all modules are measured once.

    Args:
        image_shape: `(C, h, w)`.
        watched: names of modules, each with the position of the hidden state among its arguments.

    Raises:
        UnsupportedModel: the model does not run on such an image; says why.
    """
    key = (image_shape, tuple(watched.items()), _construction(model))
    if key in _cache:
        _cache.move_to_end(key)
        return _cache[key]
    measurement = _run(model, image_shape, watched)
    _cache[key] = measurement
    if len(_cache) > MAX_CACHED:
        _cache.popitem(last=False)
    return measurement


def _construction(model: nn.Module) -> int:
    """A hash of everything that determines a forward pass, except the values of the weights."""
    parts: list[Any] = []
    for name, module in model.named_modules():
        plain = [
            (key, value)
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | tuple | list) and key != "training"
        ]
        named_tensors = (*module._parameters.items(), *module._buffers.items())
        tensors = [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in named_tensors if tensor is not None]
        forwards = (type(module).forward, vars(module).get("forward"))  # a person may replace either
        parts.append((name, type(module), forwards, repr(plain), repr(tensors)))
    return hash(tuple(parts))


def _run(model: nn.Module, image_shape: tuple[int, ...], watched: Mapping[str, int]) -> Measurement:
    input_shapes: dict[str, tuple[int, ...]] = {}
    output_shapes: dict[str, tuple[int, ...]] = {}
    runs: dict[str, int] = {}
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    # shares the tensors; a copy, because some models store what they computed
    model = _with_own_modules(copied(model, dict(tensors)), tensors)

    def watch(name: str, position: int):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            runs[name] = runs.get(name, 0) + 1
            input_shapes.setdefault(name, tuple(input_state(args, kwargs, position).shape[1:]))
            output_shapes.setdefault(name, tuple(output_state(output).shape[1:]))

        return hook

    _remove_hooks(model)
    for name, position in watched.items():
        model.get_submodule(name).register_forward_hook(watch(name, position), with_kwargs=True)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        model.eval()
        without_data = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("cpu"), without_data, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _without_logs():
            state = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype)
                for name, tensor in (*model.named_parameters(), *model.named_buffers())
            }
            with FlopCounterMode(display=False) as counter:
                output = torch.func.functional_call(model, state, (torch.empty(1, *image_shape, dtype=dtype),))
    except CANNOT_RUN as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        size = " x ".join(map(str, image_shape))
        raise UnsupportedModel(f"{type(model).__name__} does not run on one image of {size}: {first_line}") from error
    return Measurement(
        macs=_by_name(model, counter.get_flop_counts()),
        order=tuple(output_shapes),
        input_shapes=input_shapes,
        output_shapes=output_shapes,
        repeated=tuple(name for name, count in runs.items() if count > 1),
        logits_shape=_shape_of_logits(output),
    )


@contextmanager
def _without_logs() -> Iterator[None]:
    """A context in which torch does not log where a forward pass without data failed: the error says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _remove_hooks(model: nn.Module) -> None:
    """Remove a person's hooks from a copy, in place: they may record tensors, and here tensors hold no data."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not is_of_torch(hook)]:
                del hooks[key]


def _with_own_modules(model: nn.Module, tensors: dict[int, Any]) -> nn.Module:
    """Give every place of the model a module of its own, in place: the counter knows a module by one name only."""
    seen: set[int] = set()
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if id(module) in seen:
            parent, _, key = name.rpartition(".")
            setattr(model.get_submodule(parent), key, copied(module, dict(tensors)))
        seen.add(id(module))
    return model


def _shape_of_logits(output: Any) -> tuple[int, ...]:
    logits = getattr(output, "logits", output)
    return tuple(logits.shape[1:]) if isinstance(logits, Tensor) else ()


def _by_name(model: nn.Module, counts: dict[str, dict[Any, int]]) -> dict[str, int]:
    """Multiply-adds by module name. The counter's names begin with the class of the model."""
    top = type(model).__name__
    macs = {}
    for name, operations in counts.items():
        if name == top or name.startswith(f"{top}."):
            macs[name.removeprefix(top).removeprefix(".")] = sum(operations.values()) // 2
    macs.setdefault("", 0)
    return macs
