"""Copy tensors to a device without waiting for it.

A copy to a GPU waits unless it is from pinned memory. Each copy costs about as much as starting a kernel, so small
tensors are copied together. On other devices, these functions are plain copies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; where a tensor starts in a common copy


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor`, of any shape, on `device`. A copy to a CUDA device is made from pinned memory."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")  # else the copy may be read before it is complete


def send_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return small CPU tensors on `device`, with one copy for all of them on a CUDA device.

    There, they are views of one tensor; do not change them in place.
    """
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for tensor, view in zip(tensors, _unpack(packed, starts, tensors), strict=True):
        view.copy_(tensor)
    return _unpack(packed.to(device, non_blocking=True), starts, tensors)


def _unpack(packed: Tensor, starts: Sequence[int], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Views of `packed`, `(bytes,)` uint8, with the types and shapes of `tensors`."""
    return [
        packed[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for start, tensor in zip(starts, tensors, strict=True)
    ]


def send_images(pixels: Tensor, index: Tensor, device: torch.device) -> Tensor:
    """Return `pixels[index]` on `device`.

    Args:
        pixels: `(n, channels, H, W)` uint8. They are indexed where they are.
        index: `(B,)` int64 on the CPU.
        device: of the result.
    """
    if pixels.device.type != "cpu":
        return send(pixels[send(index, pixels.device)], device)
    if device.type != "cuda":
        return pixels[index].to(device)
    chosen = torch.empty(len(index), *pixels.shape[1:], dtype=pixels.dtype, pin_memory=True)
    return torch.index_select(pixels, 0, index, out=chosen).to(device, non_blocking=True)
