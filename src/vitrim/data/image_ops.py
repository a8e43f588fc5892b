"""Changes to batches of uint8 images: shift, zoom and RandAugment, with other parameters for each image.

Nothing here is random: the draws are arguments (`augmentation` makes them). A whole batch is changed in few calls.

Shapes: `B` images, `C` channels, `H` and `W` their height and width in pixels, `n` operations for each image.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vitrim.data.transfer import send, send_together


def shift(images: Tensor, box: Tensor) -> Tensor:
    """Move each image by its own offset. Pixels from outside the image are mirrored at its edge.

    Args:
        images: `(B, C, H, W)`, any device.
        box: `(B, 2)` or wider, int64, same device. Columns 0 and 1 are the top and left of the kept part, in pixels,
            from `1 - H` to `H - 1` and from `1 - W` to `W - 1`. Other columns are not used.

    Returns:
        The moved images, same shape and type.
    """
    count, channels, height, width = images.shape
    rows = _mirrored(box[:, :1] + torch.arange(height, device=box.device), height)  # (B, H)
    columns = _mirrored(box[:, 1:2] + torch.arange(width, device=box.device), width)  # (B, W)
    source = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)  # (B, 1, H*W)
    return images.flatten(2).gather(2, source.expand(-1, channels, -1)).view_as(images)


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Reflect indices outside `0 .. side - 1` back inside. The edge pixel itself is not repeated."""
    return (side - 1) - ((side - 1) - index.abs()).abs()


def zoom(images: Tensor, box: Tensor, interpolation: str) -> Tensor:
    """Enlarge one box of each image to the size of the image.

    A box is never larger than the image, so no smoothing against aliasing is needed.

    Args:
        images: `(B, C, H, W)` uint8.
        box: `(B, 4)` on the CPU: top, left, height and width in pixels, inside the image.
        interpolation: `bilinear` or `bicubic`; any other name is nearest neighbour.

    Returns:
        `(B, C, H, W)` uint8.
    """
    height, width = images.shape[-2:]
    top, left, box_height, box_width = box.float().unbind(1)
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 2] = box_width / width, (2 * left + box_width) / width - 1
    matrix[:, 1, 1], matrix[:, 1, 2] = box_height / height, (2 * top + box_height) / height - 1
    mode = interpolation if interpolation in ("bilinear", "bicubic") else "nearest"
    return resample(images.float(), send(matrix, images.device), mode, "border")


def resample(images: Tensor, matrix: Tensor, mode: str, padding_mode: str, offset: Tensor | float = 0.0) -> Tensor:
    """Apply one affine map to each image.

    Args:
        images: `(B, C, H, W)` float, from which `offset` was subtracted.
        matrix: `(B, 2, 3)` from output to input coordinates, both in -1..1 (`affine_grid`), same device.
        mode, padding_mode: as for `grid_sample`.
        offset: added after resampling; with zero padding it is the colour outside the image.

    Returns:
        `(B, C, H, W)` uint8.
    """
    grid = torch.nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    moved = torch.nn.functional.grid_sample(images, grid, mode=mode, padding_mode=padding_mode, align_corners=False)
    return moved.add_(offset).round_().clamp_(0, 255).to(torch.uint8)


def sharpen(images: Tensor, factor: float) -> Tensor:
    """Blur or sharpen images as torchvision's `adjust_sharpness`, which copies its kernel to the device and waits.

    Args:
        images: `(B, C, H, W)` uint8, any device.
        factor: 0 blurs, 1 changes nothing, 2 sharpens.

    Returns:
        `(B, C, H, W)` uint8. Pixels at the edge, and images with a side below 3, do not change.
    """
    if min(images.shape[-2:]) < 3:
        return images
    channels = images.shape[1]
    kernel = torch.full((channels, 1, 3, 3), 1 / 13, device=images.device)
    kernel[:, :, 1, 1] = 5 / 13
    sharper = images.float()
    inner = sharper[..., 1:-1, 1:-1]
    blurred = torch.nn.functional.conv2d(sharper, kernel, groups=channels).round_()
    inner.add_(blurred.sub_(inner), alpha=1.0 - factor)
    return sharper.clamp_(0, 255).to(torch.uint8)


# RandAugment (Cubuk et al., 2019, arXiv:1909.13719) with the operations and ranges of torchvision, for whole batches


class _Op(NamedTuple):
    """One operation: `apply(images, strength)`, None for one that `move` does, and for the one that changes nothing.

    The strength is proportional to the magnitude; a `signed` operation goes in both directions.
    """

    apply: Callable[[Tensor, float], Tensor] | None
    max_strength: float = 0.0  # at magnitude 30
    signed: bool = False


