"""Read folders of image data: one folder for each class, CIFAR's files; and scikit-learn's digits.

Lists images and labels. Splits into training and validation folders are in `splits`, lists of labels in `tables`, where
to look for a data set in `sources`; decoding and dividing is in `loading`. Pickles of CIFAR are read by an unpickler
that accepts arrays and plain containers only, so no code from a data file runs.
"""

import os
import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vitrim.data.images import ImageSet, divided
from vitrim.data.listing.parts import Found, Part
from vitrim.data.listing.suffixes import is_ignored, is_image, unreadable_kinds
from vitrim.errors import DataError, counted, percent

PROCESSES = "/proc"
# Folders whose name says nothing about a class.
DIGITS_FRACTION = 0.25  # of the digits, which have no official split
GENERIC = {"images", "image", "imgs", "img", "data", "jpegimages", "jpg", "jpeg", "png"}


def read_classes(folder: Path, min_classes: int = 2, places: Sequence[tuple[str, Path]] | None = None) -> Part:
    """List the images of `<class>/**`, sorted.

    Args:
        folder: that holds the class folders.
        min_classes: number of classes that are needed.
        places: class names and the folders of their images, if these are not the folders in `folder`.

    Raises:
        DataError: no images, fewer than `min_classes` classes, or an empty class folder.
    """
    inside = [(path.name, path) for path in visible_folders(folder) if not _is_left_over(path)]
    classes = inside if places is None else places
    if not classes:
        raise DataError(f"{folder} {_without_classes(folder)}")
    files: list[str] = []
    labels: list[int] = []
    not_images: list[str] = []
    empty = []
    for label, (_, path) in enumerate(classes):
        found = walk(path)
        images = [file for file in found if is_image(file)]
        not_images += [file for file in found if not is_image(file)]
        empty += [] if images else [path]
        files += images
        labels += [label] * len(images)
    unreadable = unreadable_kinds(not_images)
    if not files:
        what = f"in its folder {classes[0][0]}" if len(classes) == 1 else f"in any of its {len(classes)} folders"
        raise DataError(f"{folder} has no image {what}. {_advice(not_images)}")
    if len(classes) < min_classes:
        raise DataError(_one_class(folder, *classes[0]))
    if empty:
        raise DataError(f"Class folder {empty[0]} has no image; fill or remove it. {_advice(walk(empty[0]))}")
    return Part(
        place=folder,
        classes=tuple(name for name, _ in classes),
        images=ImageSet(labels=torch.tensor(labels), files=tuple(files)),
        not_images=tuple(not_images),
        notes=tuple(unreadable),
    )


def _is_left_over(folder: Path) -> bool:
    """Whether a folder remains of images that were moved into class folders, such as `val/images` of Tiny ImageNet."""
    return folder.name.lower() in GENERIC and not walk(folder)


def _one_class(folder: Path, name: str, inner: Path) -> str:
    """What a folder with one class folder has, and what to do."""
    if name.lower() in GENERIC and not visible_folders(inner):
        return f"{inner} {_without_classes(inner)}"
    while len(inside := visible_folders(inner)) == 1:
        inner = inside[0]
    names = ", ".join(path.name for path in inside[:3])
    hint = f" If the folders {names} are the classes, give the path {inner}." if inside else ""
    return f"{folder} has only one class folder, {name!r}; at least two classes are needed.{hint}"


def _without_classes(folder: Path) -> str:
    """What a folder without class folders has, and what to do."""
    visible = [name for name in os.listdir(folder) if not is_ignored(name)]
    if not visible:
        return "is empty; put the images of each class in a folder named after the class."
    images = sorted(name for name in visible if is_image(name))
    archives = sorted(name for name in visible if name.lower().endswith((".zip", ".tar", ".tar.gz", ".tgz")))
    if archives and not images:
        return f"has no class folders, but {archives[0]}; give the path of an archive to read it."
    what = f"has {counted(len(images), 'image')}" if images else f"has {counted(len(visible), 'file')}"
    names = {re.sub(r"[\W_]*\d+$", "", os.path.splitext(name)[0]) for name in images}
    named = 1 < len(names) < len(images)  # `cat_1.jpg`, `dog_1.jpg`
    hint = f" If {images[0]} is named after its class, make a folder of this name." if named else ""
    return (
        f"{what} but no class folders and no table of labels. Put the images of each class in a folder named after the "
        f"class, or give a table of files and labels: `--data labels.csv` with the columns file_name,label.{hint}"
    )


