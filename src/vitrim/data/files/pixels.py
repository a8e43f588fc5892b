"""The pixels of one image file, as 8 bits for each channel.

Values are scaled by what the file says about its type, never by the values in it. What the file leaves open is refused:
then the user says the range of the values. Which files are decoded, and by how many threads, is in `decoding`. Nothing
here imports torch.
"""

from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple, TypedDict

import numpy as np
from PIL import Image, ImageFile

from vitrim.data.files.image_headers import (
    BITS_PER_SAMPLE,
    PHOTOMETRIC,
    SAMPLE_FORMAT,
    SAMPLE_FORMATS,
    first,
    has_16_bits,
    raw_mode,
    significant_bits,
    stated_max,
    unread_tiff,
)
from vitrim.errors import SettingError
from vitrim.runs.text_files import check_regular

# Formats that Pillow decodes itself. Of all others, EPS would start another program (Ghostscript), whatever the suffix.
FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "SGI", "PCX", "QOI"),
    *("ICO", "HEIF"),  # HEIF if a plugin is registered for it
)
MAX_UINT16 = 65535
FULL_RANGES = tuple(2**bits - 1 for bits in range(9, 17))  # the largest values of cameras with 9 to 16 bits
MODES_OF_CHANNELS = {2: ("LA",), 4: ("RGBA",)}
SAY_THE_RANGE = (
    "Say which values are black and white with value_range (on the command line --value-range {example}), or convert "
    "the files to 8 bits."
)


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """What the pixels of a data set become.

    Attributes:
        channels: 3 for RGB, 1 for grey. With another number, images must have as many channels.
        value_range: the values that become 0 and 255, for files with more than 8 bits for each channel. By default the
            range of the type that the file states.

    Raises:
        SettingError: a value is out of range.
    """

    channels: int = 3
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise SettingError(f"channels is {self.channels}; expected at least 1.")
        found = self.value_range
        if found is not None and not (len(found) == 2 and bool(np.isfinite(found).all()) and found[0] < found[1]):
            raise SettingError(
                f"value_range is {found}; expected two finite numbers, the smaller one first, such as (0, 4095)."
            )


class PixelOptions(TypedDict, total=False):
    """The fields of `PixelFormat`, as arguments of `load_data`."""

    channels: int
    value_range: tuple[float, float] | None


RGB = PixelFormat()


class UnsupportedPixels(Exception):
    """The pixels of a file would be a guess, or it lacks channels that the model needs.

    Attributes:
        file: path, or a description of a stream.
        kind: what was found, to follow the words "has" or "have".
        advice: what to do.
    """

    def __init__(self, file: str, kind: str, advice: str) -> None:
        super().__init__(file, kind, advice)
        self.file, self.kind, self.advice = file, kind, advice

    def __str__(self) -> str:
        return f"{self.file} has {self.kind}. {self.advice}"


class _Values(NamedTuple):
    """How the numbers of an image with one channel of more than 8 bits are read.

    Attributes:
        max: the largest value of the type; None if the type does not say it.
        kind: what the file has, for messages.
        example: a range that such files may have.
        stored_max: the value that `max` has in the file, if Pillow has scaled the values to `max`; 0 if it is unknown.
        inverted: whether 0 is white.
        unsigned: whether Pillow's int32 are uint32.
    """

    max: int | None
    kind: str
    example: str = "0,4095"
    stored_max: int | None = None
    inverted: bool = False
    unsigned: bool = False


def pixel_array(file: str | BinaryIO, pixel_format: PixelFormat = RGB) -> np.ndarray:
    """Decode a file to `(H, W, channels)` uint8.

    Raises:
        UnsupportedPixels: the pixels would be a guess, or the file lacks channels.
        Exception: one of `decoding.BROKEN_IMAGE`; the file cannot be read or decoded.
    """
    with open_image(file) as image:
        values = check_pixels(image, file, pixel_format)
        if values is not None:
            grey = _scaled(image, file, values, pixel_format.value_range)
            return np.repeat(grey[:, :, None], pixel_format.channels, axis=2)
        array = np.array(_converted(image, pixel_format.channels))
        return array[:, :, None] if array.ndim == 2 else array


def open_image(file: str | BinaryIO) -> ImageFile.ImageFile:
    """Open an image without decoding it. What the file is, is told by its content: a suffix may be wrong.

    Raises:
        UnsupportedPixels: a TIFF of a kind that Pillow does not read.
        Exception: one of `decoding.BROKEN_IMAGE`.
    """
    if isinstance(file, str):
        check_regular(file)
    try:
        return Image.open(file, formats=_formats())
    except Image.UnidentifiedImageError:
        kind = unread_tiff(file) if isinstance(file, str) else None
        if kind is None:
            raise
        raise UnsupportedPixels(_name(file), kind, "Pillow cannot read this; convert the files to 8 bits.") from None


