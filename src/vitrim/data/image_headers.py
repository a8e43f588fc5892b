"""What the header of an image file says, where Pillow does not tell it. Nothing here imports torch."""

import struct
from typing import Any

from PIL import ImageFile, TiffImagePlugin

WIDTH, BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE_VALUE, SAMPLE_FORMAT, S_MAX_SAMPLE_VALUE = (
    256, 258, 262, 281, 339, 341
)  # fmt: skip  # tags of TIFF
SAMPLE_FORMATS = {1: "unsigned integer", 2: "integer", 3: "floating-point", 5: "complex", 6: "complex"}


def stated_max(tags: Any) -> float | None:
    """The maximum that a TIFF states for its first channel."""
    for tag in (S_MAX_SAMPLE_VALUE, MAX_SAMPLE_VALUE):
        if tags.get(tag) is not None:
            return float(first(tags[tag]))
    return None


def first(value: Any) -> Any:
    """The first of several values of a tag, or its only value."""
    return value[0] if isinstance(value, tuple) else value


def significant_bits(image: ImageFile.ImageFile) -> int | None:
    """The largest number in the sBIT chunk of a PNG; None if there is none."""
    stream = image.fp
    if stream is None:
        return None
    position = stream.tell()
    try:
        stream.seek(8)
        while len(header := stream.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name in (b"IDAT", b"IEND"):
                return None
            if name == b"sBIT":
                return max(stream.read(length)[:4], default=None)
            stream.seek(length + 4, 1)
        return None
    finally:
        stream.seek(position)


def unread_tiff(file: str) -> str | None:
    """What a TIFF has that Pillow does not read; None for other files."""
    try:
        with open(file, "rb") as stream:
            header = stream.read(8)
            if header[:4] not in (b"II*\0", b"MM\0*"):
                return None
            tags = TiffImagePlugin.ImageFileDirectory_v2(header)
            stream.seek(tags.next)
            tags.load(stream)
            bits = tags.get(BITS_PER_SAMPLE)
            sample_format = first(tags.get(SAMPLE_FORMAT)) or 1
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, EOFError, struct.error):
        return None  # damaged
    if not bits or not tags.get(WIDTH):
        return None
    sizes = bits if isinstance(bits, tuple) else (bits,)
    channels = "1 channel" if len(sizes) == 1 else f"{len(sizes)} channels"
    return f"{channels} of {sizes[0]}-bit {SAMPLE_FORMATS.get(sample_format, 'unknown')} values"


def has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether several channels have 16 bits each, of which Pillow reads the upper 8."""
    return ";16" in raw_mode(image)


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the values in the file, such as `RGB;16B`; empty if it tells none."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""
