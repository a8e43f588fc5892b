"""Prepare images for a model: resize, crop, normalise. Nothing here is random; that is in `augmentation`."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from vitrim.checks import MAX_IMG_SIZE, check_size, checked
from vitrim.data.processor import PILLOW_FILTERS, ProcessorSteps, apply_steps
from vitrim.data.transfer import send_together
from vitrim.errors import DataError, SettingError

INTERPOLATIONS = ("nearest", *PILLOW_FILTERS)
NOT_FOR_TENSORS = ("lanczos", "box", "hamming")  # timm computes them with Pillow
MIN_STD = 1e-6
MIN_CROP_PCT, MAX_CROP_PCT = 0.05, 10.0  # at 0.05, images are resized to 20 times the side of the crop
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
        steps: how an image processor of transformers resizes and crops. In evaluation, it is used instead of `crop_pct`
            and `crop_mode`.

    Raises:
        SettingError: a value is out of range.
    """

    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    steps: ProcessorSteps | None = None

    def __post_init__(self) -> None:
        sizes = [checked(size, int, "img_size") for size in self.img_size]
        is_pair = len(sizes) == 2 and 0 < min(sizes) <= max(sizes) <= MAX_IMG_SIZE
        check_setting(is_pair, "img_size", self.img_size, f"two whole numbers from 1 to {MAX_IMG_SIZE}")
        check_setting(len(self.mean) == len(self.std) > 0, "mean", self.mean, f"as many numbers as std, {self.std}")
        for name in ("mean", "std"):
            for number in getattr(self, name):
                check_size(name, checked(number, float, name))
        check_setting(min(self.std) >= MIN_STD, "std", self.std, f"at least {MIN_STD:g} for each channel")
        check_setting(
            self.interpolation in INTERPOLATIONS,
            "interpolation",
            self.interpolation,
            f"one of {', '.join(INTERPOLATIONS)}",
        )
        of_processors = self.interpolation == "nearest-exact" and self.steps is None  # timm's transform lacks it
        check_setting(not of_processors, "interpolation", self.interpolation, "nearest without an image processor")
        is_possible = MIN_CROP_PCT <= checked(self.crop_pct, float, "crop_pct") <= MAX_CROP_PCT
        check_setting(is_possible, "crop_pct", self.crop_pct, f"from {MIN_CROP_PCT} to {MAX_CROP_PCT}")
        crop_modes = ("center", "squash", "border")
        check_setting(self.crop_mode in crop_modes, "crop_mode", self.crop_mode, f"one of {crop_modes}")

    @property
    def channels(self) -> int:
        """Number of channels of an image."""
        return len(self.mean)

    @property
    def unchanged_size(self) -> tuple[int, int] | None:
        """Height and width of the images that `EvalTransform` does not change: those of small models, else None."""
        return self.img_size if max(self.img_size) <= MAX_SMALL_SIDE and not self.steps else None

    def text(self) -> str:
        """Return what happens to an image, in words: resizing, crop, mean and standard deviation."""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{self._geometry()}; mean {mean}; std {std}"

    def _geometry(self) -> str:
        height, width = self.img_size
        crop = f"central crop of {height}x{width}"
        if self.steps:
            to = ", ".join(f"{name} {value}" for name, value in (self.steps.size or {}).items())
            order = "; channels in the order BGR" if self.steps.bgr else ""
            resized = f"resized to {to} ({self.interpolation})" if to else "not resized"
            return f"{resized}, {crop if self.steps.crop else 'no crop'}{order}"
        small = f" (images of {height}x{width} are used as they are)" if self.unchanged_size else ""
        sides = [math.floor(side / self.crop_pct) for side in self.img_size]
        size = str(min(sides)) if self.crop_mode == "center" and height == width else "x".join(map(str, sides))
        what = {"center": "shorter side", "squash": "both sides", "border": "longer side"}[self.crop_mode]
        return f"{what} resized to {size} ({self.interpolation}), {crop}{small}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}
        del plain["steps"]
        return {**plain, "steps": self.steps.to_dict()} if self.steps else plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return what `to_dict` was called on.

        Raises:
            SettingError: a key is unknown or missing, or a value is out of range. Or `refused` says why vitrim cannot
                prepare images for the model.
        """
        if "refused" in values:
            raise SettingError(str(values["refused"]))
        known = {field.name for field in dataclasses.fields(cls)}
        check_setting(
            set(values) <= known, "preprocessing", sorted(values), f"a mapping with keys from {sorted(known)}"
        )
        required = {"img_size", "mean", "std"}
        check_setting(required <= set(values), "preprocessing", sorted(values), f"a mapping with {sorted(required)}")
        plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        if plain.get("steps") is not None:
            plain["steps"] = ProcessorSteps.from_dict(plain["steps"])
        return cls(**plain)


def check_setting(valid: bool, name: str, found: object, expected: str) -> None:
    """Raise SettingError with the name, the value and what was expected, unless the value is `valid`."""
    if not valid:
        raise SettingError(f"{name} is {found!r}; it must be {expected}.")


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Convert pixels to the numbers that the model expects: `(pixel / 255 - mean) / std` for each channel.

    Args:
        images: `(B, channels, h, w)` uint8, or float32 in 0..255.
        preprocessing: holds mean and std, and whether the order of the channels is reversed.

    Returns:
        `(B, channels, h, w)` float32, on the same device.
    """
    constants = [torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std)]
    mean, std = send_together(constants, images.device)
    if preprocessing.steps and preprocessing.steps.bgr:
        images = images.flip(1)
    images = images.float() if images.dtype == torch.uint8 else images.clone()
    return images.div_(255).sub_(mean).div_(std)