# The first five operations move pixels, and `move` makes all of them in one call. The others change colours.
_SHEAR_X, _SHEAR_Y, _TRANSLATE_X, _TRANSLATE_Y, _ROTATE = range(5)
OPS = (
    _Op(None, 0.3, True),
    _Op(None, 0.3, True),
    _Op(None, 150 / 331, True),
    _Op(None, 150 / 331, True),
    _Op(None, math.radians(30), True),
    _Op(None),
    _Op(lambda x, strength: F.adjust_brightness(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.adjust_saturation(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.adjust_contrast(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: sharpen(x, 1 + strength), 0.9, True),
    _Op(lambda x, strength: F.posterize(x, 8 - round(strength)), 4.0),
    _Op(lambda x, strength: F.solarize(x, 255 * (1 - strength)), 1.0),
    _Op(lambda x, strength: F.autocontrast(x)),
    _Op(lambda x, strength: F.equalize(x)),
)


RECOLOURED_CHANNELS = (1, 3)  # numbers of channels whose colours RandAugment changes; the saturation of grey stays


class _Round(NamedTuple):
    """One operation for each image, on the CPU.

    Attributes:
        moved: `(m,)` images that are moved.
        matrix: `(m, 2, 3)` for `move`.
        recoloured: `(c,)` images whose colours change, those with the same operation next to each other.
        groups: the operation, its strength and the number of images, for each group in `recoloured`.
    """

    moved: Tensor
    matrix: Tensor
    recoloured: Tensor
    groups: list[tuple[Callable[[Tensor, float], Tensor], float, int]]


def rand_augment(images: Tensor, ops: Tensor, sign: Tensor, magnitude: int, fill: tuple[float, ...]) -> Tensor:
    """Apply to each image its own operations. Images with the same operation are changed together.

    Images of other channels than grey or RGB are only moved: their colours, or their alpha, have another meaning.

    Args:
        images: `(B, C, H, W)` uint8; not changed in place.
        ops: `(B, n)` int64 on the CPU: rows of `OPS`, applied from left to right.
        sign: `(B, n)` on the CPU: direction of each operation, 1 or -1.
        magnitude: strength of all operations, 0 to 30.
        fill: colour of pixels from outside the image, one value in 0..255 for each channel.

    Returns:
        `(B, C, H, W)` uint8.
    """
    size = (images.shape[-2], images.shape[-1])
    recolour = images.shape[1] in RECOLOURED_CHANNELS
    rounds = [
        _round(op, direction, magnitude, size, recolour)
        for op, direction in zip(ops.unbind(1), sign.unbind(1), strict=True)
    ]
    arrays = [array for each in rounds for array in (each.moved, each.matrix, each.recoloured)]
    colour, *sent = send_together([torch.tensor(fill), *arrays], images.device)
    for number, each in enumerate(rounds):
        moved, matrix, recoloured = sent[3 * number : 3 * number + 3]
        before, images = images, images.clone()
        if len(moved):
            images[moved] = move(before[moved], matrix, colour)
        parts = recoloured.split([count for _, _, count in each.groups]) if each.groups else ()
        for (apply, strength, _), index in zip(each.groups, parts, strict=True):
            images[index] = apply(before[index], strength)
    return images


def _round(op: Tensor, direction: Tensor, magnitude: int, size: tuple[int, int], recolour: bool) -> _Round:
    """Group the images by their operation, `(B,)`, and its direction, `(B,)`; those that change colours on request."""
    moved = (op <= _ROTATE).nonzero().flatten()
    strength = torch.tensor([row.max_strength for row in OPS])[op[moved]] * direction[moved] * (magnitude / 30)
    groups, recoloured = [], [moved[:0]]
    for number in sorted(set(op.tolist())) if recolour else ():
        apply, max_strength, signed = OPS[number]
        for way in (1, -1) if signed else (1,):
            chosen = ((op == number) & (direction == way if signed else True)).nonzero().flatten()
            if apply is not None and len(chosen):
                groups.append((apply, max_strength * magnitude / 30 * way, len(chosen)))
                recoloured.append(chosen)
    return _Round(moved, move_matrices(op[moved], strength, size), torch.cat(recoloured), groups)


def move(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Shear, translate or rotate each image by its own matrix.

    One call for all images. torchvision's functions take one angle for all images, and wait for the device.

    Args:
        images: `(B, C, H, W)` uint8.
        matrix: `(B, 2, 3)` of `move_matrices`, same device.
        fill: `(C,)` colour of pixels from outside the image, 0..255, same device.

    Returns:
        `(B, C, H, W)` uint8.
    """
    colour = fill[:, None, None]
    # Zero padding is the fill colour once it is subtracted here and added again, also between pixels at the edge.
    return resample(images - colour, matrix, "bilinear", "zeros", colour)


def move_matrices(ops: Tensor, strength: Tensor, size: tuple[int, int]) -> Tensor:
    """The affine maps of operations that move pixels.

    Args:
        ops: `(B,)` on the CPU: rows 0 to 4 of `OPS`.
        strength: `(B,)` on the CPU: slope of a shear, fraction of the side for a translation, radians for a rotation.
        size: height and width of the images.

    Returns:
        `(B, 2, 3)` on the CPU, from output to input coordinates, both in -1..1.
    """
    height, width = size
    matrix = torch.eye(2, 3).repeat(len(ops), 1, 1)
    for number, column, far, side in ((_SHEAR_X, 0, 1, height / width), (_SHEAR_Y, 1, 0, width / height)):
        slope = torch.where(ops == number, strength, 0) * side
        matrix[:, column, far] += slope
        matrix[:, column, 2] += slope  # the upper left corner does not move, as in AutoAugment
    for number, column, side in ((_TRANSLATE_X, 0, width), (_TRANSLATE_Y, 1, height)):
        matrix[:, column, 2] += torch.where(ops == number, (strength * side).trunc() * 2 / side, 0)
    angle = torch.where(ops == _ROTATE, strength, 0)
    matrix[:, 0, 0] += angle.cos() - 1
    matrix[:, 1, 1] += angle.cos() - 1
    matrix[:, 0, 1] -= angle.sin() * (height / width)
    matrix[:, 1, 0] += angle.sin() * (width / height)
    return matrix
