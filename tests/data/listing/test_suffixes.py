"""Laws of suffixes: whatever Pillow decodes is an image, and what it lacks is named with advice."""

from pathlib import Path

import pytest
from PIL import Image, features

from builders.images import folders, listed, save_image
from vitrim.data.listing.suffixes import is_ignored, is_image, unreadable_kinds
from vitrim.data.loading import load_data
from vitrim.errors import DataError


@pytest.mark.parametrize(
    ("suffix", "is_known"),
    [
        ("avif", ".avif" in Image.registered_extensions()),
        ("jp2", features.check_codec("jpg_2000")),
        ("tga", True),
        ("PBM", True),
    ],
)
def test_images_are_found_by_every_suffix_that_pillow_decodes(tmp_path: Path, suffix: str, is_known: bool) -> None:
    assert is_image(f"a.{suffix}") == is_known
    if is_known:
        for name in ("a", "b"):
            for i in range(2):
                save_image(tmp_path / name / f"{name}{i}.{suffix}", mode="1" if suffix == "PBM" else "RGB")
        assert load_data(tmp_path).train.pixels.shape == (2, 3, 8, 8)


def test_files_that_pillow_would_read_with_another_program_are_no_images() -> None:
    assert not any(map(is_image, ("a.eps", "a.wmf", "a.pdf", "a.txt", "png", "a.mpg", "a.h5")))


def test_images_that_are_not_read_are_named_with_advice(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dog")
    (tmp_path / "cat" / "IMG_1.HEIC").write_bytes(b"x")
    kinds = "1 file ends in .heic, which vitrim does not read here: convert them to PNG or JPEG"
    assert load_data(tmp_path).notes[0].startswith(kinds)
    for file in (tmp_path / "cat").glob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match=r"cat has no image; .* 1 file ends in \.heic.*convert"):
        load_data(tmp_path)
    assert unreadable_kinds(["a.dcm", "b.dcm", "c.txt"]) == [
        "2 files end in .dcm, which vitrim does not read here: convert them to PNG"
    ]


def test_files_and_folders_of_operating_systems_are_ignored(tmp_path: Path) -> None:
    folders(tmp_path, "cat", "dog", "__MACOSX/cat", "dog/@eaDir")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "._cat_0.png"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    loaded = load_data(tmp_path, memory_bytes=0, strict=True)
    assert {**listed(loaded), **listed(loaded, "validation")} == {
        f"{c}_{i}.png": c for c in ("cat", "dog") for i in (0, 1)
    }
    assert is_ignored("THUMBS.DB") and not is_ignored("cat")
