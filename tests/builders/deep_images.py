"""Image files of more than 8 bits, among them kinds that Pillow reads but does not write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RAMP = np.tile(np.linspace(0, 1, 16), (16, 1))  # from black at the left to white at the right
EXPECTED = (RAMP * 255).round().astype(np.uint8)


def deep_png(path: Path, largest: int = 65535, significant_bits: int | None = None) -> Path:
    """A 16-bit grey PNG of the ramp up to `largest`, with an sBIT chunk on request."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((RAMP * largest).round().astype(np.uint16)).save(path)
    if significant_bits is not None:
        content = path.read_bytes()
        path.write_bytes(content[:33] + _chunk(b"sBIT", bytes([significant_bits])) + content[33:])
    return path


def deep_rgb_png(path: Path, largest: int = 65535, significant_bits: int | None = None) -> Path:
    """A PNG of 16 bits for each of three colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.repeat((RAMP * largest).round().astype(">u2")[..., None], 3, axis=2)
    header = struct.pack(">IIBBBBB", *RAMP.shape, 16, 2, 0, 0, 0)
    bits = _chunk(b"sBIT", bytes([significant_bits] * 3)) if significant_bits else b""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    chunks = _chunk(b"IHDR", header) + bits + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def tiff(path: Path, values: np.ndarray, *, bits: int = 0, samples: int = 1, **tags: int) -> Path:
    """An uncompressed TIFF of little-endian values, with the tags that a camera or a scanner would write.

    Args:
        values: `(16, 16)`, or the bytes of the pixels as uint8 if `bits` is given.
        bits: for each value; by default those of the type of `values`.
        samples: values of each pixel.
        tags: further tags by name: `photometric`, `max_sample_value`, `s_max_sample_value`.
    """
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    entries = {256: 16, 257: 16, 258: bits or 8 * values.dtype.itemsize, 259: 1, 262: tags.get("photometric", 1)}
    entries |= {273: 8, 277: samples, 278: 16, 279: len(data)}
    entries |= {281: tags["max_sample_value"]} if "max_sample_value" in tags else {}
    entries |= {339: sample_format}
    entries |= {341: tags["s_max_sample_value"]} if "s_max_sample_value" in tags else {}
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in entries.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    start = struct.pack("<I", 8 + len(data))
    path.write_bytes(b"II*\0" + start + data + struct.pack("<H", len(entries)) + directory + bytes(4))
    return path


def twelve_bit_tiff(path: Path) -> Path:
    """A TIFF that stores two values in three bytes."""
    pairs = (RAMP * 4095).round().astype(np.uint16).reshape(-1, 2)
    packed = [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
    return tiff(path, np.stack(packed, axis=1).astype(np.uint8), bits=12)


def pgm(path: Path, largest: int) -> Path:
    """A grey map of the ramp that states `largest` as its maximum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P5 16 16 %d\n" % largest + (RAMP * largest).round().astype(">u2").tobytes())
    return path


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
