"""Read the layouts of image data on disk: class folders, Tiny ImageNet, CIFAR; and scikit-learn's digits.

Lists images and labels. Where to look for a data set is in `sources`; decoding and dividing is in `loading`. Pickles of
CIFAR are read by an unpickler that accepts arrays and plain containers only, so no code from a data file runs.
"""

import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrim.data.class_names import join_splits
from vitrim.data.images import ImageSet
from vitrim.errors import DataError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm", ".jfif")
VALIDATION_NAMES = ("val", "valid", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A data set as found on disk, before it is divided or decoded.

    Attributes:
        classes: class names; a label is an index in them.
        train: training images.
        validation: validation images, or None if the data set has none.
        validation_fraction: of the training images of each class, used for validation if `validation` is None.
        not_images: files in class folders that are not images.
        notes: what was decided, for the user.
    """

    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet | None = None
    validation_fraction: float = 0.1
    not_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_layout(folder: Path) -> Found | None:
    """Read a folder with one of CIFAR's layouts or with a folder `train`; return None for any other folder.

    Raises:
        DataError: the folder has such a layout, but a file in it is missing or damaged.
    """
    for layout in _CIFAR_LAYOUTS:
        if (folder / layout.train[0]).is_file() and (folder / layout.names).is_file():
            return _read_cifar(folder, layout)
    splits = {path.name.lower(): path for path in visible_folders(folder)}
    return _read_splits(splits) if "train" in splits else None


def _read_splits(splits: dict[str, Path]) -> Found:
    """Read `train/<class>/*`, with `val/<class>/*` or the validation layout of the official Tiny ImageNet.

    Args:
        splits: folders by their name in lower case; `train` is one of them.

    Raises:
        DataError: a folder has no images, or a validation class is not a training class.
    """
    validation_folders = [splits[name] for name in VALIDATION_NAMES if name in splits]
    annotations = [path / "val_annotations.txt" for path in validation_folders if (path / "images").is_dir()]
    if annotations and annotations[0].is_file():
        classes, train, _ = read_classes(splits["train"])  # the other files there are bounding boxes
        return Found(classes=classes, train=train, validation=_read_annotations(annotations[0], classes))
    classes, train, not_images = read_classes(splits["train"])
    if not validation_folders:
        return Found(classes=classes, train=train, not_images=tuple(not_images))
    folder, *unused = validation_folders
    validation_classes, validation, more = read_classes(folder, min_classes=1)
    found, joined = join_splits(validation_classes, classes)
    unknown = [name for name, label in zip(validation_classes, found, strict=True) if label is None]
    if unknown:
        raise DataError(
            f"{folder} has a class {unknown[0]!r}, but {splits['train']} has no such class folder. "
            "Both need the same class folders; rename or remove it."
        )
    labels = torch.tensor(found)[validation.labels]
    notes = [
        *joined,
        *(f"folder {path.name} is not used, because {folder.name} is the validation split" for path in unused),
    ]
    if len(validation_classes) < len(classes):
        missing = next(name for label, name in enumerate(classes) if label not in found)
        notes.append(f"{len(classes) - len(validation_classes)} classes have no validation images, such as {missing}")
    return Found(
        classes=classes,
        train=train,
        validation=replace(validation, labels=labels),
        not_images=(*not_images, *more),
        notes=tuple(notes),
    )


def read_classes(folder: Path, min_classes: int = 2) -> tuple[tuple[str, ...], ImageSet, list[str]]:
    """List the images of `<class>/**`, sorted.

    Returns:
        Class names, image files with their labels, and files that are not images.

    Raises:
        DataError: no images, fewer than `min_classes` classes, or an empty class folder.
    """
    classes = visible_folders(folder)
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
    if len(classes) < min_classes:
        raise DataError(f"{folder} has only one class folder, {classes[0].name!r}; at least two classes are needed.")
    if empty:
        raise DataError(
            f"Class folder {empty[0]} has no image (png, jpg, webp, bmp, tif, gif, ppm); fill or remove it."
        )
    return tuple(path.name for path in classes), ImageSet(labels=torch.tensor(labels), files=tuple(files)), not_images


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in `folder` that are not hidden, sorted."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())


def _walk(folder: Path) -> list[str]:
    """Return all visible files below `folder`, sorted. Links are followed, but each real folder is entered once."""
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
    """Read Tiny ImageNet's `val_annotations.txt`: each line has a file name, a class and a bounding box."""
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
        raise DataError(f"{file} is empty; download the data set again, or remove the folder {file.parent}.")
    return ImageSet(labels=torch.tensor(labels), files=tuple(files))


def read_digits() -> Found:
    """Read scikit-learn's 1797 digits of 8 x 8 pixels. A quarter of each class is used for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))  # values are 0..16
    images = ImageSet(labels=torch.from_numpy(digits.target).long(), pixels=grey[:, None].repeat(1, 3, 1, 1))
    return Found(classes=tuple(map(str, digits.target_names)), train=images, validation_fraction=0.25)


# CIFAR


@dataclass(frozen=True)
class _CifarLayout:
    """File names of one distribution, and where its labels are.

    A binary record begins with `label_bytes` bytes, of which the last one is the label. A pickle has keys.
    """

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


def _read_cifar(folder: Path, layout: _CifarLayout) -> Found:
    for name in (*layout.train, layout.test):
        if not (folder / name).is_file():
            raise DataError(f"{folder} has a CIFAR layout but lacks the file {name}; unpack the archive again.")
    if layout.label_bytes:
        classes = tuple((folder / layout.names).read_text().split())
    else:
        classes = tuple(str(name) for name in _unpickle(folder / layout.names, layout.names_key)[0])
    train, validation = (
        _read_cifar_files([folder / name for name in names], layout, len(classes))
        for names in (layout.train, (layout.test,))
    )
    return Found(classes=classes, train=train, validation=validation)


def _read_cifar_files(files: Sequence[Path], layout: _CifarLayout, num_classes: int) -> ImageSet:
    labels, pixels = [], []
    for file in files:
        if layout.label_bytes:
            record = layout.label_bytes + 3072
            values = np.frombuffer(file.read_bytes(), dtype=np.uint8)
            if len(values) == 0 or len(values) % record:
                raise DataError(f"{file} has {len(values)} bytes; expected a multiple of {record}. Download it again.")
            table = values.reshape(-1, record)
            label, data = table[:, layout.label_bytes - 1], table[:, layout.label_bytes :]
        else:
            label, data = (np.asarray(value) for value in _unpickle(file, layout.labels_key, "data"))
        valid = data.dtype == np.uint8 and data.shape == (len(label), 3072) and label.dtype.kind in "iu"
        if not valid or label.min(initial=0) < 0 or label.max(initial=0) >= num_classes:
            raise DataError(f"{file} does not hold 32 x 32 images with labels below {num_classes}. Download it again.")
        labels.append(label.astype(np.int64))
        pixels.append(data.reshape(-1, 3, 32, 32))
    return ImageSet(labels=torch.from_numpy(np.concatenate(labels)), pixels=torch.from_numpy(np.concatenate(pixels)))


class _ForbiddenClass(pickle.UnpicklingError):
    """A pickle contains something that is neither an array nor a plain container."""


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers only, so a file cannot run code."""

    # Looked up from arrays: these functions have moved between numpy's modules, and old files name the old modules.
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
    """Return the values at `keys` of the dictionary in a pickle of CIFAR, without running code from it."""
    try:
        with file.open("rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        return [named[key] for key in keys]
    except _ForbiddenClass as error:
        raise DataError(
            f"{file} would load {error}. Images do not need that, and it could be an attack. "
            "Download the official archive."
        ) from error
    # A damaged pickle can fail in any of its instructions.
    except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, ValueError, TypeError, MemoryError) as error:
        raise DataError(
            f"{file} is damaged or is not a file of CIFAR ({error!r}); download the official archive."
        ) from error
