"""Keep the decoded pixels of large data sets on disk, so that each set is decoded once on a machine.

An entry is a folder with `pixels.npy`, `broken.npy` and their digests. It is written completely or not at all. When it
is used, the digests are checked, and the pixels are mapped into memory, so several processes share them. How files are
decoded is in `decoding`.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import PIL

from vitrim.data.files.decoding import BROKEN_IMAGE, decode_files, spread_over
from vitrim.data.files.pixels import RGB, PixelFormat, pixel_array
from vitrim.runs.digests import Digests, State, Version, sha256_of
from vitrim.runs.progress import log
from vitrim.runs.text_files import encoded

DECODER = 2  # to be raised when `pixels` computes other pixels or reports other files
MIN_FILES = 5_000  # smaller sets are decoded in a second or two, and not kept
MAX_BYTES = 20 * 10**9  # of all entries; those that were not used for the longest time are removed
MAX_SAMPLED_BYTES = 16 << 20  # of a file that is read to tell sets apart
PARTIAL = ".partial-"  # in the name of a folder that is being written
PIXELS, BROKEN = "pixels.npy", "broken.npy"
Decoded = tuple[np.ndarray, np.ndarray]


def decode_or_read(
    files: Sequence[str],
    size: tuple[int, int],
    folder: Path,
    description: str,
    pixel_format: PixelFormat = RGB,
) -> Decoded:
    """Decode files, or read what was decoded before if no file has changed since.

    A set is the same if its files have the same names, sizes and times of change, and 32 of them the same content. The
    folder that holds them may have been moved. If nothing can be written to the cache, the files are decoded into
    memory, and this is logged.

    Args:
        files: n paths.
        size: height and width of all images.
        folder: of the cache; made if it does not exist.
        description: shown before the progress bar.
        pixel_format: what the pixels become. Pixels of another format are another set.

    Returns:
        Pixels `(n, channels, H, W)` uint8, zero for unreadable files, and which files are unreadable, `(n,)` bool.

    Raises:
        SizesDiffer: an image has another size.
        UnsupportedPixels: the pixels of a file would be a guess, or it lacks channels.
    """
    shape = (len(files), pixel_format.channels, *size)
    if len(files) >= MIN_FILES and math.prod(shape) <= MAX_BYTES:
        entry = folder / _key(files, size, pixel_format)
        found = _read(entry, shape)
        if found is not None and _any_readable(files, found[1], pixel_format):
            shutil.rmtree(entry, ignore_errors=True)
            found = None
        try:
            found = found or _decode_to(entry, files, shape, description, pixel_format)
        except (OSError, NotImplementedError) as error:  # NotImplementedError: a file system without locks
            log(f"{description}: the pixels cannot be kept in {folder} ({error})")
        if found is not None:
            return found
    pixels = np.zeros(shape, dtype=np.uint8)
    return pixels, decode_files(files, pixels, description, pixel_format)


def _any_readable(files: Sequence[str], broken: np.ndarray, pixel_format: PixelFormat) -> bool:
    """Whether a file that was unreadable can be read now: a network or a permission may have failed before."""
    for file in (files[i] for i in broken.nonzero()[0].tolist()):
        with suppress(*BROKEN_IMAGE):
            pixel_array(file, pixel_format)
            return True
    return False


def _key(files: Sequence[str], size: tuple[int, int], pixel_format: PixelFormat) -> str:
    """A name that differs between sets of files, versions of a file, decoders and formats of the pixels."""
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    digest = hashlib.sha256(encoded(f"{DECODER} {PIL.__version__} {size} {pixel_format}\n"))
    for file in files:
        name = file.removeprefix(root).replace(os.sep, "/")
        try:
            status = os.stat(file)
            digest.update(encoded(f"{name} {status.st_size} {status.st_mtime_ns}\n"))
        except OSError:
            digest.update(encoded(f"{name} missing\n"))
    for file in spread_over(files):  # archives may set all times to the same value, and bitmaps have equal sizes
        if os.path.isfile(file):
            with open(file, "rb") as opened:
                digest.update(hashlib.sha256(opened.read(MAX_SAMPLED_BYTES)).digest())
    return digest.hexdigest()[:32]


def _read(entry: Path, shape: tuple[int, ...]) -> Decoded | None:
    """The arrays of an entry; None if there is none, or if it is damaged. Changes to the pixels are not written."""
    file, digests = entry / PIXELS, Digests(entry)
    try:
        if any(digests.compare(name).state is not State.GOOD for name in (PIXELS, BROKEN)):
            if digests.path.exists():
                log(f"{entry} is damaged: its content is not what vitrim wrote; the files are decoded again")
            return None
        pixels, broken = np.load(file, mmap_mode="c"), np.load(entry / BROKEN)
        complete = file.stat().st_size == pixels.offset + pixels.nbytes
    except (OSError, ValueError, EOFError):  # a ValueError also for damaged digests
        return None
    valid = pixels.shape == shape and pixels.dtype == np.uint8 and broken.shape == shape[:1] and broken.dtype == bool
    if not (complete and valid):
        return None
    with suppress(OSError):  # the entry of another user
        os.utime(entry)  # when it was used
    return pixels, broken


def _decode_to(
    entry: Path, files: Sequence[str], shape: tuple[int, ...], description: str, pixel_format: PixelFormat
) -> Decoded | None:
    """Decode files into a new entry, and return its arrays. Only one process at a time does so.

    Raises:
        OSError: it cannot be written. SizesDiffer: an image has another size.
    """
    from filelock import FileLock, Timeout

    folder = entry.parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(blocking=False))
        except Timeout:
            log(f"{description}: waiting for another process that decodes images")
            stack.enter_context(lock.acquire())
        found = _read(entry, shape)
        if found is not None:  # made by another process in the meantime
            return found
        for path in (entry, *folder.glob(f"{PARTIAL}*")):  # damaged, and left by processes that were killed
            shutil.rmtree(path, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PARTIAL, ignore_cleanup_errors=True) as partial:
            made = Path(partial) / "made"
            made.mkdir()
            pixels = _new_file(made / PIXELS, shape)
            broken = decode_files(files, pixels, description, pixel_format)
            np.save(made / BROKEN, broken)
            pixels.flush()
            for name in (PIXELS, BROKEN):
                Digests(made).note(name, Version(sha256=sha256_of(made / name)))
            del pixels  # a file that is mapped cannot be moved on Windows
            made.rename(entry)
        _limit(folder, entry)
    return _read(entry, shape)


def _new_file(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new `.npy` file of zeros, mapped into memory, with its space on the disk.

    Raises:
        OSError: there is not enough space. Without the reservation, a write to the map would end the process.
    """
    pixels = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return pixels


def _limit(folder: Path, used: Path) -> None:
    """Remove the entries that were used least recently, until all together have at most `MAX_BYTES`."""
    entries = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime_ns)
    sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in entries}
    total = sum(sizes.values())
    for entry in entries:
        if total > MAX_BYTES and entry != used:
            shutil.rmtree(entry, ignore_errors=True)
            total -= sizes[entry]
