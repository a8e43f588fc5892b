"""Laws of the random changes: what is drawn, and which settings are refused."""

import pytest
import torch

from builders.images import NO_MIX, batches_of, columns, memory_set, preprocessing
from vitrim.data.augmentation import AugmentationSettings, random_boxes
from vitrim.data.images import ImageSet
from vitrim.errors import SettingError


def test_draws_differ_between_images_and_between_epochs() -> None:
    pixels = memory_set(1, 32, 32).pixels.repeat(8, 1, 1, 1)
    images = ImageSet(labels=torch.arange(8) % 4, pixels=pixels)
    settings = AugmentationSettings(**NO_MIX)
    views, _ = columns(
        [batches_of(images, settings, epoch=epoch, preprocessing=preprocessing(32))[0] for epoch in (0, 1)]
    )
    assert len(views.flatten(1).unique(dim=0)) == 16


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_random_boxes_are_inside_the_image_and_keep_scale_and_aspect(size: tuple[int, int]) -> None:
    top, left, height, width = random_boxes(500, *size, 0.35, torch.Generator().manual_seed(0)).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= size[0] and (left + width).max() <= size[1]
    aspect = width / height
    assert aspect.min() > 0.75 * 0.88 and aspect.max() < 4 / 3 * 1.12  # sides are rounded to pixels
    if size[0] == size[1]:
        area = height * width / (size[0] * size[1])
        assert area.min() > 0.3 and area.max() <= 1 and area.std() > 0.1


@pytest.mark.parametrize(
    "field",
    [{"crop": "centre"}, {"padding": 1.0}, {"min_scale": 0.0}, {"flip": 2.0}, {"rand_augment_ops": -1},
     {"rand_augment_magnitude": 31}, {"mixup": -1.0}, {"cutmix": -0.1}, {"mix_probability": 1.1},
     {"label_smoothing": 1.0}],
    ids=lambda field: next(iter(field)),
)  # fmt: skip
def test_augmentation_settings_out_of_range_are_refused(field: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(field))):
        AugmentationSettings(**field)
