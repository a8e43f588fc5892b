"""Refuses arguments of an architecture that no machine could build, before a library tries to for hours."""

from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from vitrim.checks import MAX_CLASSES, MAX_IMG_SIZE, MAX_WHOLE, check_size, check_whole
from vitrim.errors import SettingError, counted, cut_name

MAX_BLOCKS = 1000
MAX_WIDTH = 65_536
MAX_LEVELS = 16  # lists inside lists
DEPTHS = ("depth", "depths", "num_hidden_layers", "num_layers", "layers")
WIDTHS = ("embed_dim", "hidden_size", "hidden_dim", "embed_dims", "hidden_sizes", "dims")
LIMITS = {
    "num_classes": (0, MAX_CLASSES),
    "img_size": (1, MAX_IMG_SIZE),
    "image_size": (1, MAX_IMG_SIZE),
    "patch_size": (1, MAX_IMG_SIZE),
    **dict.fromkeys(DEPTHS, (0, MAX_BLOCKS)),
    **dict.fromkeys(WIDTHS, (1, MAX_WIDTH)),
}
MIN_SQUARES = 4  # weights of a block, in squares of its width: queries, keys, values and the output projection


def check_sizes(arguments: Mapping[str, Any]) -> None:
    """Refuse absurd arguments of an architecture, and weights that do not fit the memory of this machine.

    Args:
        arguments: as they were given. Their types are checked by the library that builds the model.

    Raises:
        SettingError: a number is out of range, or the smallest model with these arguments is too large.
    """
    for name, value in arguments.items():
        for number in _numbers(value, name):
            if isinstance(number, int) and name in LIMITS:
                check_whole(name, number, *LIMITS[name])
            else:
                check_size(cut_name(name), number, MAX_WHOLE)
    num_blocks = max((sum(_whole_numbers(arguments, name)) for name in DEPTHS), default=0)
    width = max((max(_whole_numbers(arguments, name), default=0) for name in WIDTHS), default=0)
    weights = 4 * max(1, num_blocks) * MIN_SQUARES * width**2  # in bytes, of float32
    memory = psutil.virtual_memory().total
    if weights > memory:
        raise SettingError(
            f"A model of width {width} with {counted(max(1, num_blocks), 'block')} has more than "
            f"{weights / 1e9:,.0f} GB of weights; this machine has {memory / 1e9:,.0f} GB of memory. Lower the width "
            "or the depth."
        )


def _whole_numbers(arguments: Mapping[str, Any], name: str) -> list[int]:
    return [number for number in _numbers(arguments.get(name), name) if isinstance(number, int)]


def _numbers(value: Any, name: str, levels: int = MAX_LEVELS) -> Iterator[float]:
    """All numbers in a value."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple | dict):
        if not levels:
            raise SettingError(f"{cut_name(name)} has more than {MAX_LEVELS} lists inside each other.")
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part, name, levels - 1)
