"""Load a data set: find it, divide it into training and validation images, and decode them.

Decides which files are skipped and whether the pixels fit in memory. Where data sets are is in `sources`, how folders
are read in `folders`, how files are decoded in `decoding`, and random changes to images are in `augmentation`.
"""

import os
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypedDict, Unpack

import numpy as np
import torch
from platformdirs import user_cache_path
from torch import Tensor

from vitrim.data.choice import Choice, Split, chosen_images
from vitrim.data.files.decoded_cache import decode_or_read
from vitrim.data.files.decoding import SizesDiffer, check_files, common_size
from vitrim.data.files.pixels import RGB, PixelFormat, PixelOptions, pixel_array
from vitrim.data.files.value_range import as_data_error, range_notes
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.listing.parts import Found
from vitrim.data.listing.sources import Places, find
from vitrim.data.listing.tables import ColumnNames
from vitrim.errors import DataError, SettingError
from vitrim.known.datasets import SOURCES
from vitrim.runs.text_files import valid_text

MAX_DECODED_AT_START = 50_000  # if there are more files, only headers are checked: decoding could take hours
MAX_NAMED = 5  # classes in a note


class FolderOptions(TypedDict, total=False):
    """What `load_data` may be told about folders and tables.

    Attributes:
        train_dir: folder of training images, or several. Its folders are the classes, whatever their names are. The
            path starts from the folder of the data set, or from the current folder.
        val_dir: the same for validation images. Without `train_dir` and without the name of a data set, there are no
            training images, and the data can be used to evaluate.
        image_column: column of a table or of a Hugging Face data set that names or holds the images.
        label_column: column of the classes. Columns are only needed if it is not certain which are meant.
    """

    train_dir: str | Path | Sequence[str | Path] | None
    val_dir: str | Path | None
    image_column: str | None
    label_column: str | None


class LoadOptions(FolderOptions, PixelOptions, total=False):
    """Further arguments of `load_data`.

    Attributes:
        split: read only these images, to evaluate a model on them. They are the validation images of the result, which
            then has no training images. `train` and `val` are the images that a training learns from and is evaluated
            on, `test` the test images with labels. `auto` is `val`, or all images if the data set has no splits and
            `holdout` is 0. By default, training and validation images are read.
    """

    split: Split | None


def load_data(
    name: str | Path | None = None,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    limit_per_class: int | None = None,
    holdout: float = 0.0,
    strict: bool = False,
    memory_bytes: int = 4 << 30,
    seed: int = 0,
    **options: Unpack[LoadOptions],
) -> ImageData:
    """Load a data set by name, from a folder, an archive or a table of labels, or from a Hugging Face data set.

    Args:
        name: `digits`, `cifar10`, `cifar100`, `tiny-imagenet`, a path (`./cifar10` is always a path), or `hf:` and the
            path of a Hugging Face data set. Not needed with `train_dir`.
        data_dir: where a named data set is: its folder, the folder of its archive, or a parent of these. By default
            it is looked for in the cache, and downloaded if it is not there.
        cache_dir: for downloads, unpacked archives, and decoded pixels of sets of many files (in its folder `decoded`,
            at most 20 GB). By default the user's cache folder, on Linux `vitrim` in `$XDG_CACHE_HOME` or `~/.cache`.
        limit_per_class: maximum number of training images of each class, chosen by `seed`. By default all.
        holdout: use this fraction of the training images of each class, chosen by `seed`, as the validation images
            instead of those on disk. 0 uses those on disk, if there are any.
        strict: refuse files that are not readable images. By default they are skipped, and a note says so.
        memory_bytes: maximum size of the pixels that are held in memory. Larger sets, and sets of images of different
            sizes, are decoded when they are needed.
        seed: of the choice of images.
        options: `split`, see `LoadOptions`; `train_dir`, `val_dir`, `image_column` and `label_column`: `FolderOptions`.
            `channels` of the images for the model: 3 (RGB, the default), 1 (grey) or as many as the files have.
            `value_range`: the two values that become black and white in files with more than 8 bits for each channel,
            such as `(0, 4095)`; by default what the file states. Values outside it become black or white.

    Returns:
        The data set. Without a validation set on disk, a part of the training images is used, and a note says so.

    Raises:
        DataError: nothing usable was found; the message says what was looked for. Or the values of the pixels have no
            known range, or the images have not the channels.
        SettingError: a setting is out of range, or is set where it would be ignored.
        TypeError: there is no option of this name.
    """
    name = str(name.absolute()) if isinstance(name, Path) else name
    places = _places(data_dir, options)
    choice = Choice(split=options.get("split"), limit_per_class=limit_per_class, holdout=holdout, seed=seed)
    _check_settings(name, places, choice)
    pixel_format = PixelFormat(channels=options.get("channels", 3), value_range=options.get("value_range"))
    cache = Path(cache_dir).expanduser() if cache_dir else user_cache_path("vitrim")
    found = _without_repeated_classes(_with_valid_names(find(name, places, cache)))
    train, validation, notes = chosen_images(found, choice)
    if strict and found.not_images:
        raise DataError(f"{found.not_images[0]} is not an image; remove it, or load without strict.")
    reading = _Reading(pixel_format=pixel_format, strict=strict, memory_bytes=memory_bytes, cache=cache / "decoded")
    data = ImageData(name=_title(name, places), classes=found.classes, train=train, validation=validation, notes=notes)
    data = replace(data, only=choice.images_of(found))
    return _read(data, reading, found.not_images)


