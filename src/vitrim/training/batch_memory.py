"""Into how many micro-batches a batch is divided so that an update fits into memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import psutil
import torch
from accelerate import Accelerator
from torch import nn

from vitrim.asking import is_out_of_memory
from vitrim.errors import NotEnoughMemory, SettingError, counted
from vitrim.precision import float64_device
from vitrim.runs.progress import log

FRACTION_OF_FREE = {"cuda": 0.85, "cpu": 0.5}  # the rest is for what is not measured, and for other programs
TRIED = (2, 4)  # images of the two passes that are measured
BYTES_OF_WEIGHT = 12  # moments of AdamW and buckets of several processes; both are made at the first update


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What was measured on one process, in bytes.

    Attributes:
        few: of a forward and backward pass of `TRIED[0]` images; infinite if it did not fit.
        more: the same for `TRIED[1]` images.
        free: what a pass may take.
    """

    few: float
    more: float
    free: float

    def needed(self, num_images: float) -> float:
        """Bytes of a pass of so many images, which grow linearly."""
        slope = max(0.0, (self.more - self.few) / (TRIED[1] - TRIED[0]))
        return max(0.0, self.few - slope * TRIED[0]) + slope * num_images


def measure_memory(model: nn.Module, train_on: Callable[[int], object]) -> Memory:
    """Measure the memory of two small passes.

    Args:
        model: the model that is trained. Its weights and buffers are not changed.
        train_on: makes a forward and backward pass of so many images.
    """
    device = next(model.parameters()).device
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = []
    model.train()
    try:
        train_on(TRIED[0])  # the first pass prepares the device
        for num_images in TRIED:
            model.zero_grad(set_to_none=True)  # so that both passes make the gradients
            found.append(float(bytes_of(partial(train_on, num_images), device)))
    except torch.OutOfMemoryError:
        found = [math.inf, math.inf]
    model.zero_grad(set_to_none=True)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    later = BYTES_OF_WEIGHT * sum(weight.numel() for weight in model.parameters())
    return Memory(few=found[0], more=found[1], free=free_bytes(device) - later)


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


def fitting_parts(
    model: nn.Module,
    train_on: Callable[[int], object],
    num_images: int,
    accelerator: Accelerator,
    smallest: int = 1,
) -> int:
    """The number of micro-batches with which an update of this process fits into memory. All processes decide alike.

    Args:
        model: the model that is trained. Its weights and buffers are not changed.
        train_on: makes a forward and backward pass of so many images.
        num_images: images of one update on this process.
        accelerator: of the processes.
        smallest: the result is a multiple of this.

    Raises:
        SettingError: not even two images fit.
    """
    own = measure_memory(model, train_on)
    device = float64_device(accelerator.device)
    measured = torch.tensor([[own.few, own.more, -own.free]], dtype=torch.float64, device=device)
    few, more, used = accelerator.gather(measured).max(dim=0).values.tolist()  # of all processes
    return num_micro_batches(num_images, Memory(few=few, more=more, free=-used), smallest)


def rehearsed_parts(
    model: nn.Module, train_on: Callable[[int], object], num_images: int, accelerator: Accelerator, parts: int
) -> int:
    """The number of micro-batches, from `parts` on, of which one fits into the memory of every process.

    Several processes cannot find this in an update: those with enough memory would wait in the middle of it.

    Args:
        model: the model that is trained. Its weights and buffers are not changed.
        train_on: makes a forward and backward pass of so many images.
        num_images: images of one update on this process.
        accelerator: of the processes.
        parts: the number of micro-batches to begin with.

    Raises:
        NotEnoughMemory: a micro-batch cannot be divided any more.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    while True:
        fits = 1.0
        try:
            train_on(num_images // parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = 0.0
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        if accelerator.gather(torch.tensor([fits], device=accelerator.device)).min().item():
            return parts
        parts = finer_parts(num_images, parts, accelerator.device)
        log(f"the memory of a process is not enough; trying micro-batches of {num_images // parts} images")


def finer_parts(num_images: int, parts: int, device: torch.device) -> int:
    """The number of micro-batches with which an update needs about half the memory.

    Args:
        num_images: of one update on this process.
        parts: the number of micro-batches with which the memory was not enough.
        device: whose memory was not enough.

    Raises:
        NotEnoughMemory: a micro-batch cannot be divided any more.
    """
    more = [count for count in possible_parts(num_images) if count > parts]
    if not more:
        least = num_images // parts
        even = "" if least == 2 else f" and the batch of {num_images} images must be divided evenly"
        raise NotEnoughMemory(
            f"Out of memory on {device.type} in a training with {counted(least, 'image')} in one pass. A micro-batch "
            f"cannot be smaller, because images are mixed in pairs{even}. Use smaller images or a smaller model, or "
            "free memory."
        )
    return next((count for count in more if count >= 2 * parts), more[-1])


def nearest_parts(num_images: int, at_least: int) -> int:
    """The smallest possible number of micro-batches from `at_least` on; the largest possible one if there is none."""
    possible = possible_parts(num_images)
    return next((count for count in possible if count >= at_least), possible[-1])


def possible_parts(num_images: int) -> list[int]:
    """Into how many equal micro-batches so many images can be divided. Each has pairs, because mixing needs them."""
    return [count for count in range(1, num_images // 2 + 1) if num_images % (2 * count) == 0]


def num_micro_batches(num_images: int, memory: Memory, smallest: int = 1) -> int:
    """The smallest number of equal micro-batches with which an update fits.

    Args:
        num_images: images of one update on this process.
        memory: what was measured; with several processes, the worst of them.
        smallest: the result is a multiple of this.

    Raises:
        SettingError: not even two images fit.
    """
    possible = [count for count in possible_parts(num_images) if count % smallest == 0]
    for count in possible:
        if memory.needed(num_images / count) <= memory.free:
            return count
    least = num_images // possible[-1] if possible else num_images
    raise SettingError(
        f"batch_size is auto, but {least} images of one micro-batch need {memory.needed(least) / 1e9:.2g} GB and "
        f"{max(0.0, memory.free) / 1e9:.2g} GB are free. Use a smaller model or smaller images, or free memory."
    )
