"""Find the tables of labels in a folder, and read the data set that they list.

Tables are parsed in `tables`; the images that their rows name are found in `listed_images`.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitrim.data.listing.folder_checks import looks_like_classes
from vitrim.data.listing.layouts import GENERIC, holds_images, visible_folders
from vitrim.data.listing.listed_images import ImageIndex, pick_validation, read_listed
from vitrim.data.listing.parts import Found, Part, joined, only_evaluated, test_of
from vitrim.data.listing.split_names import TEST, TRAIN, VALIDATION, role_of, roles_of
from vitrim.data.listing.tables import (
    LIST_SUFFIXES,
    TABLE_SUFFIXES,
    ColumnNames,
    NoImagesNamed,
    files_in,
    has_label_column,
    read_table,
)
from vitrim.errors import DataError, counted

_NOT_LABELS = ("sample_submission", "samplesubmission", "submission", "loc_")  # `LOC_train_solution.csv` has boxes


def read_table_file(file: Path, names: ColumnNames) -> Found:
    """List the images of a table that the user named. One beside it with the name of another split is read too.

    Raises:
        DataError: the table cannot be read, or it is not certain what is meant.
    """
    folder = file.parent
    index = ImageIndex.of(folder)
    if not index.files:  # such as meta/train.txt beside images/
        beside = folder.absolute().parent
        places = [path for path in visible_folders(beside) if path.name.lower() in GENERIC or role_of(path.name)]
        index = ImageIndex(beside, tuple(file for path in places for file in ImageIndex.of(path).files))
    return _of_parts(_with_other_tables(file, files_in(folder, (file.suffix.lower(),)), names, index), file)


def read_tables(folder: Path, names: ColumnNames) -> Found | None:
    """List the images of a folder with tables of labels.

    Returns:
        None if the folder has no table, or has class folders that agree with it and divide the images as it does.

    Raises:
        DataError: the table cannot be read, it is not certain what is meant, or class folders contradict the table.
    """
    parts = _parts_in_splits(folder, names) or table_parts(folder, names)
    return None if parts is None else _of_parts(parts, folder)


def table_parts(folder: Path, names: ColumnNames) -> dict[str, Part] | None:
    """List the images of each split of the tables that lie in a folder itself; as `read_tables`.

    Raises:
        DataError: as `read_tables`.
    """
    tables = [path for path in files_in(folder, TABLE_SUFFIXES) if not path.stem.lower().startswith(_NOT_LABELS)]
    files = tables or [path for path in files_in(folder, LIST_SUFFIXES) if role_of(path.stem)]
    if not files or not holds_images(folder, levels=3):
        return None
    training = [path for path in files if role_of(path.stem) == TRAIN]
    main = training or [path for path in files if role_of(path.stem) is None] or files
    has_classes = not names and looks_like_classes(folder)
    if has_classes:
        main = [path for path in main if _has_labels(path, names)]
    if len(main) > 1:
        shown = " or ".join(str(path) for path in main[:3])
        raise DataError(f"{folder} has several tables of labels. Name the one to use: --data {shown}.")
    if not main:
        return None
    index = ImageIndex.of(folder)
    try:
        parts = _with_other_tables(main[0], files, names, index)
    except NoImagesNamed:
        if has_classes:  # a table of something else
            return None
        raise
    if has_classes:
        _check_agreement(folder, main[0], parts)
    return None if has_classes and len(parts) == 1 else parts


def _parts_in_splits(folder: Path, names: ColumnNames) -> dict[str, Part] | None:
    """`train/metadata.csv` with the images of `train`, and the same for `val`. None without it."""
    parts: dict[str, Part] = {}
    inside = visible_folders(folder)
    roles = roles_of(path.name for path in inside)
    for path in inside:
        role = roles.get(path.name)
        files = files_in(path, TABLE_SUFFIXES) if role else []
        if role and len(files) == 1 and role not in parts:
            parts[role] = next(iter(read_listed(files[0], names, ImageIndex.of(path), role).values()))
    return parts if TRAIN in parts else None


def _has_labels(file: Path, names: ColumnNames) -> bool:
    """Whether a file beside class folders is a table of labels. It may be anything."""
    try:
        return has_label_column(read_table(file, names))
    except DataError:
        return False


def _with_other_tables(file: Path, files: Sequence[Path], names: ColumnNames, index: ImageIndex) -> dict[str, Part]:
    """The images of each split of a table. Tables of other splits belong to a table of training images."""
    parts = read_listed(file, names, index)
    main = next(iter(parts))
    notes = list(parts[main].notes)
    for other in files if role_of(file.stem) == TRAIN and list(parts) == [TRAIN] else []:
        role = role_of(other.stem)
        if role not in (VALIDATION, TEST):
            continue
        try:
            found = read_listed(other, names, index, role)[role]
        except (DataError, KeyError):
            if role == VALIDATION:
                raise
            found = None
        if found is None or (role == TEST and not set(found.classes) & set(parts[TRAIN].classes)):
            notes.append(f"{other.name} is not used, because it does not list images with labels of {file.name}")
        elif role in parts:
            raise DataError(f"{other} and {parts[role].place} both list {role} images. Remove one of them.")
        else:
            parts[role] = found
    used = {image for part in parts.values() for image in part.images.files}
    num_unlisted = sum(image not in used for image in index.files)
    if num_unlisted:
        notes.append(f"{counted(num_unlisted, 'image')} in no table: not used")
    return {**parts, main: replace(parts[main], notes=tuple(notes))}


def _of_parts(parts: dict[str, Part], place: Path) -> Found:
    validation, unused = pick_validation(parts)
    if TRAIN not in parts:
        assert validation is not None
        return only_evaluated(
            validation, [f"{place.name} lists {', '.join(parts)} images", *unused], test=test_of(parts)
        )
    listed = [set(part.images.files) for part in (parts[TRAIN], validation) if part]
    if len(listed) == 2 and (both := listed[0] & listed[1]):
        raise DataError(f"{place} lists {min(both)} as a training and as a validation image. Remove one of its rows.")
    return joined(parts[TRAIN], validation, unused, test=test_of(parts))


def _check_agreement(folder: Path, table: Path, parts: dict[str, Part]) -> None:
    """Refuse class folders and a table beside them that divides the images into other classes."""
    pairs: dict[tuple[str, str], str] = {}
    for part in parts.values():
        for file, label in zip(part.images.files, part.images.labels.tolist(), strict=True):
            if os.path.isfile(file):
                top = os.path.relpath(file, folder).partition(os.sep)[0]
                pairs.setdefault((top, part.classes[label]), file)
    folders, labels = ({pair[side] for pair in pairs} for side in (0, 1))
    if not len(pairs) == len(folders) == len(labels):
        (top, label), file = next(iter(pairs.items()))
        raise DataError(
            f"{folder} has folders that may be classes, such as {top}, and a table {table.name} with other classes, "
            f"such as {label} for {os.path.relpath(file, folder)}. Use the table with --data {table}, or the folders "
            f"with --train-dir {folder} (in Python: train_dir)."
        )
