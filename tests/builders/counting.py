"""A counter of multiply-adds that does not use torch's counter: it adds up the sizes of all matrix products."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class _Products(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (aten.mm.default, aten.bmm.default):
            self.total += out.numel() * args[0].shape[-1]
        elif func in (aten.addmm.default, aten.baddbmm.default):
            self.total += out.numel() * args[1].shape[-1]
        elif func is aten.convolution.default:
            filtered = args[0] if args[6] else out  # a transposed convolution applies one filter for each input value
            self.total += filtered.numel() * args[1][0].numel()
        return out


@torch.no_grad()
def count_macs(model: nn.Module, images: Tensor) -> int:
    """Multiply-adds of one forward pass of the model on these images."""
    with sdpa_kernel(SDPBackend.MATH), _Products() as products:
        model(images)
    return products.total
