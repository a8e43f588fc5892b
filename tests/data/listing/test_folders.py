"""Laws of folders: each kind is read or refused, never taken for another; the user's word settles it."""

from pathlib import Path

import pytest
import torch

from builders.images import folders, image_folder, listed, table
from vitrim.data.loading import load_data
from vitrim.errors import DataError, SettingError


@pytest.mark.parametrize("place", ["set", "images", "archive/flowers/data"])
def test_splits_below_a_folder_are_read_and_the_folder_is_named(tmp_path: Path, place: str) -> None:
    image_folder(tmp_path / place, {"train": 2, "val": 1})
    loaded = load_data(tmp_path)
    assert loaded.classes == ("cat", "dog", "owl") and loaded.notes == (f"read from its folder {place}",)


def test_splits_inside_each_class_folder_are_read(tmp_path: Path) -> None:
    places = [f"{name}/{split}" for name in ("cat", "dog") for split in ("train", "test")]
    loaded = load_data(folders(tmp_path, *places), memory_bytes=0)
    assert listed(loaded) == {f"{c}_train_{i}.png": c for c in ("cat", "dog") for i in range(2)}
    assert listed(loaded, "validation") == {f"{c}_test_{i}.png": c for c in ("cat", "dog") for i in range(2)}


REFUSED = {
    "folds": (("fold1/a", "fold1/b", "fold2/a", "fold2/b"), "folds fold1, fold2 of a cross-validation.*--val-dir"),
    "patients": (("p1/0", "p1/1", "p2/0", "p2/1"), "p1, p2 in .* have the same folders inside: 0, 1.*--train-dir"),
    "sources": (("web/a", "web/b", "own/a", "own/b", "own/c"), "same folders inside: a, b"),
    "flat splits": (("train", "test"), "has the splits test, train, but no class folders.*labels.csv.*--train-dir"),
    "masks": (("images", "masks"), "folders images and masks, as data sets for detection or segmentation"),
    "masks in classes": (("a/images", "a/masks", "b/images", "b/masks"), "same folders inside: images, masks"),
    "two sets": (("x/train/a", "x/train/b", "y/train/a", "y/train/b"), "2 folders with splits: x, y. Give the path"),
    "set and images": (("x/train/a", "x/train/b", "cat"), "splits in x, but also images in cat"),
    "too high": (
        ("flowers/a", "flowers/b"),
        r"only one class folder, 'flowers'.*folders a, b are .* the path .*flowers",
    ),
    "a copy": (("a", "b", "all/a", "all/b"), "all has class folders of .* inside, such as a: .*--train-dir .*all"),
    "a copy in train": (("train/a", "train/b", "train/x/a", "train/x/b", "val/a"), "x has class folders of .*train in"),
    "patients in train": (("train/p1/0", "train/p1/1", "train/p2/0", "train/p2/1"), "p1, p2 in .*train have the same"),
    "boxes": (("Annotations/x", "ImageSets/x", "JPEGImages"), "data sets for detection or segmentation"),
    "flat train": (("train",), "has a folder train, but no class folders in it and no table of labels"),
    "splits in one class": (
        ("a/train", "a/test", "b"),
        "class folder .*a has splits inside .test, train., but not all",
    ),
}


