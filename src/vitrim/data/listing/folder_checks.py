"""Refuse folders that are not class folders: splits without classes, folds, patients, images beside their masks.

Reading such folders as classes would train a model on the wrong labels without an error.
"""

import os
from collections import Counter
from pathlib import Path

from vitrim.data.listing.layouts import holds_images, visible_folders
from vitrim.data.listing.parts import Part
from vitrim.data.listing.split_names import TEST, TRAIN, VALIDATION, is_fold, role_of, roles_of
from vitrim.errors import DataError

# Folders of one data set for detection or segmentation, which are not classes.
_PARTS_OF_ONE_IMAGE = {
    *("images", "image", "imgs", "img", "jpegimages", "inputs", "labels", "label", "annotations", "annotation"),
    *("masks", "mask", "segmentations", "segmentation", "groundtruth", "gt", "bboxes", "boxes", "xml", "xmls", "jsons"),
    *("imagesets", "segmentationclass", "segmentationobject", "trimaps"),
}


def say_classes(folder: Path) -> str:
    """How the user can say that the folders in `folder` are the classes."""
    return f"If the folders in {folder} are the classes, say so with --train-dir {folder} (in Python: train_dir)."


def problem_with_names(folder: Path) -> str:
    """Say why the names of the folders in `folder` are not those of classes. Empty if they may be.

    Names of splits, of folds, and of images beside their masks are no classes.
    """
    names = [path.name for path in visible_folders(folder) if holds_images(path, levels=2)]
    roles = roles_of(names)
    found = set(roles.values())
    if TRAIN in found and len(found) > 1:
        return (
            f"{folder} has the splits {', '.join(roles)}, but no class folders in {next(iter(roles))} and no table of "
            "labels. Put the images of each class in a folder named after the class, or give a table of files and "
            "labels: --data labels.csv."
        )
    if found and len(roles) == len(names):
        held = next(iter(roles))
        if TRAIN in found:
            return f"{folder} has a folder {held}, but no class folders in it and no table of labels."
        return f"{folder} has a folder {held} but no folder train; put the training images into a folder train."
    if len(names) > 1 and all(is_fold(name) for name in names):
        return (
            f"{folder} has the folds {', '.join(names[:3])} of a cross-validation, which are not classes. Name those "
            f"to train on, with --train-dir {folder / names[0]} (may be repeated), and one to validate on, with "
            f"--val-dir {folder / names[-1]} (in Python: train_dir, val_dir)."
        )
    return problem_with_parts(folder)


def problem_with_parts(folder: Path) -> str:
    """Say that the folders in `folder` are images beside their boxes or masks. Empty if they are not."""
    names = [path.name for path in visible_folders(folder)]
    if len(names) < 2 or not {name.lower() for name in names} <= _PARTS_OF_ONE_IMAGE:
        return ""
    return (
        f"{folder} has the folders {' and '.join(names)}, as data sets for detection or segmentation do; vitrim trains "
        "classifiers. Put the images of each class in a folder named after the class, or give the path of the folder "
        "that has these."
    )


def looks_like_classes(folder: Path) -> bool:
    """Whether a folder has several folders with images that may be classes by their names."""
    several = sum(holds_images(path, levels=2) for path in visible_folders(folder)) > 1
    return several and not problem_with_names(folder)


def check_copies(part: Part) -> None:
    """Refuse a class folder that has the other class folders inside, as some downloads do.

    Raises:
        DataError: there is such a folder.
    """
    for name in part.classes:
        inside = {path.name for path in visible_folders(part.place / name)} & (set(part.classes) - {name})
        if len(inside) > 1:
            raise DataError(
                f"{part.place / name} has class folders of {part.place} inside, such as {min(inside)}: it is no class, "
                f"but may be a copy. Move it away. {say_classes(part.place / name)}"
            )


def check_class_folders(part: Part) -> list[str]:
    """Refuse class folders that all have the same folders inside, which may be the classes themselves.

    Returns:
        Notes: class folders with several folders inside.

    Raises:
        DataError: most class folders have two or more folders of the same names, or one has splits inside.
    """
    inside: dict[int, set[str]] = {}
    starts = [len(os.path.join(part.place, name, "")) for name in part.classes]
    for file, label in zip(part.images.files, part.images.labels.tolist(), strict=True):
        first, separator, _ = file[starts[label] :].partition(os.sep)
        inside.setdefault(label, set()).add(first if separator else "")
    counts = Counter(name for names in inside.values() for name in names if name)
    common = sorted(name for name, count in counts.items() if 2 * count > len(inside))
    if len(common) > 1:
        raise DataError(
            f"The folders {', '.join(part.classes[:3])} in {part.place} have the same folders inside: "
            f"{', '.join(common[:3])}. Either these are the classes, and the outer folders are splits or sources: then "
            "name those to train and to validate on with --train-dir (may be repeated) and --val-dir "
            f"(in Python: train_dir, val_dir). Or the outer folders are the classes. {say_classes(part.place)}"
        )
    for label, names in inside.items():
        roles = {role_of(name) for name in names}
        if TRAIN in roles and roles & {VALIDATION, TEST}:
            raise DataError(
                f"The class folder {part.place / part.classes[label]} has splits inside ({', '.join(sorted(names))}), "
                f"but not all class folders do. Give all of them the same splits. {say_classes(part.place)}"
            )
    nested = [(part.classes[label], sorted(names - {""})) for label, names in inside.items() if len(names - {""}) > 1]
    if not nested:
        return []
    name, folders = nested[0]
    return [f"images in folders inside a class folder, such as {name}/{folders[0]}, belong to the class {name}"]
