"""Number formats: of a model's matrix products, fp32 or bf16 by autocast; and float64 for sums over images."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from vitrim.copying import copied

Precision = Literal["auto", "fp32", "bf16"]
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # autocast computes them in bf16, weights and bias included

WITHOUT_FLOAT64 = ("mps",)  # types of devices


def float64_device(device: torch.device) -> torch.device:
    """The device for float64 numbers: this one, or the CPU if this one has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def in_float64(tensor: Tensor) -> Tensor:
    """The tensor, of any shape, in float64 on its `float64_device`."""
    return tensor.to(float64_device(tensor.device)).double()


def computes_in_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether matrix products are computed in bf16. `auto` is bf16 on a GPU that has it, and else fp32."""
    return precision == "bf16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )


@contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """A context in which forward passes on `device` compute in this precision."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bf16(device, precision)):
        yield


def with_bf16_products(model: nn.Module) -> nn.Module:
    """A copy whose linear and convolutional layers hold bf16 weights, for forward passes under autocast.

    Autocast converts these weights to bf16 in every forward pass. The copy is converted once, and its outputs are equal
    bit for bit. Other weights, such as norms and position embeddings, stay as they are.
    """
    model = copied(model)
    for module in model.modules():
        if type(module) in PRODUCTS:
            module.to(torch.bfloat16)
    return model
