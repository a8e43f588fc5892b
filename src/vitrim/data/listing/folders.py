"""Decide how a folder is read: splits, class folders, a table of labels, or one of these further down.

Each kind is read elsewhere: `splits`, `layouts`, `table_folders`. Where more than one kind is possible, the folder is
refused with the options that settle it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vitrim.data.listing.folder_checks import check_class_folders, check_copies, problem_with_names, say_classes
from vitrim.data.listing.layouts import holds_images, read_classes, visible_folders
from vitrim.data.listing.listed_images import pick_validation
from vitrim.data.listing.parts import Found, Part, joined, merged, only_evaluated, test_of
from vitrim.data.listing.split_names import TRAIN, role_of, roles_of
from vitrim.data.listing.splits import class_folder, read_layout
from vitrim.data.listing.table_folders import read_tables, table_parts
from vitrim.data.listing.tables import ColumnNames
from vitrim.errors import DataError, SettingError

_MAX_LEVELS = 3  # below a folder, where splits are looked for: ImageNet's are in ILSVRC/Data/CLS-LOC
_MAX_FOLDERS = 50  # a folder with more of them has class folders


def read_folder(folder: Path, names: ColumnNames) -> Found:
    """List the images of a folder.

    Args:
        folder: what the user named.
        names: columns of a table of labels. If any is named, the labels are read from the table.

    Raises:
        DataError: the folder has no usable images, or it is not certain how they are to be read.
    """
    if names:
        found = read_tables(folder, names)
        if found is None:
            raise DataError(f"{folder} has no table of labels (csv, tsv, jsonl); leave out the names of its columns.")
        return found
    return (
        read_layout(folder)
        or read_tables(folder, names)
        or _read_below(folder)
        or _read_splits_in_classes(folder)
        or _read_class_folders(folder)
    )


def read_places(train: Sequence[Path], validation: Path | None, names: ColumnNames) -> Found:
    """List the images of folders that the user named: each holds class folders, or a table and its images.

    Args:
        train: folders of training images. There may be none, if the images are only to be evaluated.
        validation: folder of validation images. Without one, a part of the training images is held out.
        names: columns of the tables.

    Raises:
        DataError: a folder has no usable images, or the classes of the folders do not fit.
        SettingError: a folder is named twice, or lies in another one.
    """
    everything = [*train, *([validation] if validation else [])]
    for path in everything:
        real = path.resolve()
        others = [other.resolve() for other in everything if other is not path]
        if real in others or any(other in real.parents for other in others):
            raise SettingError(
                f"{path} is named twice, or lies in another folder that is named. Name separate folders."
            )
    parts = [_named_part(path, names, 2 if len(train) == 1 else 1) for path in train]
    held = _named_part(validation, names, 1) if validation else None
    what = ["training"] * len(train) + ["validation"] * (held is not None)
    notes = [f"{split} images from {path}" for split, path in zip(what, everything, strict=True)]
    if parts:
        return joined(merged(parts), held, notes)
    assert held is not None
    return only_evaluated(held, notes)


def _named_part(folder: Path, names: ColumnNames, min_classes: int) -> Part:
    """The images of a folder that the user named: a table and its images, else class folders."""
    if not names and class_folder(folder) is not None:
        return read_classes(folder, min_classes)
    parts = table_parts(folder, names)
    if parts is None:
        return read_classes(folder, min_classes)  # says what it lacks
    if len(parts) > 1:
        raise DataError(f"The table in {folder} has the splits {', '.join(parts)}; give {folder} with --data instead.")
    return next(iter(parts.values()))


def _read_below(folder: Path) -> Found | None:
    """Read the only folder with splits further down, such as `set/{train,val}`. None if there is none.

    Raises:
        DataError: there are several, or images also elsewhere.
    """
    places = _split_places(folder, _MAX_LEVELS)
    if not places:
        return None
    if len(places) > 1:
        shown = ", ".join(str(path.relative_to(folder)) for path in places[:3])
        raise DataError(
            f"{folder} has {len(places)} folders with splits: {shown}. Give the path of one of them, "
            f"such as {places[0]}."
        )
    (place,) = places
    top = folder / place.relative_to(folder).parts[0]
    beside = [path for path in visible_folders(folder) if path != top and holds_images(path, levels=2)]
    if beside:
        raise DataError(
            f"{folder} has splits in {place.relative_to(folder)}, but also images in {beside[0].name}. "
            f"Give the path {place}. {say_classes(folder)}"
        )
    found = read_layout(place)
    assert found is not None
    return replace(found, notes=(f"read from its folder {place.relative_to(folder).as_posix()}", *found.notes))


def _split_places(folder: Path, levels: int) -> list[Path]:
    """The folders below a folder that have a training folder with class folders with images."""
    inside = visible_folders(folder)
    if len(inside) > _MAX_FOLDERS:
        return []
    found = []
    for path in inside:
        names = roles_of(child.name for child in visible_folders(path))
        training = [path / name for name, role in names.items() if role == TRAIN]
        if any((inner := class_folder(child)) and _has_images_in_classes(inner) for child in training):
            found.append(path)
        elif levels > 1:
            found += _split_places(path, levels - 1)
    return found


def _has_images_in_classes(folder: Path) -> bool:
    return any(holds_images(path, levels=1) for path in visible_folders(folder)[:5])


def _read_splits_in_classes(folder: Path) -> Found | None:
    """Read `<class>/train/*` and `<class>/test/*`. None if a class folder has anything else.

    Raises:
        DataError: there are fewer than two classes.
    """
    classes = [path for path in visible_folders(folder) if holds_images(path, levels=2)]
    listed: dict[str, list[tuple[int, Path]]] = {}
    for number, path in enumerate(classes):
        inside = [child for child in visible_folders(path) if holds_images(child, levels=1)]
        roles = [role_of(child.name) for child in inside]
        if TRAIN not in roles or None in roles or len(set(roles)) < max(2, len(roles)) or holds_images(path):
            return None
        for role, child in zip(roles, inside, strict=True):
            listed.setdefault(str(role), []).append((number, child))
    if len(classes) < 2:
        return None
    parts = {}
    for role, places in listed.items():
        parts[role] = read_classes(folder, 1, [(classes[number].name, child) for number, child in places])
    validation, unused = pick_validation(parts)
    names = ", ".join(sorted({child.name for places in listed.values() for _, child in places}))
    notes = [f"each class folder has its own splits: {names}", *unused]
    return joined(parts[TRAIN], validation, notes, test=test_of(parts))


def _read_class_folders(folder: Path) -> Found:
    """Read `<class>/**`, unless the folders look like something else than classes.

    Raises:
        DataError: they do, or `read_classes` refuses them.
    """
    problem = problem_with_names(folder)
    if problem:
        raise DataError(f"{problem} {say_classes(folder)}")
    filled = [path for path in visible_folders(folder) if holds_images(path, levels=2)]
    if len(filled) == 1 and len(inside := visible_folders(filled[0])) > 1 and len(visible_folders(folder)) > 1:
        names = ", ".join(path.name for path in inside[:3])
        raise DataError(
            f"{folder} has images only in its folder {filled[0].name}. If the folders {names} in it are the classes, "
            f"give the path {filled[0]}, or the path of a list of files and labels."
        )
    part = read_classes(folder)
    check_copies(part)
    notes = check_class_folders(part)
    if holds_images(folder):
        notes.append(f"images in {folder.name} itself, beside the class folders, are not used")
    return joined(part, None, notes)
