"""Refuses sizes of an architecture that no machine could build, before memory is taken or a loop begins.

Also says which pixels of an image a model does not use.

A system may grant more memory than there is, and end the process when it is used. So a model that may be large is first
built without data, and its size is compared with the memory that is free.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil
import torch
from torch import nn

from vitrim.asking import UNFORESEEN
from vitrim.errors import NotEnoughMemory, SettingError

DEPTHS = ("depth", "depths", "num_layers", "num_hidden_layers", "layers", "num_blocks")  # names of arguments
MAX_DEPTH = 256  # blocks; to describe a model takes longer with each
MAX_SIZE = 1_000_000  # any other size, outputs included
OUTPUTS = ("num_classes", "num_labels")
USUAL_DEPTH = 48
MAX_UNCHECKED = 250_000_000  # blocks times the square of the largest size: about 1 GB of weights
MAX_UNCHECKED_OUTPUTS = 50_000
MAX_SHOWN = 300  # characters of arguments in a message


def check_sizes(what: str, arguments: Mapping[str, Any], build: Callable[[], nn.Module]) -> None:
    """Refuse absurd numbers among the arguments of an architecture, and a model that does not fit the memory.

    Args:
        what: names the model, for messages.
        arguments: of the architecture. Numbers in lists and dictionaries count too.
        build: builds the model. It is only called, on the device `meta`, if a number is unusually large.

    Raises:
        SettingError: a number is out of range. NotEnoughMemory: the weights do not fit the memory that is free.
    """
    check_numbers(what, arguments)
    sizes = list(_sizes(arguments))
    depth = max([USUAL_DEPTH, *(value for name, value in sizes if name in DEPTHS)])
    size = max((value for name, value in sizes if name not in (*DEPTHS, *OUTPUTS)), default=0)
    num_outputs = max((value for name, value in sizes if name in OUTPUTS), default=0)
    if depth * size**2 <= MAX_UNCHECKED and num_outputs <= MAX_UNCHECKED_OUTPUTS:
        return
    model = None
    # where this fails, the library says what is wrong when the model is built
    with suppress(*UNFORESEEN), torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build()
    if model is not None:
        check_memory(what, model)


def check_numbers(what: str, arguments: Mapping[str, Any]) -> None:
    """Refuse absurd numbers among the arguments of an architecture.

    Args:
        what: names the model, for messages.
        arguments: of the architecture. Numbers in lists and dictionaries count too.

    Raises:
        SettingError: a number is out of range.
    """
    for name, value in _sizes(arguments):
        least, largest = 0 if name in OUTPUTS else -MAX_SIZE, MAX_DEPTH if name in DEPTHS else MAX_SIZE
        if not least <= value <= largest:
            limits = f"0 to {largest:,}" if name in OUTPUTS else f"at most {largest:,}"
            raise SettingError(f"{name} of {what} is {short(value)}; expected {limits}.")


def check_memory(what: str, model: nn.Module) -> None:
    """Refuse a model whose weights do not fit the memory that is free.

    Args:
        what: names the model, for messages.
        model: may be on the device `meta`.

    Raises:
        NotEnoughMemory: says how much is needed and how much is free.
    """
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    free = psutil.virtual_memory().available
    if needed > free:
        raise NotEnoughMemory(
            f"There is not enough memory to build {what}: its weights are {needed / 1e9:.3g} GB, and {free / 1e9:.3g} "
            "GB are free. Use a smaller architecture, or smaller sizes (--model-arg, --img-size, --num-classes)."
        )


def unused_pixels(model: nn.Module, img_size: tuple[int, int]) -> str:
    """Say which pixels are not used because images are no multiple of the patches; empty if all are used.

    Patches are those of a convolution on the image whose kernels do not overlap. Models that pad images use all pixels.

    Args:
        model: as its library builds it.
        img_size: height and width of its images.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            parent = model.get_submodule(name.rpartition(".")[0])
            pads = getattr(parent, "dynamic_img_pad", False) or hasattr(parent, "maybe_pad")  # of timm, of transformers
            is_patches = module.kernel_size == module.stride and module.padding == (0, 0)
            return "" if pads or not is_patches else _unused(img_size, module.stride)
    return ""


def _unused(img_size: Sequence[int], patch_size: Sequence[int]) -> str:
    rests = [side % patch for side, patch in zip(img_size, patch_size, strict=True)]
    if not any(rests):
        return ""
    if len(set(img_size)) == len(set(patch_size)) == 1:
        side, patch, rest = img_size[0], patch_size[0], rests[0]
        used = " or ".join(str(size) for size in (side - rest, side - rest + patch) if size)
        where = f"{rest} {'pixel' if rest == 1 else 'pixels'} at the right and at the bottom are not used"
        sizes = f"images of {side} pixels are no multiple of the patches of {patch} pixels"
        return f"{sizes}: {where}; with images of {used} pixels, all are used"
    sizes = "images of {} x {} pixels are no multiple of the patches of {} x {} pixels".format(*img_size, *patch_size)
    return f"{sizes}: {rests[0]} at the bottom and {rests[1]} at the right are not used"


def _sizes(arguments: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The whole numbers among the arguments, with the names of the arguments that hold them."""
    pending = list(arguments.items())
    while pending:
        name, value = pending.pop()
        if isinstance(value, int) and not isinstance(value, bool):
            yield name, value
        elif isinstance(value, list | tuple):
            pending += [(name, item) for item in value]
        elif isinstance(value, dict):
            pending += [(str(key), item) for key, item in value.items()]


def shown(arguments: Mapping[str, Any]) -> str:
    """Arguments for a message: `depth=2, embed_dim=64`; cut if they are long."""
    text = ", ".join(f"{name}={short(value)}" for name, value in arguments.items())
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def short(value: Any) -> str:
    """A value for a message, cut if it is long."""
    if isinstance(value, int) and value.bit_length() > 100:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits inside
        return f"a {type(value).__name__} that has no text"
    return text if len(text) <= 60 else f"{text[:57]}..."