def _advice(files: Sequence[str]) -> str:
    """What to do with files that are not read."""
    unreadable = unreadable_kinds(files)
    return (
        f"{'; '.join(unreadable)}." if unreadable else "Suffixes of images are png, jpg, webp, bmp, tif, gif and ppm."
    )


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders in `folder` that are not hidden and not made by an operating system, sorted."""
    with os.scandir(folder) as entries:  # asks the disk once for a folder of a million files
        return sorted(folder / entry.name for entry in entries if not is_ignored(entry.name) and is_of(entry, "dir"))


def is_of(entry: os.DirEntry[str], kind: Literal["dir", "file"]) -> bool:
    """Whether an entry of a folder is a folder or a regular file, or a link to one; not for a link in a loop."""
    try:
        return entry.is_dir() if kind == "dir" else entry.is_file()
    except OSError:
        return False


def holds_images(folder: Path, levels: int = 0) -> bool:
    """Whether an image is in a folder, or in the folders up to `levels` below it."""
    with os.scandir(folder) as entries:
        if any(is_image(entry.name) and not is_ignored(entry.name) and is_of(entry, "file") for entry in entries):
            return True
    return levels > 0 and any(holds_images(path, levels - 1) for path in visible_folders(folder))


def walk(folder: Path) -> list[str]:
    """Return all visible files below `folder`, sorted. Links are followed, but each real folder is entered once.
    A link to a folder that holds `folder` is not followed.

    A folder that cannot be listed is in the result too, so that it is counted as skipped. Pipes, devices and links that
    lead nowhere are also in the result; they are refused when they are opened (`check_regular`).
    """
    entered = {str(path) for path in Path(os.path.realpath(folder)).parents}  # a link to one leads to other classes
    files: list[str] = []

    def add(problem: OSError) -> None:
        files.append(str(problem.filename))

    for path, folders, names in os.walk(folder, onerror=add, followlinks=True):
        real = os.path.realpath(path)
        if real in entered or Path(real).is_relative_to(PROCESSES):  # a folder of it leads to all files there are
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not is_ignored(name))
        files += [os.path.join(path, name) for name in sorted(names) if not is_ignored(name)]
    return files


def read_digits() -> Found:
    """Read scikit-learn's 1797 digits of 8 x 8 pixels. A quarter of each class is used for validation."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = torch.from_numpy((digits.images * (255 / 16)).round().astype(np.uint8))  # values are 0..16
    images = ImageSet(labels=torch.from_numpy(digits.target).long(), pixels=grey[:, None].repeat(1, 3, 1, 1))
    train, validation = divided(images, DIGITS_FRACTION, seed=0)
    note = f"{percent(DIGITS_FRACTION)} of the images of each class are validation images"
    return Found(classes=tuple(map(str, digits.target_names)), train=train, validation=validation, notes=(note,))


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


def read_cifar(folder: Path) -> Found | None:
    """Read a folder with one of CIFAR's layouts; return None for any other folder.

    Raises:
        DataError: the folder has such a layout, but a file in it is missing or damaged.
    """
    for layout in _CIFAR_LAYOUTS:
        if (folder / layout.train[0]).is_file() and (folder / layout.names).is_file():
            return _read_cifar(folder, layout)
    return None


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
    test = Part(place=folder / layout.test, classes=classes, images=validation)
    return Found(classes=classes, train=train, validation=validation, test=lambda: test)


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