class EvalTransform:
    """Resize and crop uint8 images for evaluation: `(..., H, W)` to `(..., h, w)`.

    With `steps`, this is what transformers' image processor does; the result may be float32 in 0..255. Else it is
    timm's transform. Small images that already have the model's size are then not changed. With timm's usual `crop_pct`
    of 0.9, an image of 32 pixels would be enlarged to 35 pixels and lose its edge. Models for small images are not
    trained that way.

    A call raises DataError if the steps give an image of another size than the model takes.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing, self.img_size = preprocessing, preprocessing.img_size
        self.steps, self.interpolation = preprocessing.steps, preprocessing.interpolation
        self.transforms = [] if self.steps else _timm_transforms(preprocessing)

    def __call__(self, images: Tensor, epoch: int = 0, index: int = 0) -> Tensor:
        """Return the resized and cropped images. `epoch` and `index` are for callers that also call `Augmenter`."""
        if self.steps:
            return self._checked(apply_steps(images, self.steps, self.interpolation))
        if tuple(images.shape[-2:]) == self.preprocessing.unchanged_size:
            return images
        if len(self.transforms) == 1:
            return self._transformed(images, self.transforms[0])
        planes = [self._transformed(images[..., [i], :, :], own) for i, own in enumerate(self.transforms)]
        return torch.cat(planes, dim=-3)

    def _checked(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.img_size:
            found, expected = ("x".join(map(str, size)) for size in (images.shape[-2:], self.img_size))
            raise DataError(
                f"The model's image processor makes an image of {found} here; expected {expected}, as the model takes. "
                "Its file, preprocessor_config.json, must set do_resize or do_center_crop with this size."
            )
        return images

    def _transformed(self, images: Tensor, transform: Callable[[Any], Tensor]) -> Tensor:
        if self.interpolation not in NOT_FOR_TENSORS:
            return transform(images)
        planes = images.cpu().reshape(-1, *images.shape[-2:]).numpy()
        made = torch.cat([transform(Image.fromarray(plane)) for plane in planes])
        return made.reshape(*images.shape[:-2], *self.img_size).to(images.device)


def _timm_transforms(preprocessing: Preprocessing) -> list[Callable[[Any], Tensor]]:
    """timm's transform for evaluation, without normalisation; one for each channel if the border has another value."""
    has_border = preprocessing.crop_mode == "border"
    means = [(mean,) for mean in preprocessing.mean] if has_border else [preprocessing.mean]
    transforms = []
    for mean in means:
        transform = create_transform(
            input_size=(len(mean), *preprocessing.img_size),
            is_training=False,
            normalize=False,  # only resize and crop here; `normalise` converts whole batches
            mean=mean,
            std=preprocessing.std[: len(mean)],
            **{key: getattr(preprocessing, key) for key in ("interpolation", "crop_pct", "crop_mode")},
        )
        if has_border:  # timm gives a list, which torchvision does not accept for tensors
            (transform.transforms[1].fill,) = transform.transforms[1].fill
        transforms.append(transform)
    return transforms
