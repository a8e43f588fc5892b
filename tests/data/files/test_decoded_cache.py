"""Laws of the cache of decoded pixels: a set is decoded once, a changed set again, and an entry is whole or absent."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.damage import DAMAGES
from builders.images import image_folder, save_image
from vitrim.data.files import decoded_cache, decoding
from vitrim.data.files.unreadable import without_file_names
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.errors import DataError

Load = Callable[..., ImageData]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve training images and three validation images."""
    return image_folder(tmp_path / "images", {"train": 4, "val": 1})


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of files that were decoded, call by call. Sets of a few files are kept, too."""
    counts: list[int] = []
    decode_files = decoded_cache.decode_files

    def counting(files: Any, *arguments: Any) -> Any:
        counts.append(len(files))
        return decode_files(files, *arguments)

    monkeypatch.setattr(decoded_cache, "decode_files", counting)
    monkeypatch.setattr(decoded_cache, "MIN_FILES", 2)
    return counts


@pytest.fixture
def load(root: Path, cache: Path) -> Load:
    return lambda path=root, **changes: load_data(path, cache_dir=cache.parent, **changes)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.name != ".lock")


def same(first: ImageData, second: ImageData) -> bool:
    pairs = ((first.train, second.train), (first.validation, second.validation))
    equal = all(torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels) for a, b in pairs)
    return equal and first.fingerprint() == second.fingerprint() and first.notes == second.notes


def test_a_set_is_decoded_once(load: Load, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    first = load()
    assert decoded == [12, 3] and same(first, load()) and decoded == [12, 3]
    monkeypatch.setattr(decoded_cache, "MIN_FILES", 100)
    assert same(first, load()) and decoded == [12, 3, 12, 3]  # into memory


@pytest.mark.parametrize("name", ["pixels.npy", "broken.npy", "digests.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "emptied", "deleted", "list"])
def test_a_damaged_entry_is_decoded_again(
    damage: str, name: str, load: Load, cache: Path, decoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = load()
    for entry in entries(cache):
        Path(shutil.copy(entry / name, entry / "copy")).replace(entry / name)  # `first` has the old file in memory
        DAMAGES[damage](entry / name)
    assert same(first, load()) and decoded == [12, 3, 12, 3]
    assert same(first, load()) and decoded == [12, 3, 12, 3]
    if damage == "flipped" and name != "digests.json":
        assert "is damaged" in capsys.readouterr().err


def test_a_set_of_few_files_is_not_kept(load: Load, cache: Path) -> None:
    load()
    assert not cache.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda root: save_image(root / "train" / "cat" / "00.png", seed=7),
        lambda root: (root / "train" / "cat" / "00.png").unlink(),
        lambda root: (root / "train" / "cat" / "00.png").rename(root / "train" / "cat" / "09.png"),
        lambda root: os.utime(root / "train" / "cat" / "00.png", (0, 0)),
    ],
    ids=["content", "missing", "name", "time"],
)
def test_a_set_with_a_changed_file_is_decoded_again(
    load: Load, decoded: list[int], root: Path, change: Callable[[Path], object]
) -> None:
    load()
    change(root)
    found = load()
    assert decoded[2:] == [len(found.train)]  # not the validation images
    assert same(found, load())


def test_files_of_equal_size_and_time_with_another_content_are_another_set(
    load: Load, decoded: list[int], tmp_path: Path
) -> None:
    roots = [tmp_path / name for name in ("a", "b")]
    for seed, root in enumerate(roots):
        for name in ("cat", "dog", "cat/x", "dog/x"):
            os.utime(save_image(root / name / "0.bmp", seed=seed), (0, 0))
    assert not torch.equal(*(load(root).train.pixels for root in roots))


def test_a_copied_folder_is_the_same_set(load: Load, decoded: list[int], root: Path) -> None:
    first = load()
    copy = shutil.copytree(root, root.parent / "elsewhere" / root.name)
    assert same(first, load(copy)) and decoded == [12, 3]


def test_an_interrupted_write_leaves_nothing(load: Load, cache: Path, decoded: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def interrupted(files: Any, pixels: np.ndarray, *arguments: Any) -> None:
            pixels[0] = 1
            raise KeyboardInterrupt

        patch.setattr(decoded_cache, "decode_files", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load()
    assert entries(cache) == []
    (cache / f"{decoded_cache.PARTIAL}1").mkdir()  # of a process that was killed
    load()
    assert len(entries(cache)) == 2 and decoded == [12, 3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "pixels.npy").write_bytes((entry / "pixels.npy").read_bytes()[:-1]),
        lambda entry: (entry / "pixels.npy").write_bytes((entry / "pixels.npy").read_bytes() + b"1"),
        lambda entry: (entry / "pixels.npy").write_bytes(b"no array"),
        lambda entry: np.save(entry / "pixels.npy", np.zeros((1, 3, 8, 8), dtype=np.uint8)),
        lambda entry: np.save(entry / "broken.npy", np.zeros(2, dtype=bool)),
        lambda entry: (entry / "broken.npy").unlink(),
    ],
    ids=["shorter", "longer", "no array", "another shape", "another number", "missing"],
)
def test_a_damaged_entry_is_made_again(
    load: Load, cache: Path, decoded: list[int], damage: Callable[[Path], object]
) -> None:
    first = load()
    copies = first.train.pixels.clone(), first.validation.pixels.clone()
    for entry in entries(cache):
        damage(entry)
    found = load()
    assert decoded == [12, 3, 12, 3] and same(found, load()) and len(decoded) == 4
    assert all(map(torch.equal, copies, (found.train.pixels, found.validation.pixels)))


def test_broken_files_are_remembered(load: Load, decoded: list[int], root: Path) -> None:
    (root / "train" / "cat" / "01.png").write_bytes(b"no image")
    found, again = load(), load()
    assert decoded == [12, 3] and same(found, again)
    assert found.notes == (f"skipped 1 file that is not a readable image: {os.path.join('cat', '01.png')}",)
    assert without_file_names(found.notes[0]) == "skipped 1 file that is not a readable image"
    with pytest.raises(DataError, match=r"01\.png cannot be decoded"):
        load(strict=True)
    assert len(decoded) == 2


def test_a_file_that_could_not_be_read_once_is_not_lost(
    load: Load, decoded: list[int], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_data(root, cache_dir=root.parent / "other cache")
    pixel_array, failing = decoding.pixel_array, {"left": 1}

    def sometimes(file: str, *arguments: Any) -> Any:
        if failing["left"]:
            failing["left"] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return pixel_array(file, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "pixel_array", sometimes)
        assert any("skipped 1 file" in note for note in load().notes)
    assert same(load(), expected)


def test_images_of_different_sizes_leave_no_entry(load: Load, cache: Path, decoded: list[int], root: Path) -> None:
    for split in ("train", "val"):
        for i in range(50):  # the third file is not among the 32 that are looked at first
            save_image(root / split / "cat" / f"{i:02}.png", size=(9, 8) if i == 2 else (8, 8))
    found = load()
    assert not found.train.in_memory and not found.validation.in_memory and entries(cache) == []


def test_changes_to_the_pixels_do_not_change_the_cache(load: Load, decoded: list[int]) -> None:
    first = load()
    expected = first.train.pixels.clone()
    first.train.pixels.zero_()
    assert torch.equal(load().train.pixels, expected)


def test_the_sets_that_were_not_used_for_the_longest_time_are_removed(
    load: Load, cache: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(), load(holdout=0.25)
    for age, entry in enumerate(entries(cache)):
        os.utime(entry, (age, age))
    load()
    monkeypatch.setattr(decoded_cache, "MAX_BYTES", 38 * 3 * 8 * 8)  # the sets of 12, 6 and 3 files, and no other one
    load(limit_per_class=2)
    kept = entries(cache)
    assert sum(file.stat().st_size for entry in kept for file in entry.iterdir()) <= decoded_cache.MAX_BYTES
    assert decoded == [12, 3, 9, 3, 6]
    load(), load(limit_per_class=2)
    assert decoded == [12, 3, 9, 3, 6]


def test_without_a_cache_that_can_be_written_images_are_decoded_into_memory(
    load: Load, cache: Path, decoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    cache.parent.mkdir()
    cache.write_text("a file, not a folder")
    assert load().train.in_memory and decoded == [12, 3]
    assert "the pixels cannot be kept in" in capsys.readouterr().err
