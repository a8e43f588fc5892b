"""Laws of ImageNet's development kit: its numbers become class folders by `meta.mat`, and by nothing else."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from builders.images import folders, listed, table
from vitrim.data.loading import load_data
from vitrim.errors import DataError

WNIDS = ("n03", "n01", "n02")  # numbers 1, 2, 3: not in the order of the folders


def write_kit(folder: Path, numbers: list[int]) -> Path:
    """The two files of the kit. Number 4 is a group of classes, as in the official file."""
    synsets = np.zeros((4, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    for row, name in enumerate([*WNIDS, "n99"]):
        synsets[row, 0] = (row + 1, name, int(name == "n99"))
    table(folder / "ILSVRC2012_validation_ground_truth.txt", *map(str, numbers))
    savemat(folder / "meta.mat", {"synsets": synsets})
    return folder


def imagenet(root: Path, num_images: int = 4) -> Path:
    names = [f"val/ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(num_images)]
    table(root / "readme.md", images=names)
    return folders(root, "train/n01", "train/n02", "train/n03")


@pytest.mark.parametrize("place", [".", "..", "../ILSVRC2012_devkit_t12/data"])
def test_the_numbers_of_the_kit_become_class_folders(tmp_path: Path, place: str) -> None:
    root = imagenet(tmp_path / "imagenet")
    write_kit(root / place, [2, 3, 1, 2])
    found = listed(load_data(root, memory_bytes=0), "validation")
    names = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(4)]
    assert found == dict(zip(names, ("n01", "n02", "n03", "n01"), strict=True))


def test_a_kit_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    root = imagenet(tmp_path)
    kit = write_kit(root, [1, 2, 3])
    with pytest.raises(DataError, match=r"no label for .*ILSVRC2012_val_00000004\.JPEG"):
        load_data(root)
    write_kit(root, [1, 2, 3, 4])
    with pytest.raises(DataError, match=r"no label for .*ILSVRC2012_val_00000004\.JPEG"):
        load_data(root)
    (kit / "meta.mat").write_bytes(b"no arrays")
    with pytest.raises(DataError, match=r"meta\.mat is not that of ImageNet's development kit"):
        load_data(root)
