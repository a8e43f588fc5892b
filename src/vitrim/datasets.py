"""Find labelled images on disk (or download them), divide them into training and validation, and decode them.

Decides which layout a folder has, which images are left out, and whether pixels fit in memory. It never runs code from
a data file: pickles are read by an unpickler that knows arrays and plain containers only. Draws no augmentation.
"""

import hashlib
import http.client
import os
import pickle
import re
import socket
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrim.errors import DataError, SettingError
from vitrim.progress import track

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jfif")
VALIDATION_NAMES = ("val", "valid", "validation", "test")
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
_CHUNK = 256  # files for one task of the thread pool


@dataclass(frozen=True)
class _Source:
    """A data set with a name: its number of classes, how folders of it are called, where it is, what to look for."""

    num_classes: int
    pattern: str  # of a folder's or archive's name without punctuation, in small letters
    url: str
    md5: str
    looked_for: str


_SOURCES = {
    "cifar10": _Source(
        10,
        "cifar10(?!0)",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-py, cifar-10-batches-bin",
    ),
    "cifar100": _Source(
        100,
        "cifar100",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-python, cifar-100-binary",
    ),
    "tiny-imagenet": _Source(
        200,
        "tinyimagenet",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images: as pixels in memory, or as files that are decoded when they are needed. Immutable.

    Attributes:
        labels: class of each image, `(n,)` int64, on the CPU.
        pixels: `(n, 3, H, W)` uint8 on any device, or None.
        files: n paths, empty when there are pixels.
    """

    labels: Tensor
    pixels: Tensor | None = None
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.labels.dtype == torch.int64 and self.labels.ndim == 1 and self.labels.device.type == "cpu"
        assert self.num_images == (len(self.files) if self.pixels is None else len(self.pixels))
        assert self.pixels is None or (self.pixels.dtype == torch.uint8 and self.pixels.ndim == 4 and not self.files)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        return self.pixels is not None

    def __len__(self) -> int:
        return self.num_images

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        files = tuple(self.files[i] for i in index.tolist()) if self.pixels is None else ()
        pixels = None if self.pixels is None else self.pixels[index.to(self.pixels.device)]
        return ImageSet(labels=self.labels[index], pixels=pixels, files=files)

    def sample(self, num_images: int, seed: int) -> "ImageSet":
        """A random subset in which every class has the same number of images, give or take one.

        The classes take turns, so every beginning of it is balanced too, and a smaller sample begins a larger one.
        All images, in their own order, when there are not more than `num_images`.
        """
        if num_images >= self.num_images:
            return self
        rank = rank_in_class(self.labels, seed)
        shuffled = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        return self.subset(shuffled[rank[shuffled].argsort(stable=True)][:num_images])

    def to(self, device: str | torch.device) -> "ImageSet":
        """With the pixels on `device`; files and labels stay."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set ready for use; `notes` say what was decided on the way and should be told."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 over classes, labels and images.

        Images count by their pixels in memory, by name and size on disk: moving the folder does not change it.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for images in (self.train, self.validation):
            digest.update(images.labels.numpy().tobytes())
            if images.pixels is not None:
                digest.update(str(tuple(images.pixels.shape)).encode())
                digest.update(images.pixels.cpu().contiguous().numpy().data)
            elif images.files:
                root = os.path.commonpath([os.path.dirname(file) for file in images.files])
                for file in images.files:
                    digest.update(f"{Path(os.path.relpath(file, root)).as_posix()} {os.path.getsize(file)}\n".encode())
        return digest.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What a layout's reader returns, before anything is divided or decoded."""

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet | None = None
    validation_share: float = 0.1  # cut from training where there is no validation set
    not_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    found = _find(name, data_dir, Path(cache_dir).expanduser() if cache_dir else default_cache_dir())
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
    title = name if name in ("digits", *_SOURCES) else Path(name).expanduser().resolve().name
    return ImageData(name=title, classes=found.classes, train=train, validation=validation, notes=notes)


def default_cache_dir() -> Path:
    """`vitrim` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitrim"


def rank_in_class(labels: Tensor, seed: int) -> Tensor:
    """The place of each image, `(n,)` from 0, when the images of its class are shuffled."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, shuffled inside
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)  # where the class of each grouped image begins
    return torch.empty_like(labels).scatter_(0, grouped, torch.arange(len(labels)) - first)


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
    if data_dir is not None and name not in _SOURCES:
        raise SettingError(f"data_dir is for {', '.join(_SOURCES)}; leave it out for {name!r}.")


def _divide(
    found: _Found, limit_per_class: int | None, holdout: float, seed: int
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
        broken = _in_threads(lambda i: _check_header(files[i]), len(files), f"Checking {what} images")
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


def _check_header(file: str) -> None:
    with Image.open(file):
        pass


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


def _find(name: str, data_dir: str | Path | None, cache: Path) -> _Found:
    if name == "digits":
        return _read_digits()
    if name not in _SOURCES:
        return _find_path(name)
    if data_dir is not None:
        folder = _existing_folder(data_dir)
        found = _search(name, folder, cache)
        if found is None:
            source = _SOURCES[name]
            raise DataError(
                f"{folder} does not hold {name}: looked there and one level below for {source.looked_for}, an archive "
                f"(.tar.gz, .zip) of one of these, or folders train and val with {source.num_classes} class folders."
            )
        return found
    found = _search(name, cache, cache) if cache.is_dir() else None
    if found is None:
        _download(name, cache)
        found = _search(name, cache, cache)
    assert found is not None, f"the official archive of {name} has an unknown layout"
    return found


def _find_path(name: str) -> _Found:
    if not name or not Path(name).expanduser().exists():
        known = ", ".join(["digits", *_SOURCES])
        raise DataError(f"There is no data set or folder {name!r}; give the path of a folder, or one of {known}.")
    folder = _existing_folder(name)
    found = _read_layout(folder)
    if found is not None:
        return found
    inside = [path.name for path in _visible_folders(folder)]
    if inside and {name.lower() for name in inside} <= set(VALIDATION_NAMES):
        raise DataError(f"{folder} has a folder {inside[0]} but no folder train; put the training images there.")
    classes, train, not_images = _read_classes(folder)
    return _Found(classes=classes, train=train, not_images=tuple(not_images))


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder; unpack it and" if folder.exists() else "does not exist;"
        raise DataError(f"{folder} {what} give the path of the folder that holds the images.")
    return folder


def _search(name: str, folder: Path, cache: Path) -> _Found | None:
    """Look for a named data set in `folder`, in the folders below that are called like it, and in archives of it."""
    source = _SOURCES[name]
    similar = [path for path in sorted(folder.iterdir()) if re.match(source.pattern, _letters(path.name))]
    for candidate in (folder, *_with_children(similar)):
        found = _read_layout(candidate)
        if found is not None and len(found.classes) == source.num_classes:
            return found
    for archive in similar:
        if archive.is_file() and archive.name.lower().endswith((".tar.gz", ".tgz", ".tar", ".zip")):
            for candidate in _with_children([_unpack(archive, cache)]):
                found = _read_layout(candidate)
                if found is not None and len(found.classes) == source.num_classes:
                    return found
    return None


def _with_children(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield path
            yield from _visible_folders(path)


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _short(file: str) -> str:
    return os.path.join(*Path(file).parts[-2:])


def _download(name: str, cache: Path) -> None:
    """Fetch the archive of a named data set into the cache: whole and with the right checksum, or not at all."""
    from torchvision.datasets.utils import download_url

    source = _SOURCES[name]
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # the library waits for ever otherwise
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            download_url(source.url, folder, md5=source.md5)
            file = os.path.basename(source.url)
            os.replace(os.path.join(folder, file), cache / file)  # at once: another process may be loading too
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(
            f"Could not download {name} from {source.url} into {cache} ({error}); "
            "fetch it by hand and give its folder with --data-dir."
        ) from error
    finally:
        socket.setdefaulttimeout(previous)


def _unpack(archive: Path, cache: Path) -> Path:
    """Unpack an archive into the cache, unless it was before, and return the folder."""
    status = archive.stat()
    version = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:8]
    target = cache / "unpacked" / f"{archive.name}-{version}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / "whole"
            if archive.name.lower().endswith(".zip"):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(partial)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(partial, filter="data")
            if not target.is_dir():  # another process may have been faster
                partial.rename(target)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"Could not unpack {archive} into {target.parent} ({error}); fetch the archive again."
        ) from error
    return target


# Layouts


def _read_layout(folder: Path) -> _Found | None:
    """Read a folder that has a layout of CIFAR or a training split; None for any other."""
    for layout in _CIFAR_LAYOUTS:
        if (folder / layout.train[0]).is_file() and (folder / layout.names).is_file():
            return _read_cifar(folder, layout)
    splits = {path.name.lower(): path for path in _visible_folders(folder)}
    return _read_splits(splits) if "train" in splits else None


def _read_splits(splits: dict[str, Path]) -> _Found:
    """Read `train/<class>/*` with `val/<class>/*` or the validation layout of the official Tiny ImageNet."""
    given = [splits[name] for name in VALIDATION_NAMES if name in splits]
    annotations = [path / "val_annotations.txt" for path in given if (path / "images").is_dir()]
    if annotations and annotations[0].is_file():
        classes, train, _ = _read_classes(splits["train"])  # the other files there are the official bounding boxes
        return _Found(classes=classes, train=train, validation=_read_annotations(annotations[0], classes))
    classes, train, not_images = _read_classes(splits["train"])
    if not given:
        return _Found(classes=classes, train=train, not_images=tuple(not_images))
    validation_classes, validation, more = _read_classes(given[0], at_least=1)
    unknown = [name for name in validation_classes if name not in classes]
    if unknown:
        raise DataError(
            f"{given[0]} has a class {unknown[0]!r} that {splits['train']} has not; "
            "both need the same class folders, so rename or remove it."
        )
    labels = torch.tensor([classes.index(name) for name in validation_classes])[validation.labels]
    notes = [f"folder {path.name} not used: {given[0].name} is the validation split" for path in given[1:]]
    if len(validation_classes) < len(classes):
        missing = next(name for name in classes if name not in validation_classes)
        notes.append(f"{len(classes) - len(validation_classes)} classes have no validation images: {missing} for one")
    return _Found(
        classes=classes,
        train=train,
        validation=replace(validation, labels=labels),
        not_images=(*not_images, *more),
        notes=tuple(notes),
    )


def _read_classes(folder: Path, at_least: int = 2) -> tuple[tuple[str, ...], ImageSet, list[str]]:
    """List `<class>/**` in sorted order. Returns the classes, the files with their labels, and what is no image."""
    classes = _visible_folders(folder)
    if not classes:
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        what = f"has {len(visible)} files but no class folders" if visible else "is empty"
        raise DataError(f"{folder} {what}; put the images of each class in a folder named after the class.")
    files: list[str] = []
    labels: list[int] = []
    not_images: list[str] = []
    empty = []
    for label, path in enumerate(classes):
        inside = _walk(path)
        images = [file for file in inside if file.lower().endswith(IMAGE_SUFFIXES)]
        not_images += [file for file in inside if not file.lower().endswith(IMAGE_SUFFIXES)]
        empty += [] if images else [path]
        files += images
        labels += [label] * len(images)
    if not files:
        raise DataError(
            f"{folder} has no image in any of its {len(classes)} folders (png, jpg, webp, bmp, tif, gif, ppm)."
        )
    if len(classes) < at_least:
        raise DataError(f"{folder} has only one class folder, {classes[0].name!r}; at least two classes are needed.")
    if empty:
        raise DataError(
            f"Class folder {empty[0]} has no image (png, jpg, webp, bmp, tif, gif, ppm); fill or remove it."
        )
    return tuple(path.name for path in classes), ImageSet(labels=torch.tensor(labels), files=tuple(files)), not_images


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def _walk(folder: Path) -> list[str]:
    """All visible files below `folder`, sorted; links are followed, each real folder is entered once."""
    entered = set()
    files = []
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [os.path.join(path, name) for name in sorted(names) if not name.startswith(".")]
    return files


def _read_annotations(file: Path, classes: tuple[str, ...]) -> ImageSet:
    """Read Tiny ImageNet's `val_annotations.txt`: file name, class and a bounding box in each line."""
    label_of = {name: label for label, name in enumerate(classes)}
    files, labels = [], []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in label_of:
            raise DataError(
                f"Line {number} of {file} is {line[:60]!r}; expected a file name, a tab and one of the "
                f"{len(classes)} class folders in train."
            )
        files.append(str(file.parent / "images" / fields[0]))
        labels.append(label_of[fields[1]])
    if not files:
        raise DataError(f"{file} is empty; fetch the data set again, or remove the folder {file.parent}.")
    return ImageSet(labels=torch.tensor(labels), files=tuple(files))


def _read_digits() -> _Found:
    """scikit-learn's 8 x 8 digits; a quarter of each class becomes the validation set."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))  # values are 0..16
    images = ImageSet(labels=torch.from_numpy(digits.target).long(), pixels=grey[:, None].repeat(1, 3, 1, 1))
    return _Found(classes=tuple(map(str, digits.target_names)), train=images, validation_share=0.25)


# CIFAR


@dataclass(frozen=True)
class _CifarLayout:
    """File names of one distribution; `label_bytes` of a binary record (the last is the class) or pickle keys."""

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int = 0
    labels_key: str = ""
    names_key: str = ""


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR_LAYOUTS = (
    _CifarLayout(_BATCHES, "test_batch", "batches.meta", labels_key="labels", names_key="label_names"),
    _CifarLayout(("train",), "test", "meta", labels_key="fine_labels", names_key="fine_label_names"),
    _CifarLayout(tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", "batches.meta.txt", label_bytes=1),
    _CifarLayout(("train.bin",), "test.bin", "fine_label_names.txt", label_bytes=2),
)


def _read_cifar(folder: Path, layout: _CifarLayout) -> _Found:
    for name in (*layout.train, layout.test):
        if not (folder / name).is_file():
            raise DataError(f"{folder} lacks the file {name} of its CIFAR layout; unpack the archive again.")
    if layout.label_bytes:
        classes = tuple((folder / layout.names).read_text().split())
    else:
        classes = tuple(str(name) for name in _unpickle(folder / layout.names, layout.names_key)[0])
    train, validation = (
        _read_cifar_files([folder / name for name in names], layout, len(classes))
        for names in (layout.train, (layout.test,))
    )
    return _Found(classes=classes, train=train, validation=validation)


def _read_cifar_files(files: Sequence[Path], layout: _CifarLayout, num_classes: int) -> ImageSet:
    labels, pixels = [], []
    for file in files:
        if layout.label_bytes:
            record = layout.label_bytes + 3072
            values = np.frombuffer(file.read_bytes(), dtype=np.uint8)
            if len(values) == 0 or len(values) % record:
                raise DataError(f"{file} has {len(values)} bytes, no multiple of {record}; fetch the archive again.")
            table = values.reshape(-1, record)
            label, data = table[:, layout.label_bytes - 1], table[:, layout.label_bytes :]
        else:
            label, data = (np.asarray(value) for value in _unpickle(file, layout.labels_key, "data"))
        sound = data.dtype == np.uint8 and data.shape == (len(label), 3072) and label.dtype.kind in "iu"
        if not sound or label.min(initial=0) < 0 or label.max(initial=0) >= num_classes:
            raise DataError(f"{file} does not hold 32 x 32 images with labels below {num_classes}; fetch it again.")
        labels.append(label.astype(np.int64))
        pixels.append(data.reshape(-1, 3, 32, 32))
    return ImageSet(labels=torch.from_numpy(np.concatenate(labels)), pixels=torch.from_numpy(np.concatenate(pixels)))


class _ForbiddenClass(pickle.UnpicklingError):
    """A pickle asks for something that is neither an array nor a plain container."""


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers, and nothing that could run code."""

    # Taken from arrays themselves: these functions have moved between numpy's modules, and old files name old places.
    _functions = (np.zeros(1).__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0], np.float64(0).__reduce__()[0])
    _allowed = {getattr(function, "__name__", ""): function for function in _functions}  # noqa: RUF012

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(("numpy.core.", "numpy._core.")) and name in self._allowed:
            return self._allowed[name]
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 stores the bytes of an array
            return lambda text, encoding="latin1": text.encode("latin1")
        raise _ForbiddenClass(f"{module}.{name}")


def _unpickle(file: Path, *keys: str) -> list[Any]:
    """The values at `keys` of the dictionary in a pickle of CIFAR, read without running anything from it."""
    try:
        with file.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        return [named[key] for key in keys]
    except _ForbiddenClass as error:
        raise DataError(
            f"{file} asks to load {error}, which images do not need and could be an attack; fetch the official archive."
        ) from error
    # A damaged pickle can fail in any instruction of its little machine.
    except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{file} is damaged or not of CIFAR ({error!r}); fetch the official archive.") from error
