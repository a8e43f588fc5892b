"""Read a folder with splits: a folder of training images beside one of validation or test images.

Which names mean which split is in `split_names`, how class folders are listed in `layouts`. Which kind of folder it is,
and what to do where that is not certain, is in `folders`.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from vitrim.data.listing.folder_checks import check_class_folders, check_copies, problem_with_parts
from vitrim.data.listing.imagenet_devkit import read_devkit
from vitrim.data.listing.layouts import GENERIC, holds_images, read_cifar, read_classes, visible_folders
from vitrim.data.listing.listed_images import ImageIndex, in_place_of_folders
from vitrim.data.listing.parts import Found, Part, joined, only_evaluated, test_of
from vitrim.data.listing.split_names import TEST, TRAIN, VALIDATION, role_of, roles_of, split_name
from vitrim.data.listing.tables import LISTS, NO_COLUMNS, ColumnNames, files_in
from vitrim.errors import DataError, counted

CANONICAL = {"train", "val", "valid", "validation", "test"}  # need no note
_MAX_LEVELS = 3  # folders with one folder in them
_SOLUTION = "LOC_val_solution.csv"
SAY_IT = "Name the folders with --train-dir and --val-dir (in Python: train_dir, val_dir)."


def read_layout(folder: Path) -> Found | None:
    """Read a folder with one of CIFAR's layouts or with folders for splits; return None for any other folder.

    Raises:
        DataError: the folder has such a layout, but a file in it is missing or damaged, or two folders may be meant.
    """
    return read_cifar(folder) or read_splits(folder)


def read_splits(folder: Path) -> Found | None:
    """Read `train/<class>/*`, with `val/<class>/*` or a list of the validation images, or `val/<class>/*` alone.

    Returns:
        None for a folder without splits.

    Raises:
        DataError: a folder has no images, a validation class is not a training class, or two folders may be meant.
    """
    folders = visible_folders(folder)
    roles = roles_of(path.name for path in folders)
    chosen = _training_folder([path for path in folders if roles.get(path.name) == TRAIN])
    if chosen is None:
        return _read_held_out(folder, roles)
    problem = problem_with_parts(chosen[1])
    if problem:
        raise DataError(problem)
    train = _without_boxes(read_classes(chosen[1]))
    check_copies(train)
    nested = check_class_folders(train)
    others = [path for path in folders if path != chosen[0]]
    validation, name = _find_held_out(others, train, folder, (VALIDATION, TEST))
    unused = [path for path in others if path.name != name]
    if not name:
        _refuse_classes_beside(chosen[1], unused)
    if validation and validation.place.resolve() == train.place.resolve():
        raise DataError(f"{folder / name} is a link to {chosen[0]}: both splits have the same images. Remove one.")
    notes = [*_notes_on_folders(chosen, name, unused), *nested]
    return joined(train, validation, notes, test=lambda: _find_held_out(others, train, folder, (TEST,))[0])


def _read_held_out(folder: Path, roles: Mapping[str, str]) -> Found | None:
    """Read `val/<class>/*` or `test/<class>/*` where all folders with images are such splits. Else return None."""
    filled = [path for path in visible_folders(folder) if holds_images(path, levels=3)]
    places = {role: path for path in reversed(filled) if (role := roles.get(path.name)) in (VALIDATION, TEST)}
    if not places or len(places) < len(filled):
        return None
    if not all((inner := class_folder(path)) and holds_images(inner, levels=2) for path in places.values()):
        return None
    parts = {role: read_classes(class_folder(path) or path, min_classes=1) for role, path in places.items()}
    notes = [f"no folder of training images beside {', '.join(path.name for path in filled)}"]
    return only_evaluated(parts.get(VALIDATION) or parts[TEST], notes, test=test_of(parts))


def class_folder(folder: Path, known: Sequence[str] = ()) -> Path | None:
    """Return the folder that has class folders: `folder`, or the only folder in it, and so on.

    Args:
        folder: of a split, such as `seg_train`, which may have `seg_train/seg_train/<class>`.
        known: names of classes. A folder with such a name is a class.

    Returns:
        None if the images have no class folders.
    """
    for _ in range(_MAX_LEVELS):
        inside = visible_folders(folder)
        if not inside:
            return None
        if len(inside) > 1 or inside[0].name in known:
            return folder
        deeper = [path for path in visible_folders(inside[0]) if holds_images(path, levels=1)]
        if not deeper:
            return None if inside[0].name.lower() in GENERIC else folder
        folder = inside[0]
    return folder


def _without_boxes(train: Part) -> Part:
    """Without the files of Tiny ImageNet that have the boxes of the images of a class: they are no broken images."""
    others = [file for file in train.not_images if not file.endswith("_boxes.txt")]
    return replace(train, not_images=tuple(others))


def _training_folder(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """The folder of the training images, and the folder in it that has the class folders."""
    found = [(path, inner) for path in folders if (inner := class_folder(path))]
    for is_better in (
        lambda name: "trainval" not in name.replace("_", "").replace("-", ""),
        lambda name: role_of(name) is not None,
        lambda name: name in ("train", "training"),
    ):
        found = [pair for pair in found if is_better(pair[0].name.lower())] or found
    if len(found) > 1:
        names = [path.name for path, _ in found]
        raise DataError(
            f"{found[0][0].parent} has several folders of training images: {', '.join(names)}. Which ones are meant is "
            "not certain. Name them with --train-dir, which may be repeated, and --val-dir "
            "(in Python: train_dir, val_dir)."
        )
    return found[0] if found else None


def _find_held_out(folders: Sequence[Path], train: Part, place: Path, roles: Sequence[str]) -> tuple[Part | None, str]:
    """The images of the first of these roles that a folder has, and the name of this folder."""
    named = [(path, split) for path in folders if (split := split_name(path.name)) and split.role != TRAIN]
    for role in roles:
        for plain in (True, False):
            group = [path for path, split in named if split.role == role and split.is_plain == plain]
            found = [(part, path) for path in group if (part := _validation_part(path, train, role, place))]
            if len(found) > 1:
                raise DataError(
                    f"{place} has several folders of {role} images: {', '.join(path.name for _, path in found)}. "
                    "Name the one to validate on with --val-dir, and --train-dir "
                    f"{train.place.name} (in Python: val_dir, train_dir)."
                )
            if found:
                return found[0][0], found[0][1].name
    return None, ""


def _validation_part(folder: Path, train: Part, role: str, place: Path) -> Part | None:
    """The images of a folder: in class folders, or with a list of labels. None for test images without labels."""
    inner = class_folder(folder, train.classes)
    if inner is not None:
        filled = [path for path in visible_folders(inner) if holds_images(path, levels=2)]
        known = {_loose(path.name) for path in filled} & {_loose(name) for name in train.classes}
        if known or (len(filled) > 1 and role == VALIDATION):
            return read_classes(inner, min_classes=1)
        if role == VALIDATION and filled and filled[0].name.lower() not in GENERIC:
            return read_classes(inner, min_classes=1)  # its classes are not those of the training images
    if not holds_images(folder, levels=2):
        if role == TEST:
            return None
        raise DataError(f"{folder} has no image; put the validation images of each class in a folder named after it.")
    try:
        listed = _with_list(folder, train, place)
    except DataError:
        if role == VALIDATION:
            raise
        return None  # a list of test images without labels
    if listed is None and role == VALIDATION:
        raise DataError(
            f"{folder} has images but no class folders, and no list of their labels was found. Looked for "
            f"val_annotations.txt, metadata.csv and labels.csv in it, {folder.name}.csv and {folder.name}.txt beside "
            f"it, and {_SOLUTION} also above it. Move the images into class folders, or name another folder with "
            "--val-dir."
        )
    return listed


def _with_list(folder: Path, train: Part, place: Path) -> Part | None:
    """The images of a flat folder whose labels are in a list beside them, or above them. None without a list."""
    for file in (folder / "val_annotations.txt", place / "val_annotations.txt"):
        if file.is_file():  # of Tiny ImageNet: file name, class and a box
            return _listed(file, ColumnNames(image="1", label="2"), folder, train)
    name = folder.name.lower()
    inside = {"metadata", "labels", "annotations", name}
    outside = {name, f"{name}_labels", f"{name}_annotations", f"{name}_metadata"}
    beside = [file for file in files_in(folder, LISTS) if file.stem.lower() in inside]
    above = [file for file in files_in(place, LISTS) if file.stem.lower() in outside]
    solutions = [parent / _SOLUTION for parent in (folder, place, *place.absolute().parents[:_MAX_LEVELS])]
    for file in (*beside, *above, *filter(Path.is_file, solutions)):
        return _listed(file, NO_COLUMNS, folder, train)
    return read_devkit(ImageIndex.of(folder).files, [folder, place, *place.absolute().parents[:_MAX_LEVELS]])


def _listed(file: Path, names: ColumnNames, folder: Path, train: Part) -> Part:
    return in_place_of_folders(file, names, ImageIndex.of(folder), train.classes)


def _loose(name: str) -> str:
    """A name to tell whether folders are those of the classes at all. Which name is which class is told exactly."""
    return unicodedata.normalize("NFC", name).strip().casefold()


def _refuse_classes_beside(train: Path, others: Sequence[Path]) -> None:
    """`train` beside `bus` and `car`, all with the same folders inside, may be a class or a split."""
    inside = {path.name for path in visible_folders(train)}
    for path in others:
        both = inside & {child.name for child in visible_folders(path)}
        if both:
            raise DataError(
                f"{train} and {path} have the same folders inside, such as {min(both)}, but {path.name} is not the "
                f"name of a split. {SAY_IT}"
            )


def _notes_on_folders(train: tuple[Path, Path], validation: str, unused: Sequence[Path]) -> list[str]:
    notes = []
    place = train[1].relative_to(train[0].parent).as_posix()
    if {place.lower(), validation.lower() or "val"} - CANONICAL:
        found = f", validation images from {validation}" if validation else ""
        notes.append(f"training images from {place}{found}")
    for path in unused:
        split = split_name(path.name)
        if split and split.role != TRAIN and validation:
            notes.append(f"folder {path.name} is not used, because {validation} is the validation split")
        elif split and split.role != TRAIN:
            notes.append(f"folder {path.name} is not used, because it has no labels of the training classes")
    rest = [path.name for path in unused if not ((split := split_name(path.name)) and split.role != TRAIN)]
    if rest:
        shown = ", ".join(rest[:3]) + (", ..." if len(rest) > 3 else "")
        notes.append(f"{counted(len(rest), 'folder')} beside {train[0].name} not used: {shown}")
    return notes
