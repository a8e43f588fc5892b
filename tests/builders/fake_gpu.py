"""A GPU that has no memory: its tensors have a shape and no values, copies to it are counted, waiting is an error.

Tensors on the CPU are computed as usual. Operations on tensors of the device return tensors of the right shape. What a
real GPU would have to finish first raises `HostWaits`: reading a value, a result whose size depends on values, a copy
to the CPU, and a copy from memory that is not pinned.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._unsafe_index.Tensor)


class HostWaits(AssertionError):
    """The CPU would wait here until the GPU has finished."""


@dataclass
class DeviceCounts:
    """What happened on the device.

    Attributes:
        sent: the tensors that were copied to it from the CPU, in order.
        calls: number of operations with tensors of the device.
    """

    sent: list[Tensor] = field(default_factory=list)
    calls: int = 0

    @property
    def bytes_to_device(self) -> int:
        """Size of all tensors that were copied from the CPU."""
        return sum(tensor.nbytes for tensor in self.sent)


class _FakeGpu(TorchDispatchMode):
    """Runs operations on CPU tensors, and lets those on the device compute shapes only."""

    def __init__(self, device: str, fake: FakeTensorMode | None, counts: DeviceCounts, waiting_copies: bool) -> None:
        super().__init__()
        self.waiting_copies = waiting_copies
        self.device, self.fake, self.counts = device, fake, counts
        self.pinned: dict[int, Tensor] = {}  # by address; kept until the end, so no address is used twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_cpu = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor) and tensor.device.type == "cpu"]
        made_on_device = torch.device(kwargs.get("device") or "cpu").type == self.device
        if len(on_cpu) == len(tensors) and (not made_on_device or func is aten._pin_memory.default):
            return self._on_cpu(func, args, kwargs)
        self._refuse_waiting(func, args, kwargs)
        if func in COPIES and on_cpu:
            self._count_copy(func, args, kwargs, on_cpu[0])
        elif any(tensor.ndim for tensor in on_cpu):  # the value of a scalar is passed with the call
            raise HostWaits(f"{func} copies a tensor from the CPU by itself")
        self.counts.calls += 1
        if self.fake is None:
            return func(*args, **kwargs)
        with self.fake:
            return func(*args, **kwargs)

    def _on_cpu(self, func: Any, args: Any, kwargs: Any) -> Any:
        pin = func is aten._pin_memory.default or bool(kwargs.pop("pin_memory", None))
        if func is aten.is_pinned.default:
            return self._is_pinned(args[0])
        with unset_fake_temporarily():
            if not pin:
                return func(*args, **kwargs)
            out = args[0].clone() if func is aten._pin_memory.default else func(*args, **kwargs)
            self.pinned[out.untyped_storage().data_ptr()] = out
            return out

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def _refuse_waiting(self, func: Any, args: Any, kwargs: Any) -> None:
        to_cpu = func is aten._to_copy.default and torch.device(kwargs.get("device") or self.device).type == "cpu"
        if to_cpu or (func is aten.copy_.default and args[0].device.type == "cpu"):
            raise HostWaits("a tensor is copied to the CPU")
        if func in INDEXED:
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
            fills = func is not aten.index.Tensor and len(args[1]) == 1 and args[2].numel() == 1
            waits = waits and not fills  # one value at a mask: torch uses masked_fill
        elif func is aten.repeat_interleave.Tensor:
            waits = kwargs.get("output_size") is None
        else:
            waits = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))
        if waits:
            raise HostWaits(f"{func} needs values of the device")

    def _count_copy(self, func: Any, args: Any, kwargs: Any, source: Tensor) -> None:
        self.counts.sent.append(source)
        if self.waiting_copies:
            return
        shape = tuple(source.shape)
        if not self._is_pinned(source):
            raise HostWaits(f"a tensor of shape {shape} is copied from memory that is not pinned")
        non_blocking = kwargs.get("non_blocking") or (func is aten.copy_.default and len(args) > 2 and args[2])
        if not non_blocking:
            raise HostWaits(f"a tensor of shape {shape} is copied without non_blocking")


@contextmanager
def fake_gpu(device: Literal["cuda", "meta"] = "cuda", *, waiting_copies: bool = False) -> Iterator[DeviceCounts]:
    """In the block, `device` is a GPU without memory. Make models and images for it with `device=...` in the block.

    Args:
        device: `cuda` also checks that copies are made from pinned memory; its tensors have no backward pass. `meta`
            has one, but code for CUDA does not recognise it.
        waiting_copies: allow copies to the device that wait, as those of a model before its training. `meta` always
            does.

    Yields:
        The counts, which grow in the block.
    """
    counts = DeviceCounts()
    with ExitStack() as stack:
        fake = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True)) if device == "cuda" else None
        stack.enter_context(_FakeGpu(device, fake, counts, waiting_copies or device == "meta"))
        yield counts