def _formats() -> tuple[str, ...]:
    """The formats of `FORMATS` that the installed Pillow reads."""
    Image.init()  # at once after the first call
    return tuple(name for name in FORMATS if name in Image.OPEN)


def check_pixels(image: ImageFile.ImageFile, file: str | BinaryIO, pixel_format: PixelFormat) -> _Values | None:
    """Refuse an opened image by its header.

    Returns:
        How the values of one channel of more than 8 bits are read; None for other images.

    Raises:
        UnsupportedPixels: as `pixel_array`.
    """
    channels, value_range = pixel_format.channels, pixel_format.value_range
    if not image.mode.startswith(("I", "F")):
        _check_channels(image, file, channels)
        if has_16_bits(image):
            _check_several_deep_channels(image, file, value_range)
        return None
    if channels not in (1, 3):
        raise _lacks_channels(file, "1 channel", channels)
    values = _values_of(image)
    if value_range is None and values.max is None:
        raise UnsupportedPixels(_name(file), values.kind, SAY_THE_RANGE.format(example=values.example))
    if value_range is not None and values.stored_max == 0:
        advice = "Pillow scales such values to 16 bits, so value_range cannot be used; convert the files to 8 bits."
        raise UnsupportedPixels(_name(file), values.kind, advice)
    return values


def check_file(file: str, pixel_format: PixelFormat, *, decode: bool) -> None:
    """Refuse a file that `pixel_array` would refuse or could not decode; without `decode`, by its header only.

    Raises:
        UnsupportedPixels, or one of `decoding.BROKEN_IMAGE`: as `pixel_array`.
    """
    with open_image(file) as image:
        values = check_pixels(image, file, pixel_format)
        if decode:
            image.load()
            if values is not None:
                _numbers(image, file, values)


def is_deep(file: str) -> bool:
    """Whether a file has more than 8 bits for each channel, so that `value_range` is for it. Reads the header."""
    with open_image(file) as image:
        return image.mode.startswith(("I", "F")) or has_16_bits(image)


def values_of_file(file: str, pixel_format: PixelFormat) -> tuple[np.ndarray, int | None] | None:
    """The values of a file of more than 8 bits, `(H, W)` float64, or `(H, W, 3)` of 16-bit colours.

    Returns:
        The values, and the largest value of their type, None if it is not known. None for files of 8 bits. Of 16-bit
        colours, Pillow reads the upper 8 bits, so the values are the largest that they may be.

    Raises:
        UnsupportedPixels, or one of `decoding.BROKEN_IMAGE`: as `pixel_array`.
    """
    with open_image(file) as image:
        values = check_pixels(image, file, pixel_format)
        if values is not None:
            return _numbers(image, file, values), values.stored_max or values.max
        if not has_16_bits(image):
            return None
        return 256.0 * np.asarray(image)[..., :3] + 255, MAX_UINT16


# One channel of more than 8 bits


def _values_of(image: ImageFile.ImageFile) -> _Values:
    """What the header says about the values."""
    if image.format == "TIFF":
        return _tiff_values(image)
    if image.mode == "F":
        return _Values(None, "floating-point values, whose type does not say which value is white", "0,1")
    if image.format == "PNG":
        bits = significant_bits(image)
        if bits is None or bits >= 16:
            return _Values(MAX_UINT16, "16-bit values")
        return _Values(None, _sbit_kind(bits), f"0,{MAX_UINT16} or 0,{2**bits - 1}")
    if image.format == "PPM":  # Pillow has scaled the values by the maximum that the file states
        arguments = image.tile[0][3]
        stated = arguments[1] if isinstance(arguments, tuple) else MAX_UINT16
        return _Values(MAX_UINT16, f"values up to {stated}", stored_max=int(stated))
    if image.format == "JPEG2000":
        return _Values(MAX_UINT16, "values of more than 8 bits in JPEG 2000", stored_max=0)
    if image.mode.startswith("I;16"):
        return _Values(MAX_UINT16, "16-bit values")
    return _Values(None, "32-bit integer values, whose type does not say which value is white", "0,4095")


def _tiff_values(image: Any) -> _Values:
    tags = image.tag_v2
    bits, sample_format = first(tags.get(BITS_PER_SAMPLE)) or 1, first(tags.get(SAMPLE_FORMAT)) or 1
    kind = f"{bits}-bit {SAMPLE_FORMATS.get(sample_format, '')} values"
    if sample_format != 1 or bits > 16:
        example = "0,1" if sample_format == 3 else "-1000,1000" if sample_format == 2 else "0,4095"
        no_range = f"{kind}, whose type does not say which value is white"
        return _Values(None, no_range, example, unsigned=sample_format == 1 and image.mode == "I")
    stated = stated_max(tags)
    largest = 2**bits - 1
    inverted = tags.get(PHOTOMETRIC) == 0 and bits == 16  # Pillow inverts smaller values only
    if stated is None or stated == largest:
        return _Values(largest, kind, inverted=inverted)
    if stated in FULL_RANGES and stated < largest:
        return _Values(int(stated), kind, inverted=inverted)
    odd = f"{kind} and a tag that states {stated:g} as their maximum, which may be the brightest pixel of this file"
    return _Values(None, odd, f"0,{largest}", inverted=inverted)