@pytest.mark.parametrize(("places", "message"), REFUSED.values(), ids=REFUSED)
def test_folders_that_are_no_classes_are_refused(tmp_path: Path, places: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(folders(tmp_path, *places))


def test_classes_may_be_called_test_or_train(tmp_path: Path) -> None:
    assert load_data(folders(tmp_path / "a", "test", "control")).classes == ("control", "test")
    assert load_data(folders(tmp_path / "b", "bus", "car", "train")).classes == ("bus", "car", "train")
    patients = load_data(folders(tmp_path / "c", "test/p1", "test/p2", "control/p3", "control/p4"))
    assert patients.classes == ("control", "test")
    assert "images in folders inside a class folder, such as control/p3, belong to the class control" in patients.notes


def test_named_folders_are_read_whatever_their_names_are(tmp_path: Path) -> None:
    folders(tmp_path, "a/train", "a/test", "b/train", "b/test", count=3)
    loaded = load_data(train_dir=tmp_path / "a", val_dir=tmp_path / "b", memory_bytes=0)
    assert loaded.classes == ("test", "train") and loaded.name == tmp_path.name
    assert torch.bincount(loaded.train.labels).tolist() == torch.bincount(loaded.validation.labels).tolist() == [3, 3]
    assert loaded.notes == (f"training images from {tmp_path / 'a'}", f"validation images from {tmp_path / 'b'}")
    held_out = load_data(train_dir=tmp_path / "a")
    assert len(held_out.train) == 4 and held_out.notes[-1].startswith("no validation split found")


def test_several_named_folders_are_joined_and_paths_start_from_the_data_set(tmp_path: Path) -> None:
    folders(tmp_path, "fold1/cat", "fold1/dog", "fold2/dog", "fold2/ant", "fold3/dog")
    loaded = load_data(tmp_path, train_dir=["fold1", "fold2"], val_dir="fold3", memory_bytes=0)
    assert loaded.classes == ("ant", "cat", "dog") and torch.bincount(loaded.train.labels).tolist() == [2, 2, 4]
    assert set(listed(loaded, "validation").values()) == {"dog"}
    assert [Path(file).parent.name for file in loaded.train.files] == [loaded.classes[n] for n in loaded.train.labels]


def test_nearly_equal_classes_of_training_folders_are_one_class_and_others_are_named(tmp_path: Path) -> None:
    folders(tmp_path, "a/cat", "a/sea lion", "b/Cat", "b/Sea_Lion", "c/cat", "c/owl")
    same = load_data(train_dir=[tmp_path / "a", tmp_path / "b"])
    assert same.classes == ("cat", "sea lion") and "the folder 'Cat' with 'cat'" in " ".join(same.notes)
    assert (len(same.train) + len(same.validation)) == 8
    data = load_data(tmp_path, train_dir=["a", "b", "c"], memory_bytes=0)
    assert data.classes == ("cat", "owl", "sea lion")
    labels = {
        file.split("/")[-3] + file.split("/")[-2]: data.train.labels[i] for i, file in enumerate(data.train.files)
    }
    assert labels == {"acat": 0, "bCat": 0, "ccat": 0, "cowl": 1, "asea lion": 2, "bSea_Lion": 2}
    notes = " ".join(data.notes)
    assert "c has no class sea lion, as other training folders have" in notes and "c has the class owl" in notes
    folders(tmp_path, "d/Cat", "d/cat")
    with pytest.raises(DataError, match="could all be 'cat'"):
        load_data(tmp_path, train_dir=["a", "d"])


def test_validation_images_alone_are_for_evaluation(tmp_path: Path) -> None:
    loaded = load_data(val_dir=folders(tmp_path, "cat", "dog"), limit_per_class=1)
    assert len(loaded.train) == 0 and loaded.validation.labels.tolist() == [0, 0, 1, 1]
    assert loaded.notes[1] == "no training images were named or found, so a model can only be evaluated"


def test_named_folders_that_contradict_are_refused(tmp_path: Path) -> None:
    folders(tmp_path, "a/cat", "a/dog")
    with pytest.raises(SettingError, match="named twice, or lies in another folder"):
        load_data(train_dir=tmp_path / "a", val_dir=tmp_path / "a" / "cat")
    with pytest.raises(SettingError, match=r"Only the validation folder a was named.*--train-dir"):
        load_data(tmp_path, val_dir="a")
    with pytest.raises(DataError, match="does not exist"):
        load_data(tmp_path, train_dir="absent")
    with pytest.raises(SettingError, match="leave them out for 'digits'"):
        load_data("digits", train_dir=tmp_path / "a")
    with pytest.raises(SettingError, match="No data set was named"):
        load_data()
    with pytest.raises(TypeError, match="'train_folder'"):
        load_data(tmp_path, train_folder="a")


def test_images_beside_class_folders_are_named(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dog")
    table(tmp_path / "notes.md", images=["a.png"])
    assert f"images in {tmp_path.name} itself, beside the class folders, are not used" in load_data(tmp_path).notes
