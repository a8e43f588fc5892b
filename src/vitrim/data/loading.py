"""Load a data set: find it, divide it into training and validation images, and decode them.

Decides which files are skipped and whether the pixels fit in memory. Where data sets are is in `sources`, how folders
are read in `layouts`, and random changes to images are in `augmentation`.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from platformdirs import user_cache_path
from torch import Tensor

from vitrim.data.images import ImageData, ImageSet, rank_in_class
from vitrim.data.layouts import Found
from vitrim.data.sources import SOURCES, find
from vitrim.errors import DataError, SettingError
from vitrim.runs.progress import track

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
_MAX_DECODED_AT_START = 50_000  # if there are more files, only headers are checked: decoding could take hours
_FILES_PER_TASK = 256  # of the thread pool


def load_data(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    limit_per_class: int | None = None,
    holdout: float = 0.0,
    strict: bool = False,
    memory_bytes: int = 4 << 30,
    seed: int = 0,
) -> ImageData:
    """Load a data set by name, or from the folder at a path.

    Args:
        name: `digits`, `cifar10`, `cifar100`, `tiny-imagenet`, or a path (`./cifar10` is always a path).
        data_dir: where a named data set is: its folder, the folder of its archive, or a parent of these. By default
            it is looked for in the cache, and downloaded if it is not there.
        cache_dir: for downloads and unpacked archives. By default the user's cache folder, on Linux `vitrim` in
            `$XDG_CACHE_HOME` or `~/.cache`.
        limit_per_class: maximum number of training images of each class, chosen by `seed`. By default all.
        holdout: use this fraction of the training images of each class, chosen by `seed`, as the validation images
            instead of those on disk. 0 uses those on disk, if there are any.
        strict: refuse files that are not readable images. By default they are skipped, and a note says so.
        memory_bytes: maximum size of the pixels that are held in memory. Larger sets, and sets of images of different
            sizes, are decoded when they are needed.
        seed: of the choice of images.

    Returns:
        The data set. Without a validation set on disk, a part of the training images is used, and a note says so.

    Raises:
        DataError: nothing usable was found; the message says what was looked for.
        SettingError: a setting is out of range, or `data_dir` is set where it would be ignored.
    """
    name = name if isinstance(name, str) else str(name.absolute())
    _check_settings(name, data_dir, limit_per_class, holdout)
    found = find(name, data_dir, Path(cache_dir).expanduser() if cache_dir else user_cache_path("vitrim"))
    train, validation, notes = _divide(found, limit_per_class, holdout, seed)
    if strict and found.not_images:
        raise DataError(f"{found.not_images[0]} is not an image; remove it, or load without strict.")
    train, broken = _decode(train, memory_bytes, "training", strict)
    free_bytes = memory_bytes - (train.pixels.numel() if train.pixels is not None else 0)
    validation, more_broken = _decode(validation, free_bytes, "validation", strict)
    absent = torch.bincount(train.labels, minlength=len(found.classes)).eq(0).nonzero().flatten().tolist()
    for label in absent[:1] if broken else []:
        raise DataError(f"Class {found.classes[label]!r} has no readable training image; add some or remove the class.")
    skipped = [*found.not_images, *broken, *more_broken]
    if skipped:
        names = ", ".join(_short_path(file) for file in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        kind = "file that is not a readable image" if len(skipped) == 1 else "files that are not readable images"
        notes = (*notes, f"skipped {len(skipped)} {kind}: {names}")
    title = name if name in ("digits", *SOURCES) else Path(name).expanduser().resolve().name
    return ImageData(name=title, classes=found.classes, train=train, validation=validation, notes=notes)


def read_image(file: str | BinaryIO) -> Tensor:
    """Decode a file to `(3, H, W)` uint8 RGB.

    Grey is repeated, alpha is dropped, 16 bits are scaled to 8, EXIF is ignored. Decoded by Pillow: the decoders of
    torchvision.io are up to 1.5 times faster, but deprecated since torchvision 0.29.

    Raises:
        Exception: one of `BROKEN_IMAGE`; the file cannot be read or decoded.
    """
    with Image.open(file) as image:
        return torch.from_numpy(_rgb_array(image)).permute(2, 0, 1).contiguous()


def _rgb_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255
        values = np.asarray(image, dtype=np.float64)
        values = (values / (257 if values.max(initial=0) > 255 else 1)).round().clip(0, 255)
        return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns if this is converted to RGB directly
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _check_settings(name: str, data_dir: str | Path | None, limit_per_class: int | None, holdout: float) -> None:
    if not 0 <= holdout < 1:
        raise SettingError(
            f"holdout is {holdout}; it must be a fraction of the training images, from 0 (none) to below 1."
        )
    if limit_per_class is not None and limit_per_class < 1:
        raise SettingError(
            f"limit_per_class is {limit_per_class}; it must be at least 1. Leave it out to keep all images."
        )
    if data_dir is not None and name not in SOURCES:
        raise SettingError(f"data_dir is only for {', '.join(SOURCES)}; leave it out for {name!r}.")


def _divide(
    found: Found, limit_per_class: int | None, holdout: float, seed: int
) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Take validation images from the training set if asked for or if there are none, then limit the training set.

    Returns:
        Training images, validation images, and notes for the user.
    """
    train, validation, notes = found.train, found.validation, list(found.notes)
    if holdout or validation is None:
        fraction = holdout or found.validation_fraction
        counts = torch.bincount(train.labels, minlength=len(found.classes))
        num_held_out = (counts * fraction).round().long().clamp(min=1).minimum(counts - 1)  # 0 of 1, at least 1 of 2
        held_out = rank_in_class(train.labels, seed) < num_held_out[train.labels]
        if not held_out.any():
            raise DataError(
                "Every class has only one image, so none can be held out for validation; "
                "add training images, or a folder val with validation images."
            )
        train, validation = train.subset((~held_out).nonzero().flatten()), train.subset(held_out.nonzero().flatten())
        why = "no validation split found" if found.validation is None else "validation split on disk not used"
        notes.append(f"{why}: {100 * fraction:g} % of the training images of each class held out, seed {seed}")
    if limit_per_class is not None:
        train = train.subset((rank_in_class(train.labels, seed) < limit_per_class).nonzero().flatten())
        notes.append(f"training limited to {limit_per_class} images of each class, seed {seed}")
    return train, validation, tuple(notes)


