"""Decode image files to arrays, several at a time: in threads, or in processes where there are many files.

Nothing here imports torch, so a process that decodes starts in a fraction of a second. What the pixels of one file are
is in `pixels`, which sets are decoded in `loading`, and where their pixels are kept in `decoded_cache`.
"""

import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
from PIL import Image

from vitrim.data.files.pixels import RGB, PixelFormat, UnsupportedPixels, check_file, open_image, pixel_array
from vitrim.runs.progress import log, track
from vitrim.runs.text_files import check_regular

# What Pillow raises for files that are truncated, damaged, not images, or of absurd size (found by trying).
BROKEN_IMAGE: tuple[type[Exception], ...] = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, EOFError, MemoryError, RuntimeError),
    *(zlib.error, struct.error, Image.DecompressionBombError),
)
MIN_FILES_FOR_PROCESSES = 20_000  # fewer are decoded by threads in a few seconds; processes start in one or two
MIN_CORES_FOR_PROCESSES = 3  # on two cores, threads are as fast (docs/log.md)
FILES_PER_TASK = 256
MAX_THREADS = 4  # they wait for the disk and decode at the same time, but only one of them runs Python code


class SizesDiffer(Exception):
    """Images have different sizes, so they do not fit into one array."""


def num_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def decode_files(
    files: Sequence[str], pixels: np.ndarray, description: str, pixel_format: PixelFormat = RGB
) -> np.ndarray:
    """Decode all files into an array.

    Processes do it if the array is mapped from a file, there are many files, and there are more than two cores. Else
    threads do it.

    Args:
        files: n paths.
        pixels: `(n, channels, H, W)` uint8, changed in place. Rows of unreadable files do not change.
        description: shown before the progress bar.
        pixel_format: what the pixels become.

    Returns:
        Which files are unreadable, `(n,)` bool.

    Raises:
        SizesDiffer: an image has another size than `(H, W)`.
        UnsupportedPixels: the pixels of a file would be a guess, or it lacks channels.
    """
    if isinstance(pixels, np.memmap):
        place = (pixels.filename, pixels.dtype, "r+", pixels.offset, pixels.shape)
        try:
            return _run(
                _pool(len(files), num_cores()), partial(_decode_mapped, place, pixel_format), files, description
            )
        except BrokenProcessPool as error:  # such as a process that was ended because memory is short
            log(f"{description}: threads decode them, because a process ended ({str(error).splitlines()[0]})")
    return _run(_pool(0, 0), partial(_decode_chunk, pixels, pixel_format), files, description)


def check_files(files: Sequence[str], decode: bool, description: str, pixel_format: PixelFormat = RGB) -> np.ndarray:
    """Find unreadable files.

    Args:
        files: n paths.
        decode: also decode the images. Else only their headers are read.
        description: shown before the progress bar.
        pixel_format: what the pixels will become.

    Returns:
        Which files are unreadable, `(n,)` bool.

    Raises:
        UnsupportedPixels: the pixels of a file would be a guess, or it lacks channels.
    """
    cores = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each process of `torchrun` checks all files
    return _run(
        _pool(len(files) if decode else 0, cores), partial(_check_chunk, decode, pixel_format), files, description
    )


def count_same_kind(files: Sequence[str], found: UnsupportedPixels, pixel_format: PixelFormat) -> int:
    """Return how many files are refused by their header for the reason of `found`."""
    return int(_run(_pool(0, 0), partial(_same_kind_chunk, found, pixel_format), files, "Checking images").sum())


def common_size(files: Sequence[str]) -> tuple[int, int] | None:
    """Return the height and width of 32 images spread over the set, or None if they differ. Skip unreadable ones."""
    sizes = set()
    for file in spread_over(files):
        try:
            check_regular(file)
            with open_image(file) as image:
                sizes.add((image.height, image.width))
        except BROKEN_IMAGE:
            continue
    return sizes.pop() if len(sizes) == 1 else None


def spread_over(files: Sequence[str]) -> list[str]:
    """Return 32 files spread evenly over the set, or all if there are fewer."""
    return [files[i] for i in np.unique(np.linspace(0, len(files) - 1, 32).astype(int))]


def _pool(num_files: int, cores: int) -> Executor:
    """Processes if there are many files and enough cores, else threads.

    Each process imports the function that it is given. It does not import the main module, as Python's own processes
    would: a script would need a guard against that.
    """
    if num_files < MIN_FILES_FOR_PROCESSES or cores < MIN_CORES_FOR_PROCESSES:
        return ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1))
    from joblib.externals.loky import ProcessPoolExecutor, cpu_count  # takes 0.5 s to import

    return ProcessPoolExecutor(min(cores, cpu_count()))  # a container may have fewer than it shows


def _run(
    pool: Executor, task: Callable[[Sequence[str], int], list[int]], files: Sequence[str], description: str
) -> np.ndarray:
    """Call `task(some files, index of the first)` for all files. Return which files it reports, `(n,)` bool."""
    reported = np.zeros(len(files), dtype=bool)
    with pool:
        starts = range(0, len(files), FILES_PER_TASK)
        futures = [pool.submit(task, files[start : start + FILES_PER_TASK], start) for start in starts]
        try:
            for future in track(as_completed(futures), description, total=len(futures)):
                reported[future.result()] = True
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return reported


def _decode_mapped(place: tuple, pixel_format: PixelFormat, files: Sequence[str], start: int) -> list[int]:
    return _decode_chunk(np.memmap(place[0], *place[1:]), pixel_format, files, start)


def _decode_chunk(pixels: np.ndarray, pixel_format: PixelFormat, files: Sequence[str], start: int) -> list[int]:
    broken = []
    for index, file in enumerate(files, start):
        try:
            array = pixel_array(file, pixel_format)
        except BROKEN_IMAGE:
            broken.append(index)
            continue
        if array.shape[:2] != pixels.shape[2:]:
            raise SizesDiffer
        pixels[index] = array.transpose(2, 0, 1)
    return broken


def _check_chunk(decode: bool, pixel_format: PixelFormat, files: Sequence[str], start: int) -> list[int]:
    """Report files with a bad header or, if `decode`, those that cannot be decoded."""
    broken = []
    for index, file in enumerate(files, start):
        try:
            check_file(file, pixel_format, decode=decode)
        except BROKEN_IMAGE:
            broken.append(index)
    return broken


def _same_kind_chunk(
    found: UnsupportedPixels, pixel_format: PixelFormat, files: Sequence[str], start: int
) -> list[int]:
    """Report files that are refused by their header for the same reason."""
    same = []
    for index, file in enumerate(files, start):
        try:
            check_file(file, pixel_format, decode=False)
        except UnsupportedPixels as error:
            same += [index] if error.kind == found.kind else []
        except BROKEN_IMAGE:
            continue
    return same
