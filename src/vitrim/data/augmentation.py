"""Random changes to batches of uint8 images, each image by its own draw, in a few calls for the whole batch.

The draws are arguments: nothing here is random but `random_boxes`, which takes a generator.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def shift(images: Tensor, box: Tensor) -> Tensor:
    """Cut `(B, 3, H, W)` at `box[:, :2]`, top and left, each image by its own; what lies outside is mirrored."""
    count, colours, height, width = images.shape
    rows = _mirrored(box[:, :1] + torch.arange(height), height)  # (B, H)
    columns = _mirrored(box[:, 1:2] + torch.arange(width), width)  # (B, W)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).to(images.device, non_blocking=True)
    return images.flatten(2).gather(2, source.expand(-1, colours, -1)).view_as(images)


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Indices that left `0 .. side - 1` come back from the edge; the edge itself is not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()


def zoom(images: Tensor, box: Tensor, interpolation: str) -> Tensor:
    """Enlarge the box of each image to the stored size. As it never shrinks, no smoothing is needed before it."""
    height, width = images.shape[-2:]
    top, left, box_height, box_width = box.float().unbind(1)
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 2] = box_width / width, (2 * left + box_width) / width - 1
    matrix[:, 1, 1], matrix[:, 1, 2] = box_height / height, (2 * top + box_height) / height - 1
    mode = interpolation if interpolation in ("bilinear", "bicubic") else "nearest"
    return resample(images.float(), matrix, mode, "border")


def resample(images: Tensor, matrix: Tensor, mode: str, outside: str, zero: Tensor | float = 0.0) -> Tensor:
    """Move float pixels, counted from `zero`; `matrix` `(B, 2, 3)` leads from output to input, both in -1..1."""
    matrix = matrix.to(images.device, non_blocking=True)
    grid = torch.nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, mode=mode, padding_mode=outside, align_corners=False)
    return moved.add_(zero).round_().clamp_(0, 255).to(torch.uint8)


def random_boxes(count: int, height: int, width: int, min_scale: float, generator: torch.Generator) -> Tensor:
    """Boxes `(B, 4)` of area `min_scale`..1 and aspect 3/4..4/3, inside the image: torchvision's RandomResizedCrop.

    Like there: the first of ten tries that fits, else the largest central box of an allowed aspect.
    """
    tries = (count, 10)
    area = height * width * (min_scale + (1 - min_scale) * torch.rand(tries, generator=generator))
    aspect = ((2 * torch.rand(tries, generator=generator) - 1) * math.log(4 / 3)).exp()
    sizes = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=2).round().long()  # (B, 10, 2)
    room = torch.tensor([height, width]) - sizes
    fits = ((room >= 0) & (sizes > 0)).all(dim=2)  # (B, 10)
    rows = torch.arange(count)
    first = fits.int().argmax(dim=1)
    size, room = sizes[rows, first], room[rows, first].clamp(min=0)
    corner = (torch.rand(count, 2, generator=generator) * (room + 1)).long().minimum(room)
    largest = torch.tensor([min(height, round(width / 0.75)), min(width, round(height * 4 / 3))])
    central = torch.cat([(torch.tensor([height, width]) - largest) // 2, largest])
    return torch.where(fits.any(dim=1)[:, None], torch.cat([corner, size], dim=1), central)


# RandAugment (Cubuk et al., 2019, arXiv:1909.13719) with the operations and ranges of torchvision, for whole batches


class _Op(NamedTuple):
    """`apply(images, strength)`; `strength` is in proportion to the magnitude, `signed` ones go either way."""

    apply: Callable[[Tensor, float], Tensor] | None
    most: float = 0.0  # strength at magnitude 30
    signed: bool = False


# The first five rows move pixels; `move` makes all of them at once, and the rest are changes of colour.
_SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(5)
OPS = (
    _Op(None, 0.3, True),
    _Op(None, 0.3, True),
    _Op(None, 150 / 331, True),
    _Op(None, 150 / 331, True),
    _Op(None, math.radians(30), True),
    _Op(lambda x, strength: x),
    _Op(lambda x, strength: F.adjust_brightness(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.adjust_saturation(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.adjust_contrast(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.adjust_sharpness(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.posterize(x, 8 - round(strength)), 4.0),
    _Op(lambda x, strength: F.solarize(x, 255 * (1 - strength)), 1.0),
    _Op(lambda x, strength: F.autocontrast(x)),
    _Op(lambda x, strength: F.equalize(x)),
)


def rand_augment(images: Tensor, ops: Tensor, sign: Tensor, magnitude: int, fill: tuple[float, ...]) -> Tensor:
    """Apply to each image its own operations; images that drew the same one are changed together.

    Args:
        images: `(B, 3, H, W)` uint8; left unchanged.
        ops, sign: `(B, n)` on the CPU: rows of the table of operations, and their directions, 1 or -1.
        magnitude: 0 to 30.
        fill: colour for what moves in from outside, 0..255.
    """
    for op, direction in zip(ops.unbind(1), sign.unbind(1), strict=True):
        before, images = images, images.clone()
        moved = (op <= _ROTATE).nonzero().flatten()
        if len(moved):
            strength = torch.tensor([row.most for row in OPS])[op[moved]] * direction[moved] * (magnitude / 30)
            index = moved.to(images.device, non_blocking=True)
            images[index] = move(before[index], op[moved], strength, fill)
        for number in sorted(set(op.tolist())):
            row = OPS[number]
            if row.apply is None:
                continue
            for way in (1, -1) if row.signed else (0,):
                chosen = ((op == number) & (direction == way if way else True)).nonzero().flatten()
                if len(chosen):
                    index = chosen.to(images.device, non_blocking=True)
                    images[index] = row.apply(before[index], row.most * magnitude / 30 * (way or 1))
    return images


def move(images: Tensor, ops: Tensor, strength: Tensor, fill: tuple[float, ...]) -> Tensor:
    """Shear, translate or rotate each image of `(B, 3, H, W)` uint8 by its own operation and strength, `(B,)`.

    One call with a matrix for each image: torchvision's functions take one angle for all and wait for the device.
    """
    height, width = images.shape[-2:]
    matrix = torch.eye(2, 3).repeat(len(images), 1, 1)
    for number, column, far, side in ((_SHEAR_X, 0, 1, height / width), (_SHEAR_Y, 1, 0, width / height)):
        slope = torch.where(ops == number, strength, 0) * side
        matrix[:, column, far] += slope
        matrix[:, column, 2] += slope  # about the upper left corner, like AutoAugment
    for number, column, side in ((_TRANSLATE_X, 0, width), (_TRANSLATE_Y, 1, height)):
        matrix[:, column, 2] += torch.where(ops == number, (strength * side).trunc() * 2 / side, 0)
    angle = torch.where(ops == _ROTATE, strength, 0)
    matrix[:, 0, 0] += angle.cos() - 1
    matrix[:, 1, 1] += angle.cos() - 1
    matrix[:, 0, 1] -= angle.sin() * (height / width)
    matrix[:, 1, 0] += angle.sin() * (width / height)
    # Zero is what lies outside, so counting from the fill colour fills it in, also half-way over the edge.
    colour = torch.tensor(fill).to(images.device, non_blocking=True)[:, None, None]
    return resample(images - colour, matrix, "bilinear", "zeros", colour)
