"""The steps with which an image processor of transformers resizes and crops images, computed as transformers does.

`vitrim.models.transformers.processors` reads these steps from the file of a processor. This file does not import
transformers. What the steps give is compared with transformers' own processors in the tests.

Shapes: `H` and `W` stored height and width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

PILLOW_FILTERS = {  # the names of torchvision, and the filters of Pillow
    "nearest-exact": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
ONLY_PILLOW = ("box", "hamming")  # torchvision does not have them for tensors
LANCZOS_SINCE = (0, 27)  # the release of torchvision that has it for tensors, on the CPU
SIZES = ({"height", "width"}, {"shortest_edge"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})


@dataclass(frozen=True, kw_only=True)
class ProcessorSteps:
    """What an image processor does before it normalises.

    Attributes:
        size: how images are resized, in transformers' words: one of the sets of keys in `SIZES`. None: not at all.
        crop: height and width of the central crop. Smaller images are padded with black. None: no crop.
        bgr: the order of the channels is reversed.
        as_float: images are resized without rounding to whole numbers.
    """

    size: Mapping[str, int] | None = field(default=None, hash=False)
    crop: tuple[int, int] | None = None
    bgr: bool = False
    as_float: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        size = dict(self.size) if self.size else None
        return {**vars(self), "size": size, "crop": list(self.crop) if self.crop else None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ProcessorSteps":
        """Return what `to_dict` was called on; raises TypeError for unknown keys."""
        return cls(**{**values, "crop": tuple(values["crop"]) if values.get("crop") else None})


def apply_steps(images: Tensor, steps: ProcessorSteps, interpolation: str) -> Tensor:
    """Resize and crop images. The order of the channels is not changed.

    Args:
        images: `(..., C, H, W)` uint8.
        steps: what is done.
        interpolation: a name of `PILLOW_FILTERS`.

    Returns:
        uint8, or float32 in 0..255 (and slightly outside, for bicubic) with `as_float`.
    """
    if steps.as_float:
        images = images.float()
    if steps.size:
        height, width = images.shape[-2:]
        images = _resize(images, resized(height, width, steps.size), interpolation)
    if steps.crop:
        images = _center_crop(images, steps.crop)
    return images


def resized(height: int, width: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The size of an image of `height` and `width` after it was resized; `size` as in `ProcessorSteps`."""
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    short, long = min(height, width), max(height, width)
    edge: float = size["shortest_edge"]
    if "longest_edge" in size and long / short * edge > size["longest_edge"]:
        edge = size["longest_edge"] * short / long
    new = (round(edge), int(edge * long / short))
    return new if height <= width else new[::-1]


def _resize(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize with torchvision, which differs from Pillow by at most 1 of 255, or with Pillow where it has to be."""
    if tuple(images.shape[-2:]) == size:
        return images
    old_release = tuple(int(part) for part in torchvision.__version__.split(".")[:2]) < LANCZOS_SINCE
    if interpolation in ONLY_PILLOW or (interpolation == "lanczos" and old_release):
        return resize_with_pillow(images, size, interpolation)
    if interpolation == "lanczos":
        return F.resize(images.cpu(), list(size), InterpolationMode.LANCZOS, antialias=True).to(images.device)
    return F.resize(images, list(size), InterpolationMode(interpolation), antialias=True)


def resize_with_pillow(images: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """Resize uint8 images `(..., H, W)` to `size`, channel by channel, which is what Pillow does itself."""
    planes = images.cpu().reshape(-1, *images.shape[-2:]).numpy()
    resample = PILLOW_FILTERS[interpolation]
    made = [np.array(Image.fromarray(plane).resize(size[::-1], resample)) for plane in planes]
    return torch.from_numpy(np.stack(made)).reshape(*images.shape[:-2], *size).to(images.device)


def _center_crop(images: Tensor, crop: tuple[int, int]) -> Tensor:
    """The central crop of images `(..., C, H, W)`; where an image is smaller, black is added around it."""
    missing = [max(0, side - own) for side, own in zip(crop, images.shape[-2:], strict=True)]
    if any(missing):
        top, left = (add // 2 for add in missing)
        images = F.pad(images, [left, top, missing[1] - left, missing[0] - top], fill=0)
    top, left = ((own - side) // 2 for side, own in zip(crop, images.shape[-2:], strict=True))
    return F.crop(images, top, left, *crop)
