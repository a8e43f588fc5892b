"""Random changes to training images: their settings, and what is drawn for each image.

The pixel arithmetic is in `image_ops`, the order of the images in `batches`. Random numbers are drawn on the CPU for
the whole batch, even where only a part of it is made, so the number of processes changes nothing.

Shapes: `B` batch, `b` the images of one part of it, `C` classes, `H` and `W` stored height and width, `h` and `w` the
model's. Images have as many channels as the model's.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitrim.checks import check_types
from vitrim.data.image_ops import OPS, rand_augment, shift, zoom
from vitrim.data.preprocessing import EvalTransform, Preprocessing, check_setting, normalise
from vitrim.data.seeds import generator_for, numpy_seeded, seed_for
from vitrim.data.transfer import send, send_images, send_together

MAX_OPS = 100  # of RandAugment, for each image
Crop = Literal["none", "pad", "resized"]
SIMILAR = {"lanczos": "bicubic", "box": "bilinear", "hamming": "bilinear"}  # for random crops, which are of tensors


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Random changes to training images, in the order in which they are made. Zero switches a change off.

    Attributes:
        crop: `pad` shifts an image by up to `padding`, mirrored at the edge. `resized` cuts a random box and resizes
            it. Images that are streamed from files differ in size, so they get a random box in both cases.
        padding: for `pad`, the maximum shift as a fraction of the side.
        min_scale: minimum area of a random box, as a fraction of the image.
        flip: probability of mirroring left and right.
        rand_augment_ops: number of RandAugment operations for each image. Those that change colours are left out for
            images of other channels than grey or RGB.
        rand_augment_magnitude: strength of these operations, from 0 to 30.
        mixup: alpha of the Beta distribution from which mixup draws the weight of an image.
        cutmix: alpha of the Beta distribution from which CutMix draws an area. With both, each batch gets one of them.
        mix_probability: probability that a batch is mixed.
        label_smoothing: fraction of each label that is spread evenly over all classes.

    Raises:
        SettingError: a value is out of range.
    """

    crop: Crop = "pad"
    padding: float = 0.125
    min_scale: float = 0.35
    flip: float = 0.5
    rand_augment_ops: int = 2
    rand_augment_magnitude: int = 9
    mixup: float = 0.8
    cutmix: float = 1.0
    mix_probability: float = 1.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        check_types(self, rand_augment_ops=MAX_OPS)
        check_setting(0 <= self.padding < 1, "padding", self.padding, "a fraction of the side, from 0 to below 1")
        check_setting(
            0 < self.min_scale <= 1, "min_scale", self.min_scale, "a fraction of the area, above 0 and up to 1"
        )
        check_setting(0 <= self.flip <= 1, "flip", self.flip, "a probability, from 0 to 1")
        check_setting(self.rand_augment_ops >= 0, "rand_augment_ops", self.rand_augment_ops, "0 (off) or more")
        magnitude = self.rand_augment_magnitude
        check_setting(0 <= magnitude <= 30, "rand_augment_magnitude", magnitude, "from 0 to 30")
        check_setting(self.mixup >= 0, "mixup", self.mixup, "0 (off) or more")
        check_setting(self.cutmix >= 0, "cutmix", self.cutmix, "0 (off) or more")
        probability = self.mix_probability
        check_setting(0 <= probability <= 1, "mix_probability", probability, "a probability, from 0 to 1")
        check_setting(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")

    @property
    def mixes(self) -> bool:
        """Whether any batch can be mixed."""
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


class Step(NamedTuple):
    """One training step: which images make its batch.

    Attributes:
        epoch: counted from 0.
        number: of the step in its epoch, from 0.
        images: indices in the image set, `(B,)` int64, of all parts of the batch together.
    """

    epoch: int
    number: int
    images: Tensor


class _Draws(NamedTuple):
    """Random numbers for B images; row i belongs to image i."""

    box: Tensor  # (B, 4) top, left, height, width of the kept part in stored pixels; may reach outside the image
    flip: Tensor  # (B,) bool
    ops: Tensor  # (B, rand_augment_ops) rows of OPS
    sign: Tensor  # (B, rand_augment_ops) 1 or -1

    def at(self, positions: Tensor) -> "_Draws":
        return _Draws(*(values[positions] for values in self))


@dataclass(frozen=True)
class Augmenter:
    """Changes training images at random; what it draws depends on the seed, the epoch and the step or image only."""

    preprocessing: Preprocessing
    settings: AugmentationSettings
    seed: int

    def several_steps(self, pixels: Tensor, steps: list[Step], positions: Tensor, device: torch.device) -> Tensor:
        """Make this part's images of several steps in one go, from pixels in memory.

        Args:
            pixels: all images, `(n, channels, H, W)` uint8, on any device.
            steps: which images make each batch.
            positions: `(b,)`: which places of each batch to make.
            device: where the result is made.

        Returns:
            `(len(steps) * b, channels, h, w)` uint8, step after step.
        """
        size = (pixels.shape[-2], pixels.shape[-1])
        own = [
            self._draw(
                len(step.images), size, self.settings.crop, generator_for("step", self.seed, step.epoch, step.number)
            ).at(positions)
            for step in steps
        ]
        draws = _Draws(*(torch.cat(values) for values in zip(*own, strict=True)))
        index = torch.cat([step.images[positions] for step in steps])
        batch = send_images(pixels, index, device)
        offset, flip = send_together([draws.box[:, :2], draws.flip], device)
        if self.settings.crop == "pad":
            batch = shift(batch, offset)
        elif self.settings.crop == "resized":
            batch = zoom(batch, draws.box, self._interpolation)
        return self._resize(self._flip_and_rand_augment(batch, flip, draws))

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """Change one streamed image: `(channels, H, W)` to `(channels, h, w)`, uint8.

        Its draws depend on its index, not its step.
        """
        generator = generator_for("image", self.seed, epoch, index)
        crop: Crop = "none" if self.settings.crop == "none" else "resized"
        draws = self._draw(1, (image.shape[-2], image.shape[-1]), crop, generator)
        if crop == "none":
            image = EvalTransform(self.preprocessing)(image)
            if image.dtype != torch.uint8:
                image = image.round().clamp(0, 255).to(torch.uint8)
        else:
            interpolation = InterpolationMode(self._interpolation)
            top, left, height, width = draws.box[0].tolist()
            size = list(self.preprocessing.img_size)
            image = F.resized_crop(image, top, left, height, width, size, interpolation, antialias=True)
        return self._flip_and_rand_augment(image[None], draws.flip, draws)[0]

    def mix(self, images: Tensor, labels: Tensor, step: Step, num_classes: int) -> tuple[Tensor, Tensor]:
        """Normalise the images, and mix each with its mirror image in the batch (mixup or CutMix).

        Args:
            images: `(b, channels, h, w)` uint8.
            labels: `(b,)` int64, on the device of the result.
            step: names the draw.
            num_classes: width C of the targets.

        Returns:
            Images `(b, channels, h, w)` float32 and soft targets `(b, C)`.
        """
        images = normalise(send(images, labels.device), self.preprocessing)
        settings = self.settings
        if not settings.mixes:
            return images, mixup_target(labels, num_classes, lam=1.0, smoothing=settings.label_smoothing)
        mixup = Mixup(
            mixup_alpha=settings.mixup,
            cutmix_alpha=settings.cutmix,
            prob=settings.mix_probability,
            label_smoothing=settings.label_smoothing,
            num_classes=num_classes,
        )
        with numpy_seeded(seed_for("mix", self.seed, step.epoch, step.number)):
            return mixup(images, labels)

    def _draw(self, count: int, size: tuple[int, int], crop: Crop, generator: torch.Generator) -> _Draws:
        settings = self.settings
        box = torch.tensor([[0, 0, *size]]).repeat(count, 1)
        if crop == "pad":
            for column, side in enumerate(size):
                max_shift = min(round(settings.padding * side), side - 1)  # mirroring adds at most side - 1 pixels
                box[:, column] = torch.randint(-max_shift, max_shift + 1, (count,), generator=generator)
        elif crop == "resized":
            box = random_boxes(count, *size, settings.min_scale, generator)
        flip = torch.rand(count, generator=generator) < settings.flip
        shape = (count, settings.rand_augment_ops)
        ops = torch.randint(len(OPS), shape, generator=generator)
        sign = torch.randint(2, shape, generator=generator) * 2 - 1
        return _Draws(box, flip, ops, sign)

    def _flip_and_rand_augment(self, images: Tensor, flip: Tensor, draws: _Draws) -> Tensor:
        """Change `(b, channels, H, W)` images; `flip`, `(b,)` bool, is on their device, the draws are on the CPU."""
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        fill = tuple(float(min(255, max(0, round(255 * value)))) for value in self.preprocessing.mean)
        if self.preprocessing.steps and self.preprocessing.steps.bgr:
            fill = fill[::-1]  # `normalise` reverses the channels later
        return rand_augment(images, draws.ops, draws.sign, self.settings.rand_augment_magnitude, fill)

    def _resize(self, images: Tensor) -> Tensor:
        size = self.preprocessing.img_size
        if tuple(images.shape[-2:]) == size:
            return images
        return F.resize(images, list(size), InterpolationMode(self._interpolation), antialias=True)

    @property
    def _interpolation(self) -> str:
        return SIMILAR.get(self.preprocessing.interpolation, self.preprocessing.interpolation)


def random_boxes(count: int, height: int, width: int, min_scale: float, generator: torch.Generator) -> Tensor:
    """Draw boxes inside an image, as torchvision's RandomResizedCrop does.

    A box has `min_scale` to 1 of the area and an aspect of 3/4 to 4/3. The first of ten tries that fits is used, else
    the largest central box with an allowed aspect.

    Returns:
        `(count, 4)` int64: top, left, height and width in pixels.
    """
    shape = (count, 10)
    area = height * width * (min_scale + (1 - min_scale) * torch.rand(shape, generator=generator))
    aspect = ((2 * torch.rand(shape, generator=generator) - 1) * math.log(4 / 3)).exp()
    sizes = torch.stack([(area / aspect).sqrt(), (area * aspect).sqrt()], dim=2).round().long()  # (B, 10, 2)
    margin = torch.tensor([height, width]) - sizes
    fits = ((margin >= 0) & (sizes > 0)).all(dim=2)  # (B, 10)
    rows = torch.arange(count)
    first = fits.int().argmax(dim=1)
    size, margin = sizes[rows, first], margin[rows, first].clamp(min=0)
    corner = (torch.rand(count, 2, generator=generator) * (margin + 1)).long().minimum(margin)
    largest = torch.tensor([min(height, round(width / 0.75)), min(width, round(height * 4 / 3))])
    central = torch.cat([(torch.tensor([height, width]) - largest) // 2, largest])
    return torch.where(fits.any(dim=1)[:, None], torch.cat([corner, size], dim=1), central)
