"""Prepare images for a model: resize, crop, normalise. Nothing here is random; that is in `augmentation`."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor

from vitrim.data.transfer import send_together
from vitrim.errors import SettingError

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")  # those that torchvision has for tensors
MAX_SMALL_SIDE = 96  # pixels; models with an input up to this size are trained on images of exactly that size


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The input that a model expects, in timm's words.

    Attributes:
        img_size: height and width in pixels.
        mean: mean of each channel, for values in 0..1.
        std: standard deviation of each channel, for values in 0..1.
        interpolation: how images are resized; one of `INTERPOLATIONS`.
        crop_pct: side of the central crop in evaluation, as a fraction of the resized image.
        crop_mode: what is resized to the crop: `center` the shorter side, `squash` both sides, `border` the longer
            side.

    Raises:
        SettingError: a value is out of range.
    """

    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        check_setting(
            len(self.img_size) == 2 and min(self.img_size) > 0, "img_size", self.img_size, "two positive integers"
        )
        check_setting(len(self.mean) == len(self.std) > 0, "mean", self.mean, f"as many numbers as std, {self.std}")
        check_setting(min(self.std) > 0, "std", self.std, "a positive number for each channel")
        check_setting(
            self.interpolation in INTERPOLATIONS, "interpolation", self.interpolation, f"one of {INTERPOLATIONS}"
        )
        check_setting(self.crop_pct > 0, "crop_pct", self.crop_pct, "positive")
        crop_modes = ("center", "squash", "border")
        check_setting(self.crop_mode in crop_modes, "crop_mode", self.crop_mode, f"one of {crop_modes}")

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return what `to_dict` was called on.

        Raises:
            SettingError: a key is unknown or missing, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        check_setting(
            set(values) <= known, "preprocessing", sorted(values), f"a mapping with keys from {sorted(known)}"
        )
        required = {"img_size", "mean", "std"}
        check_setting(required <= set(values), "preprocessing", sorted(values), f"a mapping with {sorted(required)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def check_setting(valid: bool, name: str, found: object, expected: str) -> None:
    """Raise SettingError with the name, the value and what was expected, unless the value is `valid`."""
    if not valid:
        raise SettingError(f"{name} is {found!r}; it must be {expected}.")


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert pixels to the numbers that the model expects: `(pixel / 255 - mean) / std` for each channel.

    Args:
        images: `(B, channels, h, w)` uint8.
        preprocessing: holds mean and std.

    Returns:
        `(B, channels, h, w)` float32, on the same device.
    """
    constants = [torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std)]
    mean, std = send_together(constants, images.device)
    return images.float().div_(255).sub_(mean).div_(std)


class EvalTransform:
    """Resize and crop uint8 images `(..., H, W)` for evaluation, to `(..., h, w)`, with timm's transform.

    Small images that already have the model's size are not changed. With timm's usual `crop_pct` of 0.9, an image of 32
    pixels would be enlarged to 35 pixels and lose its edge. Models for small images are not trained that way.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.transform = create_transform(
            input_size=(preprocessing.channels, *preprocessing.img_size),
            is_training=False,
            normalize=False,  # only resize and crop here; `normalise` converts whole batches
            **{key: getattr(preprocessing, key) for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode")},
        )

    def __call__(self, images: Tensor, epoch: int = 0, index: int = 0) -> Tensor:
        """Return the resized and cropped images. `epoch` and `index` are for callers that also call `Augmenter`."""
        size = self.preprocessing.img_size
        if tuple(images.shape[-2:]) == size and max(size) <= MAX_SMALL_SIDE:
            return images
        return self.transform(images)
