"""Into how many micro-batches a batch is divided so that an update fits into memory."""

from collections.abc import Callable, Mapping
from functools import partial

import psutil
import torch
from torch import nn

from vitrim.errors import SettingError

FRACTION_OF_FREE = {"cuda": 0.85, "cpu": 0.5}  # the rest is for what is not measured, and for other programs
TRIED = (2, 4)  # images of the two passes that are measured
MOMENTS_BYTES = 8  # of each weight; AdamW makes them at its first update


def micro_batches_that_fit(
    model: nn.Module, train_on: Callable[[int], object], num_images: int, smallest: int = 1
) -> int:
    """Measure the smallest number of micro-batches with which one update of a training fits into memory.

    Args:
        model: the model that is trained. Its weights and buffers are not changed.
        train_on: makes a forward and backward pass of so many images.
        num_images: images of one update on this process.
        smallest: the result is this times a power of 2.

    Raises:
        SettingError: not even two images fit.
    """
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    moments = MOMENTS_BYTES * sum(weight.numel() for weight in model.parameters())
    model.train()
    bytes_with = {count: bytes_of(partial(train_on, count), device) for count in TRIED}
    model.zero_grad(set_to_none=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    return num_micro_batches(num_images, bytes_with, free_bytes(device) - moments, smallest)


def free_bytes(device: torch.device) -> float:
    """Bytes that a training on this device may use besides those in use now."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return FRACTION_OF_FREE["cuda"] * (free - torch.cuda.memory_allocated(device))
    return FRACTION_OF_FREE["cpu"] * psutil.virtual_memory().available


def bytes_of(run: Callable[[], object], device: torch.device) -> int:
    """The maximum of the bytes that a forward and backward pass holds at one time.

    On a GPU, the allocator counts them. Elsewhere, they are what autograd keeps for the backward pass.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    kept: dict[int, torch.UntypedStorage] = {}  # by address; kept, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def num_micro_batches(num_images: int, bytes_with: Mapping[int, float], free: float, smallest: int = 1) -> int:
    """The smallest number of equal micro-batches with which an update fits.

    Args:
        num_images: images of one update on this process.
        bytes_with: bytes of a forward and backward pass, by the number of images, for two numbers. They grow linearly.
        free: bytes that the pass may take.
        smallest: the result is this times a power of 2.

    Raises:
        SettingError: not even the smallest micro-batch fits.
    """
    few, more = sorted(bytes_with)
    slope = max(0.0, (bytes_with[more] - bytes_with[few]) / (more - few))
    fixed = max(0.0, bytes_with[few] - slope * few)
    count = smallest
    while (needed := fixed + slope * num_images / count) > free:
        if num_images % (4 * count):  # mixing needs pairs of images
            raise SettingError(
                f"batch_size is auto, but {num_images // count} images of one micro-batch need {needed / 1e9:.2g} GB "
                f"and {max(0.0, free) / 1e9:.2g} GB are free. Use a smaller model or smaller images, or free memory."
            )
        count *= 2
    return count
