"""Decode image files to arrays, several at a time: in threads, or in processes where there are many files.

Nothing here imports torch, so a process that decodes starts in a fraction of a second. Which sets are decoded is in
`loading`, and where their pixels are kept in `decoded_cache`.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import BinaryIO

import numpy as np
from PIL import Image

from vitrim.runs.progress import log, track

# What Pillow raises for files that are truncated, damaged or not images (found by trying).
BROKEN_IMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    EOFError,
    zlib.error,
    Image.DecompressionBombError,
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


def rgb_array(file: str | BinaryIO) -> np.ndarray:
    """Decode a file to `(H, W, 3)` uint8 RGB, as `loading.read_image`.

    Raises:
        Exception: one of `BROKEN_IMAGE`; the file cannot be read or decoded.
    """
    with Image.open(file) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255
            values = np.asarray(image, dtype=np.float64)
            values = (values / (257 if values.max(initial=0) > 255 else 1)).round().clip(0, 255)
            return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)
        found: Image.Image = image
        if image.mode == "P" and "transparency" in image.info:
            found = image.convert("RGBA")  # Pillow warns if this is converted to RGB directly
        return np.array(found if found.mode == "RGB" else found.convert("RGB"))


def decode_files(files: Sequence[str], pixels: np.ndarray, description: str) -> np.ndarray:
    """Decode all files into an array.

    Processes do it if the array is mapped from a file, there are many files, and there are more than two cores. Else
    threads do it.

    Args:
        files: n paths.
        pixels: `(n, 3, H, W)` uint8, changed in place. Rows of unreadable files do not change.
        description: shown before the progress bar.

    Returns:
        Which files are unreadable, `(n,)` bool.

    Raises:
        SizesDiffer: an image has another size than `(H, W)`.
    """
    if isinstance(pixels, np.memmap):
        place = (pixels.filename, pixels.dtype, "r+", pixels.offset, pixels.shape)
        try:
            return _run(_pool(len(files), num_cores()), partial(_decode_mapped, place), files, description)
        except BrokenProcessPool as error:  # such as a process that was ended because memory is short
            log(f"{description}: threads decode them, because a process ended ({str(error).splitlines()[0]})")
    return _run(_pool(0, 0), partial(_decode_chunk, pixels), files, description)


def check_files(files: Sequence[str], decode: bool, description: str) -> np.ndarray:
    """Find unreadable files.

    Args:
        files: n paths.
        decode: also decode the images. Else only their headers are read.
        description: shown before the progress bar.

    Returns:
        Which files are unreadable, `(n,)` bool.
    """
    cores = num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each process of `torchrun` checks all files
    return _run(_pool(len(files) if decode else 0, cores), partial(_check_chunk, decode), files, description)


def common_size(files: Sequence[str]) -> tuple[int, int] | None:
    """Return the height and width of 32 images spread over the set, or None if they differ. Skip unreadable ones."""
    sizes = set()
    for file in spread_over(files):
        try:
            with Image.open(file) as image:
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


def _decode_mapped(place: tuple, files: Sequence[str], start: int) -> list[int]:
    return _decode_chunk(np.memmap(place[0], *place[1:]), files, start)


def _decode_chunk(pixels: np.ndarray, files: Sequence[str], start: int) -> list[int]:
    broken = []
    for index, file in enumerate(files, start):
        try:
            array = rgb_array(file)
        except BROKEN_IMAGE:
            broken.append(index)
            continue
        if array.shape[:2] != pixels.shape[2:]:
            raise SizesDiffer
        pixels[index] = array.transpose(2, 0, 1)
    return broken


def _check_chunk(decode: bool, files: Sequence[str], start: int) -> list[int]:
    """Report files with a bad header or, if `decode`, those that cannot be decoded."""
    broken = []
    for index, file in enumerate(files, start):
        try:
            with Image.open(file) as image:
                if decode:
                    image.load()
        except BROKEN_IMAGE:
            broken.append(index)
    return broken
