"""Laws of loading: how images are divided and decoded, and what is skipped or refused."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builders.images import folders, image_folder, save_image, table
from vitrim.data import loading
from vitrim.data.listing.layouts import Found
from vitrim.data.loading import load_data, read_image
from vitrim.errors import DataError, SettingError

# Division into training and validation images


def test_digits_are_divided_class_by_class_and_a_note_says_so() -> None:
    digits = load_data("digits")
    assert digits.train.num_images + digits.validation.num_images == 1797 and digits.validation.num_images == 450
    assert digits.train.pixels.shape[1:] == (3, 8, 8) and digits.train.pixels.max() == 255
    assert digits.notes == ("25 % of the images of each class are validation images",)
    assert load_data("digits", split="auto").validation.num_images == 450


@pytest.mark.parametrize("split", ["", "train"])
def test_missing_validation_images_are_held_out_from_training(tmp_path: Path, split: str) -> None:
    loaded = load_data(image_folder(tmp_path, {split: 20}), memory_bytes=0)
    assert torch.bincount(loaded.validation.labels).tolist() == [2, 2, 2]
    assert not set(loaded.train.files) & set(loaded.validation.files)
    note = "no validation split found: 10 % of the training images of each class held out, seed 0"
    assert loaded.notes == (note,)


def test_classes_without_validation_images_are_named(tmp_path: Path) -> None:
    folders(tmp_path, "lemon", count=20)
    folders(tmp_path, "zitrone", count=1)
    loaded = load_data(tmp_path, memory_bytes=0)
    assert torch.bincount(loaded.validation.labels, minlength=2).tolist() == [2, 0]
    assert loaded.notes[-1] == "zitrone has no validation image, so its accuracy is not measured"
    names = [f"rare{number}" for number in range(7)]
    folders(tmp_path, *names, count=1)
    few = "8 classes have no validation image, so their accuracy is not measured: rare0, rare1, rare2, rare3, rare4 and"
    assert load_data(tmp_path, memory_bytes=0).notes[-1] == f"{few} 3 more"
    assert not any("no validation image" in note for note in load_data(tmp_path, split="auto").notes)


def test_holdout_replaces_the_validation_images_and_the_limit_applies_to_the_others(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 10, "val": 2})
    both = [load_data(root, holdout=0.2, limit_per_class=limit, memory_bytes=0) for limit in (3, 5)]
    for loaded, limit in zip(both, (3, 5), strict=True):
        assert torch.bincount(loaded.train.labels).tolist() == [limit] * 3
        assert torch.bincount(loaded.validation.labels).tolist() == [2, 2, 2]
        assert not set(loaded.train.files) & set(loaded.validation.files)
        assert all("train" in file for file in loaded.validation.files) and len(loaded.notes) == 2
    assert both[0].validation.files == both[1].validation.files
    assert set(both[0].train.files) < set(both[1].train.files)
    assert load_data(root, holdout=0.2, memory_bytes=0, seed=1).validation.files != both[0].validation.files
    limited = load_data(root, limit_per_class=1, memory_bytes=0)
    assert all("/val/" in Path(file).as_posix() for file in limited.validation.files)


# One split, to evaluate


def test_each_split_of_a_folder_can_be_read_alone(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 4, "val": 3, "test": 2})
    counts = {split: len(load_data(root, split=split).validation) for split in ("train", "val", "test", "auto")}
    assert counts == {"train": 12, "val": 9, "test": 6, "auto": 9}
    loaded = load_data(root, split="test", memory_bytes=0)
    assert len(loaded.train) == 0 and all("/test/" in Path(file).as_posix() for file in loaded.validation.files)


@pytest.mark.parametrize("splits", [{"train": 4, "test": 2}, {"test": 2}], ids=["train and test", "test alone"])
def test_test_images_are_the_validation_images_where_there_are_no_others(tmp_path: Path, splits: dict) -> None:
    root = image_folder(tmp_path, splits)
    found = [load_data(root, split=split) for split in ("val", "test", "auto")]
    assert len({loaded.fingerprint() for loaded in found}) == 1 and len(found[0].validation) == 6


def test_the_test_split_of_a_table_can_be_read(tmp_path: Path) -> None:
    rows = [(f"{index}.png", "ab"[index % 2], split) for index, split in enumerate(["train"] * 4 + ["val", "test"] * 2)]
    lines = ["file,label,split", *(",".join(row) for row in rows)]
    file = table(tmp_path / "labels.csv", *lines, images=[row[0] for row in rows])
    loaded = load_data(file, split="test", memory_bytes=0)
    assert [Path(name).name for name in loaded.validation.files] == ["5.png", "7.png"]


def test_all_images_of_a_folder_without_splits_are_read_unless_some_are_held_out(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"": 20})
    loaded = load_data(root, split="auto", memory_bytes=0)
    assert len(loaded.validation) == 60 and loaded.only == "all"
    assert loaded.notes == ("no splits found: all images are evaluated",)
    trained = load_data(root, memory_bytes=0)
    for split, images in (("train", trained.train), ("val", trained.validation)):
        assert load_data(root, split=split, memory_bytes=0).validation.files == images.files
    assert len(load_data(root, split="auto", holdout=0.2, memory_bytes=0).validation) == 12


def test_a_class_that_only_the_test_images_have_is_refused_where_these_are_read(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 2, "val": 2})
    image_folder(tmp_path, {"test": 2}, ["cat", "emu"])
    assert len(load_data(tmp_path).validation) == 6
    with pytest.raises(DataError, match=r"class 'emu'.*the training set has no such class"):
        load_data(tmp_path, split="test")


@pytest.mark.parametrize(
    "settings", [{"holdout": 1.0}, {"limit_per_class": 0}, {"data_dir": "somewhere"}], ids=lambda s: next(iter(s))
)
def test_settings_of_loading_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        load_data("digits", **settings)


# Decoding


def test_images_in_memory_equal_their_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 4, "Test": 2})
    loaded, streamed = load_data(root), load_data(root, memory_bytes=0)
    assert loaded.classes == ("cat", "dog", "owl") and loaded.notes == ()
    assert loaded.train.in_memory and not streamed.train.in_memory
    for name in ("train", "validation"):
        memory, files = getattr(loaded, name), getattr(streamed, name)
        assert torch.equal(memory.pixels, torch.stack([read_image(file) for file in files.files]))
        assert torch.equal(memory.labels, files.labels)


def test_images_of_different_sizes_are_streamed(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 40, "val": 2})
    save_image(root / "train" / "dog" / "13.png", size=(9, 8))
    loaded = load_data(root)
    assert not loaded.train.in_memory and loaded.validation.in_memory and loaded.train.num_images == 120


@pytest.mark.parametrize("suffix", ["png", "JPG", "webp", "bmp", "tif", "gif", "ppm"])
def test_every_file_format_is_an_image(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        for i in range(2):
            save_image(tmp_path / name / f"{i}.{suffix}")
    assert load_data(tmp_path).train.pixels.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.linear_gradient("L").resize((8, 8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        through = {"P": grey.quantize(), "CMYK": grey.convert("RGB"), "RGBA": grey.convert("RGB")}
        image = through.get(mode, grey).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path, **({"transparency": b"\x00" * 8} if mode == "P" else {}))
    decoded = read_image(str(path))
    assert decoded.shape == (3, 8, 8) and decoded.dtype == torch.uint8
    if mode != "1":
        assert (decoded.int() - torch.from_numpy(np.array(grey)).int()).abs().max() <= 4


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20], ids=["files", "memory"])
def test_broken_files_are_skipped_and_named_or_refused(tmp_path: Path, memory_bytes: int) -> None:
    root = image_folder(tmp_path, {"train": 5, "val": 3})
    (root / "train" / "cat" / "01.png").write_bytes(b"no image")
    (root / "train" / "dog" / "02.png").write_bytes(b"")
    (root / "val" / "dog" / "00.png").write_text("<html>")
    (root / "train" / "owl" / "list.csv").write_text("a,b")
    (root / "train" / "owl" / ".hidden").write_text("not counted")
    loaded = load_data(root, memory_bytes=memory_bytes)
    assert (loaded.train.num_images, loaded.validation.num_images) == (13, 8)
    names = ", ".join(os.path.join(*pair) for pair in (("owl", "list.csv"), ("cat", "01.png"), ("dog", "02.png")))
    assert loaded.notes == (f"skipped 4 files that are not readable images: {names}, ...",)
    with pytest.raises(DataError, match=r"list\.csv is not an image"):
        load_data(root, strict=True)
    (root / "train" / "owl" / "list.csv").unlink()
    with pytest.raises(DataError, match=r"01\.png cannot be decoded"):
        load_data(root, strict=True, memory_bytes=memory_bytes)


def test_folders_whose_names_differ_in_the_unicode_form_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    image_folder(tmp_path, {"train": 2}, (composed, "tea"))
    image_folder(tmp_path, {"val": 3}, (decomposed, "tea"))
    data = load_data(tmp_path)
    assert data.classes == (composed, "tea") and data.validation.labels.bincount().tolist() == [3, 3]
    assert "Unicode" in data.notes[0]
    image_folder(tmp_path, {"train": 2}, (decomposed,))
    merged = load_data(tmp_path)
    assert merged.classes == (decomposed, "tea") and merged.train.labels.bincount().tolist() == [4, 2]
    assert merged.validation.labels.bincount().tolist() == [3, 3] and "are one class" in merged.notes[0]


# Channels


def test_data_sets_in_memory_become_grey_as_pillow_converts_them() -> None:
    digits, grey = load_data("digits"), load_data("digits", channels=1)
    assert torch.equal(grey.train.pixels, digits.train.pixels[:, :1]) and grey.train.channels == 1
    with pytest.raises(DataError, match="3 channels; the model has 4"):
        load_data("digits", channels=4)


def test_colours_in_memory_become_the_grey_of_their_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"": 5})
    grey = load_data(root, channels=1)
    assert grey.train.pixels.shape[1:] == (1, 8, 8)
    streamed = load_data(root, channels=1, memory_bytes=0).train
    assert torch.equal(grey.train.pixels, torch.stack([read_image(f, streamed.pixel_format) for f in streamed.files]))
    found = Found(classes=("a", "b"), train=load_data(root).train, validation=load_data(root).validation)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "find", lambda *_: found)
        assert torch.equal(load_data("digits", channels=1).train.pixels, grey.train.pixels)