def read_image(file: str | BinaryIO, pixel_format: PixelFormat = RGB) -> Tensor:
    """Decode a file to `(channels, H, W)` uint8, by default RGB.

    Grey is repeated, alpha is dropped, more than 8 bits are scaled by the type of the file, EXIF is ignored. Decoded by
    Pillow: the decoders of torchvision.io are up to 1.5 times faster, but deprecated since torchvision 0.29.

    Raises:
        UnsupportedPixels: the pixels would be a guess, or the file lacks channels.
        Exception: one of `decoding.BROKEN_IMAGE`; the file cannot be read or decoded.
    """
    return torch.from_numpy(pixel_array(file, pixel_format)).permute(2, 0, 1).contiguous()


def _places(data_dir: str | Path | None, options: LoadOptions) -> Places:
    """The options as one value.

    Raises:
        TypeError: there is no option of this name.
    """
    unknown = set(options) - LoadOptions.__optional_keys__
    if unknown:
        raise TypeError(f"load_data() got an unexpected keyword argument {min(unknown)!r}")
    train = options.get("train_dir") or ()
    return Places(
        data_dir=data_dir,
        train=(train,) if isinstance(train, str | Path) else tuple(train),
        validation=options.get("val_dir"),
        columns=ColumnNames(image=options.get("image_column"), label=options.get("label_column")),
    )


def _title(name: str | None, places: Places) -> str:
    """The name of the data set for reports: of the folder above those that were named, if it has no name itself."""
    if name in ("digits", *SOURCES):
        return str(name)
    if name is None:
        (first, *_) = (*places.train, places.validation)
        path = Path(str(first)).expanduser().resolve()
        return path.parent.name or path.name
    return Path(name).expanduser().resolve().name


def _check_settings(name: str | None, places: Places, choice: Choice) -> None:
    if places.data_dir is not None and name not in SOURCES:
        raise SettingError(f"data_dir is only for {', '.join(SOURCES)}; leave it out for {name!r}.")
    named = bool(places.train or places.validation)
    if name is None and not named:
        raise SettingError("No data set was named; give a name or a path, or train_dir and val_dir.")
    if name in ("digits", *SOURCES) and (named or places.columns):
        setting = "train_dir, val_dir" if named else "image_column, label_column"
        raise SettingError(f"{setting} name folders or columns of your own data; leave them out for {name!r}.")
    if choice.holdout and not places.train and places.validation:
        raise SettingError(
            f"holdout is {choice.holdout}, but no training images are named. Give train_dir, or leave it out."
        )


def _with_valid_names(found: Found) -> Found:
    """Classes whose names are Unicode, as model folders and exported files need it. A folder may have any bytes."""
    return replace(found, classes=tuple(map(valid_text, found.classes)))


