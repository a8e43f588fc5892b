"""Laws of the changes to pixels: they equal torchvision's, and each image is changed by itself."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from builders.images import memory_set
from vitrim.data.augmentation import random_boxes
from vitrim.data.image_ops import OPS, move, move_matrices, rand_augment, sharpen, shift, zoom


def test_shift_is_a_crop_after_padding_by_reflection() -> None:
    images = memory_set(6, 9, 7).pixels
    box = torch.tensor([[-3, 2], [0, 0], [3, -2], [1, 1], [-1, -1], [2, 3]])
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    expected = [padded[i, :, 3 + y : 12 + y, 3 + x : 10 + x] for i, (y, x) in enumerate(box.tolist())]
    assert torch.equal(shift(images, box), torch.stack(expected))


def test_zoom_is_a_resized_crop() -> None:
    images = memory_set(5, 16, 12).pixels
    box = random_boxes(5, 16, 12, 0.3, torch.Generator().manual_seed(0))
    zoomed = zoom(images, box, "bilinear")
    for i, (top, left, height, width) in enumerate(box.tolist()):
        crop = F.resized_crop(images[i : i + 1], top, left, height, width, [16, 12], antialias=True)
        # Only the border differs: a crop repeats its edge, a zoom uses the pixels next to the box.
        assert (zoomed[i].int() - crop[0].int())[:, 3:-3, 3:-3].abs().max() <= 1


@pytest.mark.parametrize("size", [(9, 7), (3, 3), (2, 8)])
@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9])
def test_sharpen_equals_torchvision(size: tuple[int, int], factor: float) -> None:
    images = memory_set(6, *size).pixels
    before = images.clone()
    assert torch.equal(sharpen(images, factor), F.adjust_sharpness(images, factor)) and torch.equal(images, before)


def test_rand_augment_keeps_type_and_shape_and_its_input() -> None:
    images = memory_set(28, 12, 10).pixels
    before = images.clone()
    every = torch.arange(28)[:, None] % len(OPS)
    changed = rand_augment(images, every, torch.ones_like(every), 9, (128.0,) * 3)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape and torch.equal(images, before)


def test_rand_augment_without_operations_changes_nothing() -> None:
    images, nothing = memory_set(28, 12, 10).pixels, torch.zeros(28, 0, dtype=torch.int64)
    assert torch.equal(rand_augment(images, nothing, nothing, 9, (128.0,) * 3), images)


def test_rand_augment_changes_each_image_by_itself() -> None:
    images = memory_set(28, 16, 16).pixels
    ops = torch.arange(28)[:, None] % 14
    sign = torch.where(torch.arange(28)[:, None] < 14, 1, -1)
    together = rand_augment(images, ops, sign, 15, (0.0,) * 3)
    one_by_one = [rand_augment(images[i : i + 1], ops[i : i + 1], sign[i : i + 1], 15, (0.0,) * 3) for i in range(28)]
    assert torch.equal(together, torch.cat(one_by_one))
    unchanged = (together == images).flatten(1).all(dim=1)
    assert unchanged[5] and unchanged.sum() <= 6  # noise may have full range and equal counts already


@pytest.mark.parametrize(
    ("op", "strength", "reference"),
    [
        (0, 0.2, lambda x: _torchvision_affine(x, shear=[np.degrees(np.arctan(0.2)), 0.0], center=[0, 0])),
        (1, 0.2, lambda x: _torchvision_affine(x, shear=[0.0, np.degrees(np.arctan(0.2))], center=[0, 0])),
        (2, 0.2, lambda x: _torchvision_affine(x, translate=[-4, 0])),
        (3, 0.2, lambda x: _torchvision_affine(x, translate=[0, -3])),
        (4, 0.5, lambda x: F.rotate(x, np.degrees(0.5), F.InterpolationMode.BILINEAR, fill=[90.0] * 3)),
    ],
    ids=["shear x", "shear y", "translate x", "translate y", "rotate"],
)
def test_move_equals_torchvision_except_at_the_edge(op: int, strength: float, reference: Callable) -> None:
    images = torch.nn.functional.interpolate(memory_set(4, 4, 5).pixels, (16, 20), mode="bilinear")
    matrix = move_matrices(torch.full((4,), op), torch.full((4,), strength), (16, 20))
    moved = move(images, matrix, torch.full((3,), 90.0))
    differs = (moved.int() - reference(images).int()).abs() > 1
    assert differs.float().mean() < 0.15  # torchvision mixes in the fill colour twice for pixels across the edge


def _torchvision_affine(images: Tensor, **changes: object) -> Tensor:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **changes}
    return F.affine(images, interpolation=F.InterpolationMode.BILINEAR, fill=[90.0] * 3, **settings)


# Images that are not RGB


def every_operation(images: Tensor) -> Tensor:
    ops = torch.arange(len(images))[:, None] % len(OPS)
    return rand_augment(images, ops, torch.ones_like(ops), 15, (128.0,) * images.shape[1])


def test_grey_images_are_changed_like_grey_images_in_rgb() -> None:
    grey = memory_set(len(OPS), 16, 16).pixels[:, :1]
    difference = every_operation(grey).int() - every_operation(grey.expand(-1, 3, -1, -1)).int()
    assert difference.abs().max() <= 1  # the grey of RGB is rounded


def test_images_of_other_channels_are_moved_and_keep_their_colours() -> None:
    images = memory_set(len(OPS), 16, 16).pixels[:, [0, 1, 2, 0]]
    changed = every_operation(images)
    assert torch.equal(changed[5:], images[5:])
    assert torch.equal(changed[:5, :3], every_operation(images[:, :3])[:5]) and torch.equal(
        changed[:, 3], changed[:, 0]
    )


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_sharpen_changes_each_channel_by_itself(channels: int) -> None:
    images = memory_set(4, 9, 7).pixels.repeat(1, 2, 1, 1)[:, :channels]
    expected = torch.cat([sharpen(images[:, i : i + 1], 1.9) for i in range(channels)], dim=1)
    assert torch.equal(sharpen(images, 1.9), expected)
