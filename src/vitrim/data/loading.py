"""Find labelled images on disk (or download them), divide them into training and validation, and decode them.

Decides which layout a folder has, which images are left out, and whether pixels fit in memory. It never runs code from
a data file: pickles are read by an unpickler that knows arrays and plain containers only. Draws no augmentation.
"""

import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrim.data.images import ImageData, ImageSet, rank_in_class
from vitrim.data.layouts import Found
from vitrim.data.sources import SOURCES, default_cache_dir, find
from vitrim.errors import DataError, SettingError
from vitrim.runs.progress import track

# What Pillow's readers are seen to raise for files that are truncated, damaged or no images.
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
_DECODED_AT_START = 50_000  # of more files, only the headers are checked: decoding all could take hours
_CHUNK = 256  # files for one task of the thread pool


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
    """Load `digits`, `cifar10`, `cifar100`, `tiny-imagenet`, or the folder at a path (`./cifar10` is always a path).

    Args:
        data_dir: where a named data set lies: its folder, its archive's folder, or a parent. None: the cache, filled
            by a download if need be.
        cache_dir: for downloads and unpacked archives. None: `vitrim` in `$XDG_CACHE_HOME` or `~/.cache`.
        limit_per_class: keep only so many training images of each class, chosen by `seed`.
        holdout: replace the validation set by this share of the training images of each class, chosen by `seed`.
        strict: refuse files that are not readable images; they are skipped and noted otherwise.
        memory_bytes: decode a set of equally sized images into memory if it takes no more than this.

    Raises:
        DataError: nothing usable was found; the message says what was looked for.
        SettingError: a setting is out of range, or `data_dir` is given where it would be ignored.
    """
    name = name if isinstance(name, str) else str(name.absolute())
    _check_settings(name, data_dir, limit_per_class, holdout)
    found = find(name, data_dir, Path(cache_dir).expanduser() if cache_dir else default_cache_dir())
    train, validation, notes = _divide(found, limit_per_class, holdout, seed)
    if strict and found.not_images:
        raise DataError(f"{found.not_images[0]} is not an image; remove it, or load without strict.")
    train, broken = _decode(train, memory_bytes, "training", strict)
    left = memory_bytes - (train.pixels.numel() if train.pixels is not None else 0)
    validation, broken_too = _decode(validation, left, "validation", strict)
    absent = torch.bincount(train.labels, minlength=len(found.classes)).eq(0).nonzero().flatten().tolist()
    for label in absent[:1] if broken else []:
        raise DataError(f"Class {found.classes[label]!r} has no readable training image; add some or remove the class.")
    skipped = [*found.not_images, *broken, *broken_too]
    if skipped:
        names = ", ".join(_short(file) for file in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        notes = (*notes, f"skipped {len(skipped)} files that are not readable images: {names}")
    title = name if name in ("digits", *SOURCES) else Path(name).expanduser().resolve().name
    return ImageData(name=title, classes=found.classes, train=train, validation=validation, notes=notes)


def read_image(file: str) -> Tensor:
    """Decode a file to `(3, H, W)` uint8 RGB: grey is repeated, alpha dropped, 16 bits scaled to 8, EXIF ignored.

    Pillow, not torchvision.io: its decoders are up to 1.5 times faster but deprecated since torchvision 0.29.

    Raises:
        One of `BROKEN_IMAGE`: the file cannot be read or decoded.
    """
    with Image.open(file) as image:
        return torch.from_numpy(_rgb_array(image)).permute(2, 0, 1).contiguous()


def _rgb_array(image: Image.Image) -> np.ndarray:
    if image.mode.startswith(("I", "F")):  # Pillow would clip these at 255
        values = np.asarray(image, dtype=np.float64)
        values = (values / (257 if values.max(initial=0) > 255 else 1)).round().clip(0, 255)
        return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns about the direct way
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _check_settings(name: str, data_dir: str | Path | None, limit_per_class: int | None, holdout: float) -> None:
    if not 0 <= holdout < 1:
        raise SettingError(f"holdout is {holdout}; it is a share of the training images, from 0 (none) to below 1.")
    if limit_per_class is not None and limit_per_class < 1:
        raise SettingError(f"limit_per_class is {limit_per_class}; keep at least 1 image, or leave it out to keep all.")
    if data_dir is not None and name not in SOURCES:
        raise SettingError(f"data_dir is for {', '.join(SOURCES)}; leave it out for {name!r}.")


def _divide(
    found: Found, limit_per_class: int | None, holdout: float, seed: int
) -> tuple[ImageSet, ImageSet, tuple[str, ...]]:
    """Cut the validation set from training where one is asked for or missing, then thin the training set."""
    train, validation, notes = found.train, found.validation, list(found.notes)
    if holdout or validation is None:
        share = holdout or found.validation_share
        counts = torch.bincount(train.labels, minlength=len(found.classes))
        taken = (counts * share).round().long().clamp(min=1).minimum(counts - 1)  # never all, and one if there are two
        held = rank_in_class(train.labels, seed) < taken[train.labels]
        if not held.any():
            raise DataError("Every class has only one image, so no validation set can be cut; add a folder val.")
        train, validation = train.subset((~held).nonzero().flatten()), train.subset(held.nonzero().flatten())
        replaced = " in place of the given one" if found.validation is not None else ""
        notes.append(f"validation split cut from training{replaced}: {100 * share:g} % per class, seed {seed}")
    if limit_per_class is not None:
        train = train.subset((rank_in_class(train.labels, seed) < limit_per_class).nonzero().flatten())
        notes.append(f"training limited to {limit_per_class} images per class, seed {seed}")
    return train, validation, tuple(notes)


# Decoding


class _SizesDiffer(Exception):
    """Found while decoding: the images do not fit into one tensor."""


def _decode(images: ImageSet, memory_bytes: int, what: str, strict: bool) -> tuple[ImageSet, list[str]]:
    """Drop unreadable files, and hold the pixels in memory if they fit. Returns the set and the dropped files."""
    if images.pixels is not None or not images.files:
        return images, []
    files, size = images.files, _common_size(images.files)
    pixels: np.ndarray | None = None
    if size is not None and len(files) * 3 * size[0] * size[1] <= memory_bytes:
        pixels, broken = _decode_all(files, size, f"Decoding {what} images")
    if pixels is None:
        whole = len(files) <= _DECODED_AT_START
        broken = _in_threads(lambda i: _check(files[i], whole), len(files), f"Checking {what} images")
    dropped = [files[i] for i in broken.nonzero()[0]]
    if dropped and strict:
        raise DataError(f"{dropped[0]} cannot be decoded; repair or remove it, or load without strict.")
    if 2 * len(dropped) > len(files):
        raise DataError(
            f"{len(dropped)} of {len(files)} {what} images cannot be decoded, {dropped[0]} for one; "
            "this is more than a few bad files, so check how the folder was copied or unpacked."
        )
    kept = torch.from_numpy((~broken).nonzero()[0])
    if pixels is None:
        return (images.subset(kept) if dropped else images), dropped
    tensor = torch.from_numpy(pixels)
    return ImageSet(labels=images.labels[kept], pixels=tensor[kept] if dropped else tensor), dropped


def _decode_all(files: Sequence[str], size: tuple[int, int], description: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Pixels `(n, 3, H, W)` and which files are broken, `(n,)`; no pixels if an image has another size."""
    pixels = np.zeros((len(files), 3, *size), dtype=np.uint8)
    try:
        return pixels, _in_threads(lambda i: _decode_into(pixels, i, files[i]), len(files), description)
    except _SizesDiffer:
        return None, np.zeros(0, dtype=bool)


def _in_threads(work: Callable[[int], None], count: int, description: str) -> np.ndarray:
    """Call `work(i)` for i below `count`; returns for which of them the image turned out unreadable, `(count,)`."""
    broken = np.zeros(count, dtype=bool)

    def chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, count)):
            try:
                work(i)
            except BROKEN_IMAGE:
                broken[i] = True

    # Few threads: they overlap waiting for the disk and decoding, but share Python's lock.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        tasks = [pool.submit(chunk, start) for start in range(0, count, _CHUNK)]
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


def _check(file: str, whole: bool) -> None:
    """Raise one of `BROKEN_IMAGE` for a file with a bad header or, with `whole`, one that cannot be decoded."""
    with Image.open(file) as image:
        if whole:
            image.load()


def _common_size(files: Sequence[str]) -> tuple[int, int] | None:
    """Height and width that 32 images spread over the set agree on, unreadable ones aside; None if they differ."""
    sizes = set()
    for i in np.unique(np.linspace(0, len(files) - 1, 32).astype(int)):
        try:
            with Image.open(files[i]) as image:
                sizes.add((image.height, image.width))
        except BROKEN_IMAGE:
            continue
    return sizes.pop() if len(sizes) == 1 else None


# Finding


def _short(file: str) -> str:
    return os.path.join(*Path(file).parts[-2:])
