"""Images of an archive: `feed` gives the pixels, labels and order of `load_data`, also while parts still arrive."""

import io
import os
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.timebox.feed import LABELS, STARTED, feed, read_arrays
from vitrim.data.loading import load_data
from vitrim.errors import DataError

CLASSES = ("n03", "n01", "n02")
NUM_TRAIN, NUM_VALIDATION = 11, 4  # images of each class; from ten on, the order of names is not that of numbers


def picture(path: Path, seed: int, mode: str = "RGB", side: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=80)


def tiny_imagenet(folder: Path) -> Path:
    """The official layout: annotations of the validation images in a file, and grey images among the others."""
    lines = []
    for label, name in enumerate(CLASSES):
        for index in range(NUM_TRAIN):
            mode = "L" if index == 3 else "RGB"
            picture(folder / "train" / name / "images" / f"{name}_{index}.JPEG", 100 * label + index, mode)
        (folder / "train" / name / f"{name}_boxes.txt").write_text("no image\n")
        for index in range(NUM_VALIDATION):
            file = f"val_{label + len(CLASSES) * (7 * index % 20)}.JPEG"
            picture(folder / "val" / "images" / file, 1000 + 100 * label + index)
            lines.append(f"{file}\t{name}\t0\t0\t1\t1\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    return folder


def class_folders(folder: Path) -> Path:
    """Class folders with images in deeper folders, too."""
    for split, count in (("train", NUM_TRAIN), ("test", NUM_VALIDATION)):
        for label, name in enumerate(CLASSES):
            for index in range(count):
                inside = Path("deep") if index % 3 == 0 else Path()
                picture(folder / split / name / inside / f"{index}.png", 100 * label + index)
    (folder / "train" / "n01" / ".hidden.png").write_text("not an image")
    return folder


LAYOUTS = pytest.mark.parametrize("layout", [tiny_imagenet, class_folders])


def parts_of(folder: Path, into: Path, count: int = 3, compression: str = "xz") -> list[Path]:
    """An archive of the folder, cut into parts."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as archive:
        archive.add(folder, arcname=folder.name)
    content = buffer.getvalue()
    size = -(-len(content) // count)
    into.mkdir()
    paths = [into / f"images.tar.{compression}.part{index}" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(content[index * size : (index + 1) * size])
    return paths


@LAYOUTS
@pytest.mark.parametrize("compression", ["xz", "gz"])
def test_pixels_labels_and_order_are_those_of_load_data(layout, compression, tmp_path):
    folder = layout(tmp_path / "images")
    feed(parts_of(folder, tmp_path / "parts", compression=compression), tmp_path / "arrays")
    found, expected = read_arrays(tmp_path / "arrays", "images"), load_data(folder)
    assert found.classes == expected.classes
    for mine, theirs in ((found.train, expected.train), (found.validation, expected.validation)):
        assert torch.equal(mine.labels, theirs.labels) and torch.equal(mine.pixels, theirs.pixels)
    assert found.fingerprint() == expected.fingerprint()


def test_parts_may_arrive_while_the_archive_is_decoded(tmp_path):
    folder = tiny_imagenet(tmp_path / "images")
    parts = parts_of(folder, tmp_path / "sent")
    arriving = [tmp_path / part.name for part in parts]

    def send() -> None:
        for part, target in zip(parts, arriving, strict=True):
            time.sleep(0.1)
            os.replace(part, target)

    sender = threading.Thread(target=send)
    sender.start()
    feed(arriving, tmp_path / "arrays", timeout=20)
    sender.join()
    assert read_arrays(tmp_path / "arrays", "images").fingerprint() == load_data(folder).fingerprint()


def test_finished_arrays_are_not_made_again(tmp_path):
    parts = parts_of(tiny_imagenet(tmp_path / "images"), tmp_path / "parts")
    feed(parts, tmp_path / "arrays")
    for part in parts:
        part.unlink()
    before = (tmp_path / "arrays" / LABELS).stat().st_mtime_ns
    feed(parts, tmp_path / "arrays")
    assert (tmp_path / "arrays" / LABELS).stat().st_mtime_ns == before


def test_a_part_that_never_arrives_is_named(tmp_path):
    parts = parts_of(tiny_imagenet(tmp_path / "images"), tmp_path / "parts")
    parts[1].unlink()
    with pytest.raises(DataError, match=r"part1, which has not arrived"):
        feed(parts, tmp_path / "arrays", timeout=0.1)
    assert (tmp_path / "arrays" / STARTED).is_file()
    with pytest.raises(DataError, match="has not arrived"):
        read_arrays(tmp_path / "arrays", "images", timeout=0.1)


def test_damaged_archives_and_images_are_refused(tmp_path):
    folder = tiny_imagenet(tmp_path / "images")
    parts = parts_of(folder, tmp_path / "parts")
    parts[1].write_bytes(bytes(len(parts[1].read_bytes())))
    with pytest.raises(DataError, match="cannot be read"):
        feed(parts, tmp_path / "damaged")
    (folder / "train" / "n01" / "images" / "n01_0.JPEG").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"n01_0\.JPEG in the archive cannot be decoded"):
        feed(parts_of(folder, tmp_path / "more parts"), tmp_path / "broken")


def test_archives_whose_images_do_not_fit_arrays_are_refused(tmp_path):
    folder = class_folders(tmp_path / "images")
    picture(folder / "train" / "n01" / "large.png", 0, side=24)
    with pytest.raises(DataError, match="different sizes"):
        feed(parts_of(folder, tmp_path / "parts"), tmp_path / "arrays")
    picture(tmp_path / "half" / "train" / "a" / "0.png", 0)
    picture(tmp_path / "half" / "train" / "b" / "0.png", 1)
    with pytest.raises(DataError, match="no validation images"):
        feed(parts_of(tmp_path / "half", tmp_path / "half parts"), tmp_path / "arrays")
