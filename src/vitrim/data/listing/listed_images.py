"""Find the images that the rows of a table name, and divide them into training and validation images.

How a table is parsed, and which of its columns are used, is in `tables`. A row names a file below the folder of the
table, or an existing file by its absolute path. A relative path that leads out of the folder is refused.
"""

import os
import posixpath
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from vitrim.data.images import ImageSet
from vitrim.data.listing.layouts import walk
from vitrim.data.listing.parts import Part
from vitrim.data.listing.split_names import TEST, TRAIN, VALIDATION, role_of
from vitrim.data.listing.suffixes import is_image
from vitrim.data.listing.tables import ColumnNames, Row, choose_rows, labels_in_order, read_table
from vitrim.errors import DataError, counted


@dataclass(frozen=True)
class ImageIndex:
    """The images below a folder, to be found by their path, their name, or their name without suffix.

    Attributes:
        root: the folder.
        files: paths of all images below it.
    """

    root: Path
    files: tuple[str, ...]
    # By name, and by name without suffix: absolute paths with `/`, and the files.
    _by_name: dict[str, list[tuple[str, str]]] = field(init=False, repr=False, default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> "ImageIndex":
        """List the images below a folder."""
        return cls(root, tuple(file for file in walk(root) if is_image(file)))

    def __post_init__(self) -> None:
        start, root = len(str(self.root)), _absolute(self.root)
        for file in self.files:  # all begin with the root
            path = root + _plain(file[start:]).replace(os.sep, "/")
            name = posixpath.basename(path)
            for key in {name, os.path.splitext(name)[0]}:
                self._by_name.setdefault(key, []).append((path, file))

    def find(self, text: str, place: Path, role: str | None = None) -> list[str]:
        """Return the images that a cell may mean.

        Args:
            text: path, name, or name without suffix; with `/` or Windows' `\\`.
            place: folder from which a relative path starts.
            role: of several images with this name, those in a folder with this role are meant.

        Raises:
            DataError: a relative path leads out of the folder.
        """
        path = _plain(text.strip().replace("\\", "/"))
        if not path or path.endswith("/"):
            return []
        if os.path.isabs(path):
            return [path] if is_image(path) and os.path.isfile(path) else []
        whole = posixpath.normpath(posixpath.join(_absolute(place), path))
        if ".." in path.split("/") and not whole.startswith(_absolute(self.root).rstrip("/") + "/"):
            raise DataError(
                f"{text!r} leads out of {self.root}. Write paths below this folder, or absolute paths of "
                "existing images."
            )
        candidates = self._by_name.get(posixpath.basename(whole), [])
        exact = [file for known, file in candidates if whole in (known, os.path.splitext(known)[0])]
        if exact or ".." in path.split("/"):
            return exact
        ending = "/" + posixpath.normpath(path)
        found = [file for known, file in candidates if known.endswith((ending, ending + os.path.splitext(known)[1]))]
        if len(found) > 1 and role:
            return [file for file in found if role in self._roles(file)] or found
        return found

    def _roles(self, file: str) -> set[str | None]:
        return {role_of(name) for name in Path(os.path.relpath(file, self.root)).parts[:-1]}


def read_listed(file: Path, names: ColumnNames, index: ImageIndex, default_role: str | None = None) -> dict[str, Part]:
    """Read the images and labels of a table.

    Args:
        file: the table.
        names: columns that the user named.
        index: where images are looked for.
        default_role: of the rows, if no column names their split. By default training.

    Returns:
        The images of each role that the table has: `train`, `validation`, `test`.

    Raises:
        DataError: the table cannot be read, it is not certain what is meant, or one image has two labels.
    """
    table = read_table(file, names)
    role = default_role or role_of(file.stem)
    rows, columns = choose_rows(table, names, lambda text: bool(index.find(text, file.parent, role)))
    by_role: dict[str, list[Row]] = {}
    for row in rows:
        by_role.setdefault(role_of(row.split) or default_role or TRAIN, []).append(row)
    parts = {name: _part(file, part, index, name if rows[0].split else role) for name, part in by_role.items()}
    first = next(iter(parts))
    notes = [f"images and labels from {file.name} ({columns})", *parts[first].notes]
    return {**parts, first: _with_notes(parts[first], notes)}


def in_place_of_folders(file: Path, names: ColumnNames, index: ImageIndex, classes: Sequence[str]) -> Part:
    """Read the labels of a flat folder of validation images, where the training images are in class folders.

    Raises:
        DataError: as `read_listed`, or a label is not the name of a class folder.
    """
    parts = read_listed(file, names, index, VALIDATION)
    part = parts.get(VALIDATION) or next(iter(parts.values()))
    unknown = [name for name in part.classes if name not in classes]
    if unknown and all(name.isdigit() for name in part.classes):
        raise DataError(
            f"{file} has numbers as labels, such as {unknown[0]}, but the training images are in class folders, such "
            f"as {classes[0]}. Which number is which folder is not certain. Write the names of the folders into the "
            "list, or move the validation images into class folders."
        )
    return part


def pick_validation(parts: Mapping[str, Part]) -> tuple[Part | None, list[str]]:
    """Return the validation images: of `validation`, else of `test`; and notes about what is not used."""
    found = [parts[role] for role in (VALIDATION, TEST) if role in parts]
    unused = [f"{part.place.name}: test images are not used, because there are validation images" for part in found[1:]]
    return (found[0] if found else None), unused


def _part(file: Path, rows: Sequence[Row], index: ImageIndex, role: str | None) -> Part:
    """The images of some rows. Images that do not exist are kept: they are skipped and named as unreadable ones."""
    label_of: dict[str, str] = {}
    num_unlabelled = num_repeated = 0
    for row in rows:
        if not row.label:
            num_unlabelled += 1
            continue
        image = _one(file, row, index, role)
        num_repeated += image in label_of
        if label_of.setdefault(image, row.label) != row.label:
            raise DataError(
                f"{file} gives {row.image} two labels, {label_of[image]} and {row.label}. An image has one class; "
                "keep one row for each image."
            )
    if not label_of:
        raise DataError(f"{file} has no label in any of its {counted(len(rows), 'row')}.")
    several = next((label for label in label_of.values() if "|" in label), None)
    if several:
        raise DataError(
            f"{file} gives one image several classes, such as {several}. vitrim trains one class per image."
        )
    classes = labels_in_order(list(label_of.values()))
    number_of = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([number_of[name] for name in label_of.values()])
    notes = []
    if num_unlabelled:
        notes.append(f"{counted(num_unlabelled, 'row')} of {file.name} without a label: not used")
    if num_repeated:
        notes.append(f"{counted(num_repeated, 'row')} of {file.name} for an image of an earlier row: not used")
    return Part(place=file, classes=classes, images=ImageSet(labels=labels, files=tuple(label_of)), notes=tuple(notes))


def _one(file: Path, row: Row, index: ImageIndex, role: str | None) -> str:
    found = index.find(row.image, file.parent, role)
    if len(found) > 1:
        shown = " or ".join(os.path.relpath(image, index.root) for image in found[:2])
        raise DataError(f"{row.image} in {file} may be {shown}. Write the path from the folder of the table.")
    return found[0] if found else os.path.join(file.parent, row.image)


def _with_notes(part: Part, notes: Iterable[str]) -> Part:
    return Part(place=part.place, classes=part.classes, images=part.images, notes=tuple(notes))


def _plain(text: str) -> str:
    """Letters with accents as one character each: macOS stores them as two."""
    return unicodedata.normalize("NFC", text)


@lru_cache(maxsize=16)  # of few folders, for each of many rows
def _absolute(path: str | Path) -> str:
    """An absolute path with `/`, on every system."""
    return _plain(os.path.abspath(path)).replace(os.sep, "/")
