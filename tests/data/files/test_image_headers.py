"""Laws of reading headers: nothing is read from files that are damaged or of another kind."""

import struct
from pathlib import Path

import numpy as np
import pytest

from builders.deep_images import RAMP, deep_png, tiff
from vitrim.data.files.image_headers import unread_tiff


@pytest.mark.parametrize("length", [0, 4, 8, 100, 2060, 2100])
def test_a_truncated_tiff_is_damaged(tmp_path: Path, length: int) -> None:
    file = tiff(tmp_path / "a.tif", RAMP)
    assert unread_tiff(str(file)) == "1 channel of 64-bit floating-point values"
    file.write_bytes(file.read_bytes()[:length])
    assert unread_tiff(str(file)) is None


def test_other_files_are_no_tiff(tmp_path: Path) -> None:
    assert unread_tiff(str(deep_png(tmp_path / "a.png"))) is None
    (tmp_path / "b.tif").write_text("II* no tags")
    assert unread_tiff(str(tmp_path / "b.tif")) is None
    assert unread_tiff(str(tmp_path / "missing.tif")) is None


def test_several_channels_are_counted(tmp_path: Path) -> None:
    values = np.zeros((16, 16), dtype=np.float32)
    assert unread_tiff(str(tiff(tmp_path / "a.tif", values))) == "1 channel of 32-bit floating-point values"


def test_big_endian_files_are_read(tmp_path: Path) -> None:
    entries = ((256, 3, 1, 16), (258, 3, 3, None), (277, 3, 1, 3), (339, 3, 1, 3))
    values = b"".join(
        struct.pack(">HHI", tag, kind, count)
        + (struct.pack(">I", 100) if value is None else struct.pack(">HH", value, 0))
        for tag, kind, count, value in entries
    )
    content = b"MM\0*" + struct.pack(">IH", 8, len(entries)) + values + bytes(4)
    file = tmp_path / "a.tif"
    file.write_bytes(content.ljust(100, b"\0") + struct.pack(">HHH", 16, 16, 16))
    assert unread_tiff(str(file)) == "3 channels of 16-bit floating-point values"