# Decoding


class _SizesDiffer(Exception):
    """Images have different sizes, so they do not fit into one tensor."""


def _decode(images: ImageSet, memory_bytes: int, what: str, strict: bool) -> tuple[ImageSet, list[str]]:
    """Drop unreadable files, and decode the pixels into memory if they fit.

    Returns:
        The image set, and the dropped files.
    """
    if images.pixels is not None or not images.files:
        return images, []
    files, size = images.files, _common_size(images.files)
    pixels: np.ndarray | None = None
    if size is not None and len(files) * 3 * size[0] * size[1] <= memory_bytes:
        pixels, broken = _decode_all(files, size, f"Decoding {what} images")
    if pixels is None:
        decode = len(files) <= _MAX_DECODED_AT_START
        broken = _in_threads(lambda i: _check(files[i], decode), len(files), f"Checking {what} images")
    dropped = [files[i] for i in broken.nonzero()[0]]
    if dropped and strict:
        raise DataError(f"{dropped[0]} cannot be decoded; repair or remove it, or load without strict.")
    if 2 * len(dropped) > len(files):
        raise DataError(
            f"{len(dropped)} of {len(files)} {what} images cannot be decoded, such as {dropped[0]}. "
            "These are too many to skip; check how the folder was copied or unpacked."
        )
    kept = torch.from_numpy((~broken).nonzero()[0])
    if pixels is None:
        return (images.subset(kept) if dropped else images), dropped
    tensor = torch.from_numpy(pixels)
    return ImageSet(labels=images.labels[kept], pixels=tensor[kept] if dropped else tensor), dropped


def _decode_all(files: Sequence[str], size: tuple[int, int], description: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Return pixels `(n, 3, H, W)` and which files are broken, `(n,)` bool; no pixels if the sizes differ."""
    pixels = np.zeros((len(files), 3, *size), dtype=np.uint8)
    try:
        return pixels, _in_threads(lambda i: _decode_into(pixels, i, files[i]), len(files), description)
    except _SizesDiffer:
        return None, np.zeros(0, dtype=bool)


def _in_threads(work: Callable[[int], None], count: int, description: str) -> np.ndarray:
    """Call `work(i)` for all i below `count`. Return for which of them the image is unreadable, `(count,)` bool."""
    broken = np.zeros(count, dtype=bool)

    def chunk(start: int) -> None:
        for i in range(start, min(start + _FILES_PER_TASK, count)):
            try:
                work(i)
            except BROKEN_IMAGE:
                broken[i] = True

    # Few threads: they wait for the disk and decode at the same time, but only one of them runs Python code.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        tasks = [pool.submit(chunk, start) for start in range(0, count, _FILES_PER_TASK)]
        try:
            for task in track(as_completed(tasks), description, total=len(tasks)):
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return broken


def _decode_into(pixels: np.ndarray, index: int, file: str) -> None:
    with Image.open(file) as image:
        array = _rgb_array(image)
    if array.shape[:2] != pixels.shape[2:]:
        raise _SizesDiffer
    pixels[index] = array.transpose(2, 0, 1)


def _check(file: str, decode: bool) -> None:
    """Raise one of `BROKEN_IMAGE` for a file with a bad header or, if `decode`, for one that cannot be decoded."""
    with Image.open(file) as image:
        if decode:
            image.load()


def _common_size(files: Sequence[str]) -> tuple[int, int] | None:
    """Return the height and width of 32 images spread over the set, or None if they differ. Skip unreadable ones."""
    sizes = set()
    for i in np.unique(np.linspace(0, len(files) - 1, 32).astype(int)):
        try:
            with Image.open(files[i]) as image:
                sizes.add((image.height, image.width))
        except BROKEN_IMAGE:
            continue
    return sizes.pop() if len(sizes) == 1 else None


def _short_path(file: str) -> str:
    return os.path.join(*Path(file).parts[-2:])
