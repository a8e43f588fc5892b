"""What the header of an image file says, where Pillow does not tell it. Nothing here imports torch."""

import struct
from typing import Any, BinaryIO

from PIL import ImageFile

WIDTH, BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLES_PER_PIXEL = 256, 258, 262, 277  # tags of TIFF
MAX_SAMPLE_VALUE, SAMPLE_FORMAT, S_MAX_SAMPLE_VALUE = 281, 339, 341
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
    """What a TIFF has that Pillow does not read; None for files that are damaged or no TIFF."""
    try:
        with open(file, "rb") as stream:
            tags = _first_values(stream)
    except (OSError, struct.error):
        return None
    if not tags.get(WIDTH) or not tags.get(BITS_PER_SAMPLE):
        return None
    samples = tags.get(SAMPLES_PER_PIXEL, 1)
    channels = "1 channel" if samples == 1 else f"{samples} channels"
    values = SAMPLE_FORMATS.get(tags.get(SAMPLE_FORMAT, 1), "unknown")
    return f"{channels} of {tags[BITS_PER_SAMPLE]}-bit {values} values"


def _first_values(stream: BinaryIO) -> dict[int, int]:
    """The first value of each tag of a TIFF that is a whole number. Pillow would warn about damaged ones.

    Raises:
        struct.error: the file ends before the last tag.
    """
    header = stream.read(8)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(header[:4])
    if order is None:
        return {}
    stream.seek(struct.unpack(f"{order}I", header[4:])[0])
    entries = [stream.read(12) for _ in range(struct.unpack(f"{order}H", stream.read(2))[0])]
    tags = {}
    for entry in entries:
        tag, kind, count = struct.unpack(f"{order}HHI", entry[:8])
        size, code = {3: (2, "H"), 4: (4, "I")}.get(kind, (0, ""))  # of a short and a long integer
        if size * count > 4:  # the values are elsewhere
            stream.seek(struct.unpack(f"{order}I", entry[8:])[0])
            tags[tag] = struct.unpack(f"{order}{code}", stream.read(size))[0]
        elif size and count:
            tags[tag] = struct.unpack(f"{order}{code}", entry[8 : 8 + size])[0]
    return tags


def has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether several channels have 16 bits each, of which Pillow reads the upper 8."""
    return ";16" in raw_mode(image)


def raw_mode(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the layout of the values in the file, such as `RGB;16B`; empty if it tells none."""
    arguments = image.tile[0][3] if image.tile else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""
