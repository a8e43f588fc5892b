"""Laws of the images that an exported file is compared with."""

from pathlib import Path

import pytest

from builders.images import image_folder
from builders.runs import digits_model
from vitrim.data.loading import load_data
from vitrim.exporting.images import labelled_pixels


def test_images_that_cannot_be_decoded_are_left_out_and_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image_folder(tmp_path, {"train": 2, "val": 3}, ("cat", "dog"))
    data = load_data(tmp_path, memory_bytes=0)
    broken = Path(data.validation.files[0])
    broken.write_bytes(broken.read_bytes()[:40])
    capsys.readouterr()
    pixels = labelled_pixels(digits_model(depth=1, num_classes=2), data, (8, 8), (8, 8))
    assert pixels is not None
    for batches in (pixels.batches, pixels.compared):
        assert len(list(batches(1))) == 5
    said = capsys.readouterr().err
    assert said.count("left out 1 image that cannot be decoded") == 1 and broken.name in said
