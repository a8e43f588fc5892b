"""Laws of rows and files: a row names one image below the folder, or none; whatever is not used is said."""

import os
from pathlib import Path

import pytest

from builders.images import listed, table
from vitrim.data.listing.listed_images import ImageIndex
from vitrim.data.loading import load_data
from vitrim.errors import DataError


def labelled(names: list[str]) -> list[str]:
    return ["file,label", *[f"{name},{('cat', 'dog')[i % 2]}" for i, name in enumerate(names)]]


@pytest.mark.parametrize("pattern", ["{}", "im/{}.png", "im\\\\{}.png", "./im/{}.png", "{}.png"])
def test_an_image_is_found_by_its_path_its_name_or_its_id(tmp_path: Path, pattern: str) -> None:
    names = [pattern.format(f"x{i}") for i in range(4)]
    file = table(tmp_path / "labels.csv", *labelled(names), images=[f"im/x{i}.png" for i in range(4)])
    loaded = load_data(file, memory_bytes=0)
    assert {**listed(loaded), **listed(loaded, "validation")} == {f"x{i}.png": ("cat", "dog")[i % 2] for i in range(4)}


def test_absolute_paths_of_existing_images_are_read(tmp_path: Path) -> None:
    names = [str(tmp_path / "other" / f"{i}.png") for i in range(4)]
    file = table(tmp_path / "tables" / "labels.csv", *labelled(names), images=[f"../other/{i}.png" for i in range(4)])
    assert set(load_data(file, memory_bytes=0).train.files) < set(names)
    gone = table(tmp_path / "tables" / "gone.csv", *labelled(["/nowhere/0.png", "/nowhere/1.png"]))
    with pytest.raises(DataError, match=r"No column of .* first row is /nowhere/0.png, cat"):
        load_data(gone)


@pytest.mark.parametrize("path", ["../../etc/passwd.png", "im/../../x.png", "..\\\\x.png"])
def test_a_path_out_of_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    table(tmp_path / "x.txt", images=["x.png"])
    file = table(tmp_path / "a" / "labels.csv", *labelled(["1.png", "2.png", path]), images=["1.png", "2.png"])
    with pytest.raises(DataError, match=r"leads out of .*a\. Write paths below this folder"):
        load_data(file)


def test_a_name_in_two_folders_is_refused_unless_the_folder_is_that_of_the_split(tmp_path: Path) -> None:
    images = [f"{split}/{i}.png" for split in ("train", "test") for i in range(4)]
    lines = labelled([str(i) for i in range(4)])
    with pytest.raises(DataError, match=r"0 in .* may be test.0\.png or train.0\.png\. Write the path"):
        load_data(table(tmp_path / "a" / "labels.csv", *lines, images=images))
    loaded = load_data(table(tmp_path / "b" / "train.csv", *lines, images=images), memory_bytes=0)
    assert {Path(file).parent.name for file in (*loaded.train.files, *loaded.validation.files)} == {"train"}
    assert "4 images in no table: not used" in loaded.notes


def test_rows_that_are_not_used_are_counted(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(8)]
    lines = [*labelled(names), "0.png,cat", "no.png,", "gone.png,dog"]
    loaded = load_data(table(tmp_path / "labels.csv", *lines, images=[*names, "spare.png"]), holdout=0.25)
    assert loaded.notes[1:4] == (
        "1 row of labels.csv without a label: not used",
        "1 row of labels.csv for an image of an earlier row: not used",
        "1 image in no table: not used",
    )
    assert loaded.notes[-1] == f"skipped 1 file that is not a readable image: {os.path.join(tmp_path.name, 'gone.png')}"
    assert len(loaded.train) + len(loaded.validation) == 8
    with pytest.raises(DataError, match=r"gone.png cannot be decoded"):
        load_data(tmp_path, strict=True)


def test_an_accent_is_the_same_letter_in_both_of_its_forms(tmp_path: Path) -> None:
    file = table(tmp_path / "a.csv", "file,label", images=["cafe\u0301.png"])
    index = ImageIndex.of(tmp_path)
    assert index.find("caf\u00e9.png", tmp_path) == list(index.files) == index.find("cafe\u0301", file.parent)
    assert index.find("cafe", tmp_path) == index.find("", tmp_path) == []