def _without_repeated_classes(found: Found) -> Found:
    """Join classes whose names differ only in the Unicode form of accents, as after copies from macOS."""
    first: dict[str, str] = {}
    for name in found.classes:
        first.setdefault(unicodedata.normalize("NFC", name), name)
    if len(first) == len(found.classes):
        return found
    kept = list(first.values())
    label = torch.tensor([kept.index(first[unicodedata.normalize("NFC", name)]) for name in found.classes])
    train, validation = (
        None if part is None else replace(part, labels=label[part.labels]) for part in (found.train, found.validation)
    )
    repeated = next(name for name in found.classes if name not in kept)
    note = f"class folders whose names differ only in the Unicode form of accents are one class, such as {repeated!r}"
    assert train is not None
    return replace(found, classes=tuple(kept), train=train, validation=validation, notes=(note, *found.notes))


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How the files of a data set are read; the fields are arguments of `load_data`."""

    pixel_format: PixelFormat
    strict: bool
    memory_bytes: int
    cache: Path


def _read(data: ImageData, reading: _Reading, not_images: Sequence[str]) -> ImageData:
    """Decode the images or check their files, and leave out those that cannot be decoded."""
    train, validation = (
        replace(_with_format(images, reading.pixel_format), strict=reading.strict)
        for images in (data.train, data.validation)
    )
    files = [*train.files, *validation.files]
    root = os.path.commonpath({os.path.dirname(file) for file in files}) if files else ""
    notes = [*data.notes, *range_notes(files, reading.pixel_format)]
    num_before = torch.bincount(train.labels, minlength=len(data.classes))
    train, broken = _decode(train, reading, reading.memory_bytes, "training")
    free_bytes = reading.memory_bytes - (train.pixels.numel() if train.pixels is not None else 0)
    validation, more_broken = _decode(validation, reading, free_bytes, "validation")
    absent = (torch.bincount(train.labels, minlength=len(data.classes)) == 0) & (num_before > 0)
    for label in absent.nonzero().flatten().tolist()[:1]:
        raise DataError(f"Class {data.classes[label]!r} has no readable training image; add some or remove the class.")
    notes += _not_measured(data.classes, train, validation)
    skipped = [*not_images, *broken, *more_broken]
    if skipped:
        names = ", ".join(_short_path(file) for file in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        kind = "file that is not a readable image" if len(skipped) == 1 else "files that are not readable images"
        notes.append(f"skipped {len(skipped)} {kind}: {names}")
    left_out = tuple(Path(file).relative_to(root).as_posix() for file in (*broken, *more_broken))
    return replace(data, train=train, validation=validation, notes=tuple(notes), root=root, left_out=left_out)


def _not_measured(classes: Sequence[str], train: ImageSet, validation: ImageSet) -> list[str]:
    """Name the classes that have training images, but no validation image."""
    num_train, num_validation = (
        torch.bincount(images.labels, minlength=len(classes)) for images in (train, validation)
    )
    names = [classes[label] for label in ((num_train > 0) & (num_validation == 0)).nonzero().flatten().tolist()]
    if len(names) < 2:
        return [f"{name} has no validation image, so its accuracy is not measured" for name in names]
    more = len(names) - MAX_NAMED
    listed = ", ".join(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
    return [f"{len(names)} classes have no validation image, so their accuracy is not measured: {listed}"]


# Channels


def _with_format(images: ImageSet, pixel_format: PixelFormat) -> ImageSet:
    """The images, to be decoded to this format. RGB images that are already in memory can become grey.

    Raises:
        DataError: they cannot have this number of channels.
    """
    if images.pixels is None:
        return replace(images, pixel_format=pixel_format)
    if pixel_format.channels == images.channels:
        return images
    if (images.channels, pixel_format.channels) != (3, 1):
        raise DataError(
            f"The images of this data set have {images.channels} channels; the model has {pixel_format.channels} input "
            "channels. Use a folder of images with as many channels, or another model."
        )
    weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32)[:, None, None]  # of ITU-R 601-2, as Pillow's
    grey = [
        ((part.int() * weights).sum(dim=1, keepdim=True).add_(1 << 15) >> 16).to(torch.uint8)
        for part in images.pixels.split(4096)
    ]
    return replace(images, pixels=torch.cat(grey))


# Decoding


def _decode(images: ImageSet, reading: _Reading, memory_bytes: int, what: str) -> tuple[ImageSet, list[str]]:
    """Drop unreadable files, and decode the pixels into memory if they fit. Those of many files are kept in `cache`.

    Returns:
        The image set, and the dropped files.
    """
    if images.pixels is not None or not images.files:
        return images, []
    files, pixel_format = images.files, reading.pixel_format
    pixels: np.ndarray | None = None
    with as_data_error(files, pixel_format, f"{what} images"):
        size = common_size(files)
        if size is not None and len(files) * pixel_format.channels * size[0] * size[1] <= memory_bytes:
            with suppress(SizesDiffer):
                pixels, broken = decode_or_read(files, size, reading.cache, f"Decoding {what} images", pixel_format)
        if pixels is None:
            decode = len(files) <= MAX_DECODED_AT_START
            broken = check_files(files, decode, f"Checking {what} images", pixel_format)
    dropped = [files[i] for i in broken.nonzero()[0]]
    if dropped and reading.strict:
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
    decoded_from = tuple(files[i] for i in kept.tolist()) if dropped else files
    labels, tensor = images.labels[kept], tensor[kept] if dropped else tensor
    return replace(images, labels=labels, pixels=tensor, files=(), decoded_from=decoded_from), dropped


def _short_path(file: str) -> str:
    return os.path.join(*Path(file).parts[-2:])
