"""Laws of the layouts on disk: the official ones are recognised, damaged ones are refused, and no code runs."""

import errno
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.images import cifar_arrays, image_folder, save_image, tiny_imagenet, write_cifar
from vitrim.data.listing.layouts import read_classes
from vitrim.data.loading import load_data
from vitrim.errors import DataError


def _break_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no image")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda root: None, "no data set or folder.*give the path.*cifar10"),
    "file": (lambda root: save_image(root.with_suffix(".png")).rename(root), "is a file, not a folder; give the path"),
    "empty": (lambda root: root.mkdir(), "is empty"),
    "flat": (lambda root: save_image(root / "a.png"), "1 image but no class folders and no table of labels"),
    "one class": (lambda root: image_folder(root, {"": 2}, ["cat"]), "only one class folder, 'cat'"),
    "no images": (lambda root: [(root / n).mkdir(parents=True) for n in "ab"], "no image in any of its 2 folders"),
    "empty class": (lambda root: (image_folder(root, {"": 2}) / "emu").mkdir(), "emu has no image"),
    "only val": (
        lambda root: (root / "val").mkdir(parents=True) or save_image(root / "val" / "a.png"),
        "folder val but no folder train",
    ),
    "unknown class": (
        lambda root: (image_folder(root, {"train": 2}), image_folder(root, {"val": 1}, ["cat", "emu"])),
        "class 'emu'.*train has no such class",
    ),
    "mostly broken": (
        lambda root: _break_images(image_folder(root, {"train": 2, "val": 2}) / "train"),
        "6 of 6 training images cannot",
    ),
    "broken class": (
        lambda root: _break_images(image_folder(root, {"train": 2, "val": 2}) / "train" / "cat"),
        "'cat' has no readable",
    ),
    "too few": (lambda root: image_folder(root, {"": 1}), "only one image"),
    "bad annotation": (
        lambda root: (tiny_imagenet(root) / "val" / "val_annotations.txt").write_text("val_0.JPEG n0"),
        "val_annotations.txt has a class 'n0', but .*train has no such",
    ),
}


@pytest.mark.parametrize(("build", "message"), FOLDERS.values(), ids=FOLDERS)
def test_an_unusable_folder_is_refused_with_a_reason(tmp_path: Path, build: Callable, message: str) -> None:
    build(tmp_path / "images")
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "images")


def test_the_official_tiny_imagenet_is_recognised(tmp_path: Path) -> None:
    loaded = load_data(tiny_imagenet(tmp_path), strict=True)
    assert loaded.classes == ("n00000000", "n00000001", "n00000002")
    unused = "folder test is not used, because val is the validation split"
    assert loaded.notes == (unused, "images and labels from val_annotations.txt (columns 1, 2)")
    assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and loaded.validation.labels.tolist() == [2, 1, 0]
    assert torch.equal(loaded.train.pixels[4], loaded.validation.pixels[0])  # the same seed, so the same picture


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("binary", [False, True], ids=["pickle", "binary"])
def test_the_layouts_of_cifar_are_recognised(tmp_path: Path, name: str, binary: bool) -> None:
    folder = write_cifar(tmp_path / "disk", name, binary=binary)
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / f"{folder.name}.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    pixels, labels = cifar_arrays()
    for place in (folder, folder.parent, tmp_path / "archives"):
        loaded = load_data(name, data_dir=place, cache_dir=tmp_path / "cache")
        assert len(loaded.classes) == (10 if name == "cifar10" else 100) and loaded.classes[1] == "class1"
        assert torch.equal(loaded.validation.pixels, torch.from_numpy(pixels.reshape(6, 3, 32, 32)))
        assert loaded.validation.labels.tolist() == labels.tolist()
        assert loaded.train.num_images == (30 if name == "cifar10" else 6)


def test_a_damaged_file_of_cifar_is_named(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar10", binary=True)
    for content, message in ((b"123", "3 bytes"), (bytes([77]) + bytes(3072), "labels below 10")):
        (folder / "data_batch_2.bin").write_bytes(content)
        with pytest.raises(DataError, match=rf"data_batch_2.*{message}"):
            load_data("cifar10", data_dir=folder)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"lacks the file data_batch_2\.bin"):
        load_data(folder)


def test_a_pickle_from_an_old_numpy_is_read(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar10", binary=False)
    current = pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), dtype=np.uint8)}, protocol=2)
    old = current.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (folder / "test_batch").write_bytes(old)
    assert load_data("cifar10", data_dir=folder).validation.num_images == 1


class Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("attacked",)


def test_a_pickle_with_code_is_refused_and_the_code_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_cifar(tmp_path, "cifar10", binary=False)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Attack()}))
    with pytest.raises(DataError, match=r"mkdir.*attack"):
        load_data("cifar10", data_dir=folder)
    assert not Path("attacked").exists()


def test_what_is_no_image_file_is_skipped_and_counted(tmp_path: Path) -> None:
    """A pipe would block, a device has no end, and a folder of `/proc` leads to all files there are."""
    for name in "ab":
        for number in range(8):
            save_image(tmp_path / name / "folder.png" / f"{number}.png")
    place = tmp_path / "a"
    os.mkfifo(place / "pipe.png")
    (place / "empty.png").touch()
    links = {"zero.png": "/dev/zero", "none.png": "nowhere", "loop.png": "loop.png", "up": "..", "proc": "/proc"}
    for name, target in links.items():
        (place / name).symlink_to(target)
    with (place / "sparse.png").open("wb") as file:
        file.truncate(10 << 30)
    data = load_data(tmp_path, holdout=0.25, memory_bytes=0)
    assert len(data.train) + len(data.validation) == 16
    assert any(note.startswith("skipped 6 files that are not readable images") for note in data.notes), data.notes


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "ab":
        save_image(tmp_path / name / "1.png")
    (tmp_path / "a" / "closed").mkdir()
    scandir = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert read_classes(tmp_path).not_images == (str(tmp_path / "a" / "closed"),)


def test_names_of_any_bytes_are_used(tmp_path: Path) -> None:
    classes = [b"\xff", b"new\nline", b"\x1b[31mred", "\u202egnp".encode(), b"[red]", b"x" * 240]
    for number, name in enumerate(classes):
        for image in range(3):
            save_image(Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name, b"\xfe%d.png" % image))), number)
    data = load_data(tmp_path, holdout=0.34)
    assert len(data.classes) == len(classes) and len(data.train) + len(data.validation) == 3 * len(classes)
    assert data.fingerprint()
    json.loads(json.dumps(data.classes, ensure_ascii=False).encode("utf-8"))
