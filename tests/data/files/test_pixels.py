"""Laws of pixels: they are scaled by the type of the file, never by its content, and what is ambiguous is refused."""

import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.deep_images import EXPECTED, RAMP, deep_png, deep_rgb_png, pgm, tiff, twelve_bit_tiff
from builders.images import save_image
from vitrim.data.files.decoding import BROKEN_IMAGE
from vitrim.data.files.pixels import FORMATS, PixelFormat, UnsupportedPixels, check_file, pixel_array
from vitrim.errors import SettingError

Write = Callable[[Path], Path]
GREY = PixelFormat(channels=1)


def of_type(largest: float, dtype: type, smallest: float = 0, **tags: int) -> Write:
    """Writes a TIFF of the ramp from `smallest` to `largest`."""
    values = smallest + RAMP * (largest - smallest)
    values = values if np.dtype(dtype).kind == "f" else values.round()
    return lambda path: tiff(path, values.astype(dtype), **tags)


def assert_ramp(array: np.ndarray, channels: int = 3) -> None:
    """Check that an image is the ramp in all channels; 8 bits of 16 may be rounded in two ways."""
    assert array.shape == (16, 16, channels) and array.dtype == np.uint8
    assert np.abs(array.astype(int) - EXPECTED[:, :, None]).max() <= 1
    assert (array[:, 0] == 0).all() and (array[:, -1] == 255).all()


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", deep_png),
        ("rgb.png", deep_rgb_png),
        ("a.tif", of_type(65535, np.uint16)),
        ("inverted.tif", lambda path: tiff(path, ((1 - RAMP) * 65535).round().astype(np.uint16), photometric=0)),
        ("stated.tif", of_type(4095, np.uint16, max_sample_value=4095)),
        ("stated.tif", of_type(1023, np.uint16, s_max_sample_value=1023)),
        ("packed.tif", twelve_bit_tiff),
        ("a.pgm", lambda path: pgm(path, 65535)),
        ("a.pgm", lambda path: pgm(path, 4095)),
        ("a.pgm", lambda path: pgm(path, 1000)),
    ],
)
def test_more_than_8_bits_are_scaled_by_what_the_file_states(tmp_path: Path, name: str, write: Write) -> None:
    file = str(write(tmp_path / name))
    assert_ramp(pixel_array(file))
    assert_ramp(pixel_array(file, GREY), channels=1)
    check_file(file, PixelFormat(), decode=True)


@pytest.mark.parametrize("largest", [255, 300, 4095])
def test_the_content_does_not_decide_the_scale(tmp_path: Path, largest: int) -> None:
    for file in (deep_png(tmp_path / "a.png", largest), of_type(largest, np.uint16)(tmp_path / "a.tif")):
        assert pixel_array(str(file)).max() == round(largest / 257)


RANGES = {
    "float": (of_type(1, np.float32), (0, 1), "floating-point"),
    "negative float": (of_type(1, np.float32, -1), (-1, 1), "floating-point"),
    "int32": (of_type(1000, np.int32, -1000), (-1000, 1000), "32-bit integer"),
    "int16": (of_type(1000, np.int16, -1000), (-1000, 1000), "16-bit integer"),
    "uint32": (of_type(2**32 - 1, np.uint32), (0, 2**32 - 1), "32-bit unsigned"),
    "brightest pixel": (of_type(3021, np.uint16, max_sample_value=3021), (0, 3021), "states 3021"),
}


@pytest.mark.parametrize("kind", RANGES)
def test_a_type_without_a_range_is_refused_and_read_with_a_range(tmp_path: Path, kind: str) -> None:
    write, value_range, message = RANGES[kind]
    file = str(write(tmp_path / "a.tif"))
    for read in (lambda: pixel_array(file), lambda: check_file(file, PixelFormat(), decode=False)):
        with pytest.raises(UnsupportedPixels, match=rf"a\.tif has .*{message}.*--value-range"):
            read()
    assert_ramp(pixel_array(file, PixelFormat(value_range=value_range)))


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.png", lambda path: deep_png(path, 4095)),
        ("sbit.png", lambda path: deep_png(path, 4095, significant_bits=12)),
        ("a.tif", of_type(4095, np.uint16)),
        ("a.pgm", lambda path: pgm(path, 4095)),
    ],
)
def test_a_range_is_of_the_values_in_the_file(tmp_path: Path, name: str, write: Write) -> None:
    assert_ramp(pixel_array(str(write(tmp_path / name)), PixelFormat(value_range=(0, 4095))))


