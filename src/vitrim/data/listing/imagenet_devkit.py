"""The labels of ImageNet's validation images from its development kit.

Its list has one number for each image. Which number is which class folder is in `meta.mat`, which scipy reads: it holds
arrays, and no code.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from vitrim.data.images import ImageSet
from vitrim.data.listing.parts import Part
from vitrim.errors import DataError, counted

_LABELS = "ILSVRC2012_validation_ground_truth.txt"
_META = "meta.mat"
_INSIDE = ("", "data", "ILSVRC2012_devkit_t12/data")
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})\.")


def read_devkit(files: Sequence[str], places: Sequence[Path]) -> Part | None:
    """List ImageNet's validation images with the labels of the development kit.

    Args:
        files: the images, `ILSVRC2012_val_00000001.JPEG` and so on.
        places: folders in which the kit, its folder `data` or its files are looked for.

    Returns:
        None if there is no list of labels.

    Raises:
        DataError: `meta.mat` is missing, a file is damaged, or an image has no label in the list.
    """
    found = [path for place in places for inside in _INSIDE if (path := place / inside / _LABELS).is_file()]
    if not found:
        return None
    labels = found[0]
    meta = labels.parent / _META
    if not meta.is_file():
        raise DataError(
            f"{labels} numbers the classes as ImageNet's development kit does. Which number is which class folder is "
            f"in its {_META}: put it beside the list. Or put LOC_val_solution.csv (from Kaggle) beside the images, or "
            "move the validation images into class folders."
        )
    synsets, lines = _synsets(meta), labels.read_text().split()
    names = []
    for file in files:
        number = int(match[1]) if (match := _NUMBER.search(Path(file).name)) else 0
        if not 1 <= number <= len(lines) or lines[number - 1] not in synsets:
            raise DataError(
                f"{labels} has no label for {file}; expected images ILSVRC2012_val_00000001.JPEG and so on."
            )
        names.append(synsets[lines[number - 1]])
    classes = tuple(sorted(set(names)))
    number_of = {name: number for number, name in enumerate(classes)}
    return Part(
        place=labels,
        classes=classes,
        images=ImageSet(labels=torch.tensor([number_of[name] for name in names]), files=tuple(files)),
        notes=(f"labels of {counted(len(files), 'validation image')} from {labels.name} and {_META}",),
    )


def _synsets(meta: Path) -> dict[str, str]:
    """The names of the class folders by their numbers, as text. Groups of classes are left out."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        rows = loadmat(str(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        leaves = [row for row in rows if int(row["num_children"]) == 0]
        return {str(int(row["ILSVRC2012_ID"])): str(row["WNID"]) for row in leaves}
    # scipy raises many kinds of errors for damaged files.
    except (OSError, LookupError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{meta} is not that of ImageNet's development kit ({error}); unpack the kit again.") from error
