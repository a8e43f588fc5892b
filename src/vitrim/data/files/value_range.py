"""Which values of images with more than 8 bits become black and white: what is said about it, and what is refused.

How a file is decoded is in `pixels`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np

from vitrim.data.files.decoding import BROKEN_IMAGE, count_same_kind, spread_over
from vitrim.data.files.pixels import PixelFormat, UnsupportedPixels, is_deep, values_of_file
from vitrim.errors import DataError, SettingError, counted

MAX_COUNTED = 50_000  # files whose headers are read again, to say how many are refused
MAX_DARK = 0.25  # if no value is above this fraction of the type's range, a note says so


def range_notes(files: Sequence[str], pixel_format: PixelFormat) -> list[str]:
    """Say which values become black and white, if files have more than 8 bits. 32 of the files are read.

    Raises:
        SettingError: no file has values that `value_range` is for.
        DataError: the values of a file have no known range.
    """
    value_range = pixel_format.value_range
    if not files and value_range is None:
        return []
    with as_data_error(files, pixel_format, "images"):
        if value_range is not None and not _any_deep(files):
            raise SettingError(
                f"value_range is {value_range}, but no image has more than 8 bits for each channel. Leave it out."
            )
        read = [found for file in spread_over(files) if (found := _values(file, pixel_format)) is not None]
    if not read:
        return []
    if value_range is None:
        is_dark = all(values.max(initial=0) <= MAX_DARK * (largest or 0) for values, largest in read)
        return [_dark_note(max(float(values.max(initial=0)) for values, _ in read), len(read))] if is_dark else []
    low, high = value_range
    outside = 100 * float(np.mean([((values < low) | (values > high)).mean() for values, _ in read]))
    note = f"values {low:g} to {high:g} become black to white in files of more than 8 bits"
    clipped = f"; {outside:.2g} % of the values of {counted(len(read), 'image')} are outside, and become black or white"
    return [note + clipped if outside else note]


@contextmanager
def as_data_error(files: Sequence[str], pixel_format: PixelFormat, what: str) -> Iterator[None]:
    """Turn `UnsupportedPixels` into a DataError that says how many files there are of this kind.

    Args:
        what: the files, in the plural.
    """
    try:
        yield
    except UnsupportedPixels as error:
        count = count_same_kind(files, error, pixel_format) if len(files) <= MAX_COUNTED else 0
        if count <= 1:
            raise DataError(str(error)) from None
        raise DataError(
            f"{count} of {len(files)} {what} have {error.kind}, such as {error.file}. {error.advice}"
        ) from None


def _any_deep(files: Sequence[str]) -> bool:
    """Whether any file has more than 8 bits for each channel. Most sets have files of one kind, so this ends early."""
    for file in [*spread_over(files), *files] if files else ():
        with suppress(*BROKEN_IMAGE):
            if is_deep(file):
                return True
    return False


def _dark_note(largest: float, num_images: int) -> str:
    return (
        f"the largest value in {counted(num_images, 'image')} of more than 8 bits is {largest:g}, so all of them are "
        "dark; if that is white, set value_range (on the command line --value-range)"
    )


def _values(file: str, pixel_format: PixelFormat) -> tuple[np.ndarray, int | None] | None:
    with suppress(*BROKEN_IMAGE):
        return values_of_file(file, pixel_format)
    return None
