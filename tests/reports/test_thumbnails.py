"""Laws of the small pictures: they show the image, are small, and exist for any number of channels."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from builders.images import save_image
from vitrim.data.files.pixels import PixelFormat
from vitrim.data.images import ImageSet
from vitrim.reports.thumbnails import SIDE, thumbnail


def opened(text: str) -> Image.Image:
    start, _, content = text.partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(content)))
    assert start == f"data:image/{image.format.lower()}"
    return image


def in_memory(pixels: torch.Tensor) -> ImageSet:
    return ImageSet(labels=torch.zeros(1, dtype=torch.int64), pixels=pixels[None])


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_small_images_are_enlarged_without_interpolation(channels: int) -> None:
    pixels = torch.randint(0, 256, (channels, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = opened(thumbnail(in_memory(pixels), 0))
    assert image.size == (84, 112) and image.mode == ("RGB" if channels >= 3 else "L")
    if image.format == "PNG":
        shown = pixels[:3] if channels >= 3 else pixels[:1]
        found = np.asarray(image)[7::14, 7::14].reshape(8, 6, -1)
        assert np.array_equal(found, shown.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("size", [(300, 200), (20, 1000), (1, 5000), (112, 80)])
def test_large_images_are_reduced_and_take_a_few_kilobytes(size: tuple[int, int], tmp_path: Path) -> None:
    file = save_image(tmp_path / "a.png", size=size)
    images = ImageSet(labels=torch.zeros(1, dtype=torch.int64), files=(str(file),))
    text = thumbnail(images, 0)
    assert max(opened(text).size) == SIDE and len(text) < 20_000


def test_grey_files_of_16_bits_are_shown_as_the_model_reads_them(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    form = PixelFormat(channels=1)
    images = ImageSet(labels=torch.zeros(1, dtype=torch.int64), files=(str(tmp_path / "deep.png"),), pixel_format=form)
    found = np.asarray(opened(thumbnail(images, 0)))
    assert found.min() < 5 and found.max() > 250


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_file_that_cannot_be_decoded_has_no_picture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    images = ImageSet(labels=torch.zeros(1, dtype=torch.int64), files=(str(tmp_path / "a.png"),))
    assert thumbnail(images, 0) == ""
