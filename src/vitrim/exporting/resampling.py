"""Resizing and cropping as tensor operations that every runtime has: sizes, offsets and matrices of weights.

The sizes of an image are tensors of one element here, so `torch.export` accepts any height and width. The formulas
are those of Pillow's `Resample.c` and of PyTorch's `interpolate(antialias=True)`.

Shapes: `H` and `W` height and width of an image, `h` and `w` of its crop.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitrim.data.preprocessing import Preprocessing
from vitrim.data.processor import ProcessorSteps

BICUBIC_A = -0.5  # of Keys (1981), as Pillow and PyTorch use it with antialiasing
LANCZOS_LOBES = 3

Size = tuple[Tensor, Tensor]  # height and width


def resized_size(height: Tensor, width: Tensor, preprocessing: Preprocessing) -> Size:
    """Height and width of an image after it was resized, before it is cropped.

    Args:
        height, width: of the image, int64, scalar.
        preprocessing: how images are resized. The rounding is that of timm or transformers.

    Returns:
        Two tensors like `height` and `width`, at least 1.
    """
    steps = preprocessing.steps
    found = _resized_by_steps(height, width, steps) if steps else _resized_by_timm(height, width, preprocessing)
    if unchanged := preprocessing.unchanged_size:
        used_as_it_is = (height == unchanged[0]) & (width == unchanged[1])
        found = (torch.where(used_as_it_is, height, found[0]), torch.where(used_as_it_is, width, found[1]))
    return found[0].clamp(min=1), found[1].clamp(min=1)


def _resized_by_timm(height: Tensor, width: Tensor, preprocessing: Preprocessing) -> Size:
    """The size that timm's transform for evaluation gives."""
    target = [math.floor(side / preprocessing.crop_pct) for side in preprocessing.img_size]
    if preprocessing.crop_mode == "squash":
        return torch.full_like(height, target[0]), torch.full_like(width, target[1])
    if preprocessing.crop_mode == "center" and target[0] == target[1]:
        return _shortest_edge(height, width, target[0])
    ratios = (height.double() / target[0], width.double() / target[1])
    ratio = torch.maximum(*ratios) if preprocessing.crop_mode == "border" else torch.minimum(*ratios)
    return (height / ratio).round().long(), (width / ratio).round().long()


def _shortest_edge(height: Tensor, width: Tensor, edge: int) -> Size:
    """The shorter side becomes `edge`, and the longer side is rounded down."""
    short, edge_tensor = torch.minimum(height, width), torch.full_like(height, edge)
    long = edge * torch.maximum(height, width) // short
    is_tall = height > width
    return torch.where(is_tall, long, edge_tensor), torch.where(is_tall, edge_tensor, long)


def _resized_by_steps(height: Tensor, width: Tensor, steps: ProcessorSteps) -> Size:
    """The size that `vitrim.data.processor.resized` gives."""
    size = steps.size
    if not size:
        return height, width
    if "height" in size:
        return torch.full_like(height, size["height"]), torch.full_like(width, size["width"])
    if "max_height" in size:
        maxima = [torch.full_like(height, size[name]).double() for name in ("max_height", "max_width")]
        scale = torch.minimum(maxima[0] / height, maxima[1] / width)  # a number / a tensor would round twice
        return (height * scale).long(), (width * scale).long()
    if "longest_edge" not in size:
        return _shortest_edge(height, width, size["shortest_edge"])
    return _limited_shortest_edge(height, width, size)


def _limited_shortest_edge(height: Tensor, width: Tensor, size: Mapping[str, int]) -> Size:
    """The shorter side becomes `shortest_edge`, or less, so that the longer side is at most `longest_edge`."""
    short, long = torch.minimum(height, width).double(), torch.maximum(height, width).double()
    limited = size["longest_edge"] * short / long
    edge = torch.full_like(short, size["shortest_edge"])
    edge = torch.where(long / short * edge > size["longest_edge"], limited, edge)
    new_short, new_long = edge.round().long(), (edge * long / short).long()
    is_tall = height > width
    return torch.where(is_tall, new_long, new_short), torch.where(is_tall, new_short, new_long)


