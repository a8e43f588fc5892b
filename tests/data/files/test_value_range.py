"""Laws of ranges of values: a set is refused as a whole, with the number of files, and clipping is said."""

from pathlib import Path

import numpy as np
import pytest
import torch

from builders.deep_images import EXPECTED, RAMP, deep_png, deep_rgb_png, tiff
from builders.images import save_image
from vitrim.data.files import decoded_cache
from vitrim.data.loading import load_data
from vitrim.errors import DataError, SettingError

HELD_OUT = "no validation split found: 10 % of the training images of each class held out, seed 0"


def folder(root: Path, write, count: int = 4) -> Path:
    for name in ("a", "b"):
        for i in range(count):
            write(root / name / f"{i}")
    return root


def floats(path: Path) -> Path:
    return tiff(path.with_suffix(".tif"), RAMP.astype(np.float32))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20], ids=["files", "memory"])
def test_a_set_of_floats_is_refused_with_advice_and_read_with_a_range(tmp_path: Path, memory_bytes: int) -> None:
    root = folder(tmp_path, floats)
    with pytest.raises(DataError, match=r"^8 of 8 images have 32-bit floating-point values.*\.tif.*--value-range 0,1"):
        load_data(root, memory_bytes=memory_bytes)
    loaded = load_data(root, memory_bytes=memory_bytes, value_range=(0, 1))
    assert loaded.notes == (HELD_OUT, "values 0 to 1 become black to white in files of more than 8 bits")
    if memory_bytes:
        assert (loaded.train.pixels.numpy() == EXPECTED).all()


def test_one_file_among_many_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda path: save_image(path.with_suffix(".png"), size=(16, 16)), count=40)
    floats(root / "b" / "017")
    with pytest.raises(DataError, match=r"^\S*017\.tif has 32-bit floating-point"):
        load_data(root)


def test_values_that_are_clipped_are_counted(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda path: deep_png(path.with_suffix(".png"), 4095))
    notes = load_data(root, value_range=(0, 2047)).notes
    assert notes[1].endswith("50 % of the values of 8 images are outside, and become black or white")


def test_dark_images_are_noted(tmp_path: Path) -> None:
    dark = folder(tmp_path / "dark", lambda path: deep_png(path.with_suffix(".png"), 4095))
    note = load_data(dark).notes[1]
    assert "the largest value in 8 images of more than 8 bits is 4095" in note and "--value-range" in note
    deep_png(dark / "a" / "bright.png")
    assert load_data(dark).notes == (HELD_OUT,)


def test_dark_colours_of_16_bits_are_noted(tmp_path: Path) -> None:
    for largest, name in ((4095, "dark"), (65535, "bright")):
        root = folder(tmp_path / name, lambda path, largest=largest: deep_rgb_png(path.with_suffix(".png"), largest))
        notes = load_data(root).notes[1:]
        assert [f"is {largest}, so all of them are dark" in note for note in notes] == [True] * (name == "dark")


def test_a_range_that_would_not_be_used_is_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, lambda path: save_image(path.with_suffix(".png")))
    with pytest.raises(SettingError, match="no image has more than 8 bits"):
        load_data(root, value_range=(0, 4095))


def test_the_cache_tells_ranges_and_channels_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded_cache, "MIN_FILES", 2)
    root = folder(tmp_path / "images", lambda path: deep_png(path.with_suffix(".png"), 4095))
    formats = [{}, {"value_range": (0, 4095)}, {"value_range": (0, 2047)}, {"channels": 1}]
    for _ in range(2):
        loaded = [load_data(root, cache_dir=tmp_path / "cache", **changes).train.pixels for changes in formats]
        assert [pixels.shape[1] for pixels in loaded] == [3, 3, 3, 1]
        assert loaded[0].max() == 16 and torch.equal(loaded[0][:, :1], loaded[3])
        assert (loaded[1].numpy() == EXPECTED).all() and not torch.equal(loaded[1], loaded[2])


def test_files_of_another_range_have_another_fingerprint(tmp_path: Path) -> None:
    root = folder(tmp_path, floats)
    found = {load_data(root, memory_bytes=0, value_range=(0, high)).fingerprint() for high in (1, 2)}
    assert len(found) == 2
