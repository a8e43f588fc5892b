"""Laws of splits: any usual name is recognised, lists of validation images are read, what is not used is named."""

from pathlib import Path

import pytest

from builders.images import folders, image_folder, listed, table, tiny_imagenet
from vitrim.data.loading import load_data
from vitrim.errors import DataError

CLASSES = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ("Training", "Testing"),
        ("training_set", "test_set"),
        ("train", "eval"),
        ("train", "dev"),
        ("trainset", "testset"),
        ("Train", "Valid"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("flowers_train", "flowers_val"),
        ("1. train", "2. test"),
        ("train_images", "val_images"),
    ],
)
def test_splits_are_recognised_by_their_usual_names(tmp_path: Path, train: str, validation: str) -> None:
    loaded = load_data(image_folder(tmp_path, {train: 2, validation: 1}), memory_bytes=0)
    assert loaded.classes == CLASSES
    assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and loaded.validation.labels.tolist() == [0, 1, 2]
    assert all(f"/{train}/" in Path(file).as_posix() for file in loaded.train.files)
    assert all(f"/{validation}/" in Path(file).as_posix() for file in loaded.validation.files)


def test_the_folders_that_are_used_and_those_that_are_not_are_named(tmp_path: Path) -> None:
    image_folder(tmp_path, {"Training": 2, "Testing": 1, "valid": 1, "raw": 1})
    assert load_data(tmp_path).notes == (
        "training images from Training, validation images from valid",
        "folder Testing is not used, because valid is the validation split",
        "1 folder beside Training not used: raw",
    )


def test_a_test_folder_without_labels_is_not_used_and_this_is_said(tmp_path: Path) -> None:
    loaded = load_data(folders(tmp_path, "train/cat", "train/dog", "test"), memory_bytes=0)
    assert all("/train/" in Path(file).as_posix() for file in loaded.validation.files)
    assert loaded.notes[0].startswith("folder test is not used, because it has no labels of the training classes")
    table(tmp_path / "test.csv", "id", "test_0", "test_1")  # no labels either
    assert load_data(tmp_path, memory_bytes=0).notes == loaded.notes


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (
            ("train1/cat", "train1/dog", "train2/cat", "train2/dog"),
            "several folders of training images: train1, train2",
        ),
        (
            ("train/cat", "train/dog", "dev/cat", "eval/cat"),
            "several folders of validation images: dev, eval.*--val-dir",
        ),
        (
            ("train/a", "train/b", "bus/a", "bus/b"),
            "train and .*bus have the same folders inside, such as a.*--train-dir",
        ),
        (("train/images", "train/labels", "val/images"), "folders images and labels, as data sets for detection"),
        (("train/cat", "train/dog", "val"), "no list of their labels was found.*LOC_val_solution.csv.*--val-dir"),
    ],
)
def test_splits_that_are_not_certain_are_refused(tmp_path: Path, places: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(folders(tmp_path, *places))


def test_a_validation_folder_that_is_the_training_folder_is_refused(tmp_path: Path) -> None:
    folders(tmp_path, "train/cat", "train/dog")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    with pytest.raises(DataError, match=r"val is a link to .*train: both splits have the same images"):
        load_data(tmp_path)


def test_validation_images_that_were_moved_out_of_images_still_have_their_labels(tmp_path: Path) -> None:
    official = load_data(tiny_imagenet(tmp_path), memory_bytes=0)
    for file in (tmp_path / "val" / "images").iterdir():
        file.rename(tmp_path / "val" / file.name)
    assert listed(load_data(tmp_path, memory_bytes=0), "validation") == listed(official, "validation")
    assert listed(official, "validation") == {f"val_{i}.JPEG": f"n0000000{i}" for i in range(3)}


def test_validation_images_that_were_moved_into_class_folders_are_read_from_these(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    for i in range(3):  # val_0 goes to another class, so the list is out of date
        target = tmp_path / "val" / f"n0000000{(i + 1) % 3}" / f"val_{i}.JPEG"
        target.parent.mkdir()
        (tmp_path / "val" / "images" / f"val_{i}.JPEG").rename(target)
    found = listed(load_data(tmp_path, memory_bytes=0), "validation")  # val/images is left, and empty
    assert found == {f"val_{i}.JPEG": f"n0000000{(i + 1) % 3}" for i in range(3)}


def imagenet(root: Path) -> Path:
    """The folders of ImageNet as Kaggle has them; returns the one with the splits."""
    place = root / "ILSVRC" / "Data" / "CLS-LOC"
    folders(place, "train/n01", "train/n02", "test")
    (root / "ILSVRC" / "Annotations" / "CLS-LOC" / "train" / "n01").mkdir(parents=True)
    table(place / "val" / "list", images=[f"ILSVRC2012_val_0000000{i}.JPEG" for i in range(3)]).unlink()
    return place


def test_imagenet_of_kaggle_is_read_from_any_of_its_folders(tmp_path: Path) -> None:
    place = imagenet(tmp_path)
    rows = [f"ILSVRC2012_val_0000000{i},n0{2 - i % 2} 111 108 230 317 n01 1 2 3 4" for i in range(3)]
    table(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString", *rows)
    for folder in (tmp_path, tmp_path / "ILSVRC", place):
        loaded = load_data(folder, memory_bytes=0)
        assert loaded.classes == ("n01", "n02") and loaded.train.labels.tolist() == [0, 0, 1, 1]
        names = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in range(3)]
        assert listed(loaded, "validation") == dict(zip(names, ("n02", "n01", "n02"), strict=True))


def test_a_flat_test_folder_is_read_with_its_table(tmp_path: Path) -> None:
    folders(tmp_path, "Train/9", "Train/10", "Train/11", "Meta")
    rows = [f"{30 + i},{9 + i},Test/{i}.png" for i in range(3)]
    table(tmp_path / "Test.csv", "Width,ClassId,Path", *rows, images=[f"Test/{i}.png" for i in range(3)])
    loaded = load_data(tmp_path, memory_bytes=0)
    assert listed(loaded, "validation") == {f"{i}.png": str(9 + i) for i in range(3)}


def test_numbers_of_classes_are_not_taken_for_class_folders(tmp_path: Path) -> None:
    place = imagenet(tmp_path)
    table(tmp_path / "ILSVRC2012_validation_ground_truth.txt", "490", "361", "171")
    with pytest.raises(
        DataError, match=r"numbers the classes as ImageNet's development kit does.*LOC_val_solution.csv"
    ):
        load_data(place)
    table(place / "val.txt", *[f"ILSVRC2012_val_0000000{i}.JPEG {i % 2}" for i in range(3)])
    with pytest.raises(DataError, match=r"has numbers as labels, such as 0, but .* class folders, such as n01"):
        load_data(place)