def _scaled(
    image: ImageFile.ImageFile, file: str | BinaryIO, values: _Values, value_range: tuple[float, float] | None
) -> np.ndarray:
    """The values of one channel as `(H, W)` uint8. Those outside the range become 0 or 255."""
    numbers = _numbers(image, file, values) if value_range else np.asarray(image, dtype=np.float64)
    low, high = value_range or (0.0, float(values.max or 0))
    scaled = ((numbers - low) / ((high - low) / 255)).round().clip(0, 255).astype(np.uint8)
    return 255 - scaled if values.inverted else scaled


def _numbers(image: ImageFile.ImageFile, file: str | BinaryIO, values: _Values) -> np.ndarray:
    """The values as they are in the file, `(H, W)` float64.

    Raises:
        UnsupportedPixels: a value is not a finite number.
    """
    stored = np.asarray(image)
    numbers = (stored.view(np.uint32) if values.unsigned else stored).astype(np.float64)
    if values.stored_max:
        numbers = (numbers * (values.stored_max / MAX_UINT16)).round()
    if not np.isfinite(numbers).all():
        what = "not a number (NaN)" if np.isnan(numbers).any() else "infinite"
        advice = "Give these pixels a value, or remove the file."
        raise UnsupportedPixels(_name(file), f"pixels that are {what}", advice)
    return numbers


# Images of 8 bits, or which Pillow reduces to 8 bits


def _converted(image: ImageFile.ImageFile, channels: int) -> Image.Image:
    """The image with this number of channels. Alpha is dropped where the model has no channel for it."""
    found: Image.Image = image
    if image.mode == "P" and "transparency" in image.info:
        found = image.convert("RGBA")  # Pillow warns if this is converted to RGB directly
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    if channels == 1 and found.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        found = found.convert("RGB")  # such as LAB, which Pillow does not convert to grey
    return found if found.mode == mode else found.convert(mode)


def _check_channels(image: ImageFile.ImageFile, file: str | BinaryIO, channels: int) -> None:
    """Refuse an image that cannot have this number of channels."""
    if channels in (1, 3):
        return
    is_grey_with_alpha = raw_mode(image) in ("LA", "LA;16B")  # Pillow reads the latter as RGBA
    found = "LA" if is_grey_with_alpha else image.mode
    if image.mode == "P" and "transparency" in image.info:
        found = "RGBA"
    if found not in MODES_OF_CHANNELS.get(channels, ()):
        count = len(Image.new(found, (1, 1)).getbands())
        raise _lacks_channels(file, f"{count} channel{'s' if count > 1 else ''} ({found})", channels)


def _lacks_channels(file: str | BinaryIO, found: str, channels: int) -> UnsupportedPixels:
    kinds = {2: "grey images with alpha (LA)", 4: "images with alpha (RGBA)"}
    can = f"it reads {kinds[channels]}" if channels in kinds else "no image file is read for it"
    return UnsupportedPixels(
        _name(file),
        found,
        f"The model has {channels} input channels; {can}. Convert the files, or use a model with 3 input channels.",
    )


def _check_several_deep_channels(
    image: ImageFile.ImageFile, file: str | BinaryIO, value_range: tuple[float, float] | None
) -> None:
    """Refuse 16-bit colours whose values do not fill the 16 bits, because Pillow reads the upper 8 of them only."""
    bits = significant_bits(image) if image.format == "PNG" else None
    stated = stated_max(getattr(image, "tag_v2", {})) if image.format == "TIFF" else None
    advice = "Pillow reads only the upper 8 bits of each channel; convert the files to 8 bits."
    if bits is not None and bits < 16:
        raise UnsupportedPixels(_name(file), f"several channels with {_sbit_kind(bits)}", advice)
    if stated is not None and stated != MAX_UINT16:
        kind = f"several channels of 16 bits, and a tag that states {stated:g} as their maximum"
        raise UnsupportedPixels(_name(file), kind, advice)
    if value_range is not None and value_range != (0, MAX_UINT16):
        raise UnsupportedPixels(_name(file), "several channels of 16 bits, so value_range cannot be used", advice)


def _sbit_kind(bits: int) -> str:
    return (
        f"16-bit values of which {bits} bits are significant (its sBIT chunk). By the PNG standard they end at 65535, "
        f"but some programs store values up to {2**bits - 1}"
    )


def _name(file: str | BinaryIO) -> str:
    return file if isinstance(file, str) else "The image"
