"""How images are prepared for a model: resize, crop, normalise. No randomness."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor

from vitrim.errors import SettingError

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic")  # what torchvision can do on tensors
SMALL_SIDE = 96  # images up to this side are data sets of small images, made for models of that size


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What the model's own configuration says about its input.

    Attributes:
        img_size: height and width in pixels.
        mean, std: for each of the three colours, of values in 0..1.
        crop_pct: side of the central crop as a share of the resized image, in evaluation.
        crop_mode: timm's `center` (shorter side fits), `squash` (both do) or `border` (longer side fits).
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
        check_setting(len(self.mean) == 3, "mean", self.mean, "three numbers: only models of RGB images are supported")
        check_setting(len(self.std) == 3 and min(self.std) > 0, "std", self.std, "three positive numbers")
        check_setting(
            self.interpolation in INTERPOLATIONS, "interpolation", self.interpolation, f"one of {INTERPOLATIONS}"
        )
        check_setting(self.crop_pct > 0, "crop_pct", self.crop_pct, "positive")
        crop_modes = ("center", "squash", "border")
        check_setting(self.crop_mode in crop_modes, "crop_mode", self.crop_mode, f"one of {crop_modes}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_dict`."""
        known = {field.name for field in dataclasses.fields(cls)}
        check_setting(
            set(values) <= known, "preprocessing", sorted(values), f"a mapping with keys out of {sorted(known)}"
        )
        required = {"img_size", "mean", "std"}
        check_setting(required <= set(values), "preprocessing", sorted(values), f"a mapping with {sorted(required)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**plain)


def check_setting(right: bool, name: str, found: object, expected: str) -> None:
    if not right:
        raise SettingError(f"{name} is {found!r}; it must be {expected}.")


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn uint8 pixels `(B, 3, h, w)` into float32 of mean 0 and standard deviation 1, as the model expects them."""
    mean = torch.tensor(preprocessing.mean).to(images.device, non_blocking=True)[:, None, None]
    std = torch.tensor(preprocessing.std).to(images.device, non_blocking=True)[:, None, None]
    return images.float().div_(255).sub_(mean).div_(std)


class EvalTransform:
    """Evaluation's resizing and cropping of uint8 `(..., 3, H, W)`: timm's, from the model's configuration.

    Small images that have the model's size already are taken as they are: with timm's usual `crop_pct` of 0.9, an image
    of 32 pixels would be blurred up to 35 and lose its edge, and a model for such images was not trained that way.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.img_size = preprocessing.img_size
        self.transform = create_transform(
            input_size=(3, *preprocessing.img_size),
            is_training=False,
            normalize=False,  # geometry only; `normalise` does whole batches
            **{key: getattr(preprocessing, key) for key in ("interpolation", "mean", "std", "crop_pct", "crop_mode")},
        )

    def __call__(self, images: Tensor, epoch: int = 0, index: int = 0) -> Tensor:
        if tuple(images.shape[-2:]) == self.img_size and max(self.img_size) <= SMALL_SIDE:
            return images
        return self.transform(images)