def crop_offset(resized: Tensor, crop: int, *, rounds_down: bool) -> Tensor:
    """Where the central crop begins on one axis; negative where the image is smaller and is padded.

    Args:
        resized: size of the resized image, int64, scalar.
        crop: size of the crop.
        rounds_down: halves are rounded down, as transformers does, and not to even numbers, as torchvision does.
    """
    half = (resized - crop) / 2
    inside = half.floor() if rounds_down else half.round()
    return torch.where(half > 0, inside, half.ceil()).long()


def axis_weights(size: int, resized: Tensor, rows: Tensor, interpolation: str) -> Tensor:
    """The matrix that resamples one axis, for some of the rows of the result.

    Args:
        size: of the axis in the image. While `torch.export` traces dynamic axes, a symbol.
        resized: size of the axis after it was resized, int64, scalar.
        rows: indices in the resized axis, int64 `(h,)`. Those outside are clamped.
        interpolation: one of `vitrim.data.preprocessing.INTERPOLATIONS`.

    Returns:
        `(h, H)` float32; each row sums to 1.
    """
    rows = rows.clamp(min=torch.zeros_like(resized), max=resized - 1)[:, None]
    columns = torch.arange(size, device=rows.device)[None]
    total = torch.scalar_tensor(size, dtype=torch.int64, device=rows.device)
    if interpolation in ("nearest", "nearest-exact"):
        scale = total.float() / resized.float()
        middle = 0.0 if interpolation == "nearest" else 0.5
        nearest = ((rows + middle) * scale).floor().long()
        return (columns == torch.minimum(nearest, total - 1)).float()
    if interpolation == "box":
        weights = _box(columns, rows, total, resized)
        return weights / weights.sum(dim=1, keepdim=True)
    # The distance of the pixels' centres is (column + 1/2) - (row + 1/2) * total / resized, in pixels of the image.
    # As a fraction of whole numbers, it has no rounding error where a kernel ends.
    distance = (2 * columns + 1) * resized - (2 * rows + 1) * total
    weights = KERNELS[interpolation](distance, 2 * torch.maximum(total, resized))  # a smaller image widens the kernel
    return weights / weights.sum(dim=1, keepdim=True)


def _box(columns: Tensor, rows: Tensor, total: Tensor, resized: Tensor) -> Tensor:
    """The pixels within a box. Pixels exactly at its edge are common, so this rounds as Pillow does, in float64."""
    scale = total.double() / resized.double()
    width = scale.clamp(min=1)
    center = (rows.double() + 0.5) * scale
    first, last = (center - width / 2 + 0.5).floor(), (center + width / 2 + 0.5).floor()
    x = (columns - center + 0.5) * (1 / width)
    return ((x > -0.5) & (x <= 0.5) & (columns >= first) & (columns < last)).float()


def _bilinear(numerator: Tensor, denominator: Tensor) -> Tensor:
    return (1 - (numerator / denominator).abs()).clamp(min=0)


def _bicubic(numerator: Tensor, denominator: Tensor) -> Tensor:
    x, a = (numerator / denominator).abs(), BICUBIC_A
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


def _hamming(numerator: Tensor, denominator: Tensor) -> Tensor:
    x = numerator / denominator
    return torch.where(x.abs() < 1, _sinc(x) * (0.54 + 0.46 * (math.pi * x).cos()), torch.zeros_like(x))


def _lanczos(numerator: Tensor, denominator: Tensor) -> Tensor:
    x = numerator / denominator
    return torch.where(x.abs() < LANCZOS_LOBES, _sinc(x) * _sinc(x / LANCZOS_LOBES), torch.zeros_like(x))


def _sinc(x: Tensor) -> Tensor:
    angle = math.pi * torch.where(x == 0, torch.ones_like(x), x)
    return torch.where(x == 0, torch.ones_like(x), angle.sin() / angle)


KERNELS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {  # of a distance, given as numerator and denominator
    "bilinear": _bilinear,
    "hamming": _hamming,
    "bicubic": _bicubic,
    "lanczos": _lanczos,
}