def test_values_outside_the_range_become_black_or_white(tmp_path: Path) -> None:
    file = str(of_type(1000, np.int16, -1000)(tmp_path / "a.tif"))
    window = pixel_array(file, PixelFormat(value_range=(-200, 200)))[0, :, 0]
    expected = ((np.round(2000 * RAMP[0] - 1000) + 200) / 400 * 255).round().clip(0, 255)
    assert window.tolist() == expected.tolist() and (window == 0).sum() == (window == 255).sum() > 4


def test_files_of_8_bits_do_not_need_the_range(tmp_path: Path) -> None:
    file = str(save_image(tmp_path / "a.png", mode="L"))
    assert np.array_equal(pixel_array(file), pixel_array(file, PixelFormat(value_range=(0, 4095))))


@pytest.mark.parametrize("write", [deep_png, deep_rgb_png])
def test_significant_bits_are_ambiguous(tmp_path: Path, write: Callable[..., Path]) -> None:
    with pytest.raises(UnsupportedPixels, match=r"12 bits are significant.*4095"):
        pixel_array(str(write(tmp_path / "a.png", significant_bits=12)))
    assert_ramp(pixel_array(str(write(tmp_path / "b.png", significant_bits=16))))


def test_16_bit_colours_cannot_be_read_with_a_range(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPixels, match="Pillow reads only the upper 8 bits"):
        pixel_array(str(deep_rgb_png(tmp_path / "a.png", 4095)), PixelFormat(value_range=(0, 4095)))


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not a number"), (-np.inf, "infinite")])
def test_pixels_that_are_no_numbers_are_refused(tmp_path: Path, value: float, message: str) -> None:
    values = RAMP.astype(np.float32)
    values[3, 4] = value
    file, with_range = str(tiff(tmp_path / "a.tif", values)), PixelFormat(value_range=(0, 1))
    for read in (lambda: pixel_array(file, with_range), lambda: check_file(file, with_range, decode=True)):
        with pytest.raises(UnsupportedPixels, match=rf"a\.tif has pixels that are {message}"):
            read()


def test_a_tiff_that_pillow_does_not_read_is_no_damaged_file(tmp_path: Path) -> None:
    for read in (pixel_array, lambda file: check_file(file, PixelFormat(), decode=False)):
        with pytest.raises(UnsupportedPixels, match="1 channel of 64-bit floating-point values"):
            read(str(tiff(tmp_path / "a.tif", RAMP)))


@pytest.mark.parametrize(("low", "high"), [(1, 0), (0, 0), (0, float("nan")), (0, float("inf"))])
def test_a_range_must_have_two_ends(low: float, high: float) -> None:
    with pytest.raises(SettingError, match="value_range is"):
        PixelFormat(value_range=(low, high))


# Channels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_any_image_becomes_grey_as_pillow_converts_it(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    rgb = Image.open(save_image(tmp_path / "rgb.png"))
    image = rgb.convert("L").convert(mode) if mode in ("1", "LA") else rgb.convert(mode)
    image.save(path)
    assert np.array_equal(pixel_array(str(path), GREY)[:, :, 0], np.asarray(Image.open(path).convert("L")))


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGBA", 4)])
def test_images_with_alpha_have_its_channel(tmp_path: Path, mode: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(pixel_array(str(tmp_path / "a.png"), PixelFormat(channels=channels)), values)


@pytest.mark.parametrize(
    ("mode", "channels", "message"),
    [
        ("L", 4, r"1 channel \(L\).*4 input channels; it reads images with alpha"),
        ("RGB", 4, r"3 channels \(RGB\)"),
        ("CMYK", 4, r"4 channels \(CMYK\)"),
        ("L", 2, r"1 channel \(L\).*grey images with alpha"),
        ("RGBA", 5, r"4 channels \(RGBA\).*no image file is read"),
        ("I;16", 4, "1 channel"),
    ],
)
def test_images_without_the_channels_are_refused(tmp_path: Path, mode: str, channels: int, message: str) -> None:
    path = tmp_path / "a.tif"
    if mode == "I;16":
        of_type(65535, np.uint16)(path)
    else:
        Image.new(mode, (8, 8)).save(path)
    with pytest.raises(UnsupportedPixels, match=message):
        check_file(str(path), PixelFormat(channels=channels), decode=False)


def test_channels_are_counted_from_1() -> None:
    with pytest.raises(SettingError, match="channels is 0"):
        PixelFormat(channels=0)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_formats_that_would_start_another_program_are_not_opened(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a program was started"))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / f"image{suffix}").write_bytes(eps)
    with pytest.raises(BROKEN_IMAGE):
        pixel_array(str(tmp_path / f"image{suffix}"))
    assert "EPS" not in FORMATS


def test_an_image_of_absurd_size_is_broken(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(BROKEN_IMAGE):
        pixel_array(str(tmp_path / "image.png"))
