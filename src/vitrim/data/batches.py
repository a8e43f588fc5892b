"""Batches for training and evaluation, and the random changes made to training images.

Every batch is a pure function of the images, the settings, the seed, the epoch and the step: resuming in the middle,
other numbers of workers or processes, and the state of the global random generators make no difference, and that state
is left as it was. Random numbers are drawn on the CPU for the whole batch, even where only a part of it is made.
Batches go on over the end of an epoch, so that workers start once. Copies to the device do not wait for it
(`non_blocking`).

Shapes: `B` batch, `C` classes, `H` and `W` stored height and width, `h` and `w` the model's.
"""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, tee
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitrim.data.augmentation import OPS, rand_augment, random_boxes, shift, zoom
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.loading import BROKEN_IMAGE, load_data, read_image
from vitrim.data.preprocessing import EvalTransform, Preprocessing, check_setting, normalise
from vitrim.errors import DataError, SettingError

__all__ = [
    "AugmentationSettings",
    "ImageData",
    "ImageSet",
    "Preprocessing",
    "eval_batches",
    "load_data",
    "num_train_steps",
    "train_batches",
]

VALUES_TOGETHER = 2**22  # augmented in one go: several small batches, as calls cost more than pixels there
SHARED_MEMORY = Path("/dev/shm")  # where the batches that workers made wait, on Linux; a container may have little
BATCHES_WAITING = 3  # for each worker: two that the loader asks for ahead, and the one in use


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Random changes to training images, in the order in which they are made. Zero switches a change off."""

    crop: Literal["none", "pad", "resized"] = "pad"
    """`pad`: shift by up to `padding`, mirrored at the edge. `resized`: a random box, resized. Images that stream from
    files have various sizes and get a random box in both cases."""
    padding: float = 0.125
    """For `pad`: largest shift, as a share of the side."""
    min_scale: float = 0.35
    """For a random box: its smallest area, as a share of the image."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    rand_augment_ops: int = 2
    """How many of RandAugment's operations each image gets."""
    rand_augment_magnitude: int = 9
    """Their strength, from 0 to 30."""
    mixup: float = 0.8
    """Alpha of the Beta distribution of mixup's share."""
    cutmix: float = 1.0
    """Alpha of the Beta distribution of CutMix's area. With both, each batch gets one of the two."""
    mix_probability: float = 1.0
    """Probability that a batch is mixed at all."""
    label_smoothing: float = 0.1
    """Share of each label that is spread over all classes."""

    def __post_init__(self) -> None:
        crops = ("none", "pad", "resized")
        check_setting(self.crop in crops, "crop", self.crop, f"one of {crops}")
        check_setting(0 <= self.padding < 1, "padding", self.padding, "a share of the side, from 0 to below 1")
        check_setting(0 < self.min_scale <= 1, "min_scale", self.min_scale, "a share of the area, above 0 and up to 1")
        check_setting(0 <= self.flip <= 1, "flip", self.flip, "a probability")
        check_setting(self.rand_augment_ops >= 0, "rand_augment_ops", self.rand_augment_ops, "0 (off) or more")
        magnitude = self.rand_augment_magnitude
        check_setting(0 <= magnitude <= 30, "rand_augment_magnitude", magnitude, "from 0 to 30")
        check_setting(self.mixup >= 0, "mixup", self.mixup, "0 (off) or more")
        check_setting(self.cutmix >= 0, "cutmix", self.cutmix, "0 (off) or more")
        check_setting(0 <= self.mix_probability <= 1, "mix_probability", self.mix_probability, "a probability")
        check_setting(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "from 0 to below 1")

    @property
    def mixes(self) -> bool:
        return (self.mixup > 0 or self.cutmix > 0) and self.mix_probability > 0


# Batches


def num_train_steps(images: ImageSet, batch_size: int) -> int:
    """Steps of one epoch: the incomplete last batch is dropped, but a small set still makes one batch."""
    return max(1, images.num_images // batch_size)


def train_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    augmentation: AugmentationSettings,
    *,
    num_classes: int,
    batch_size: int,
    epoch: int,
    seed: int,
    epochs: int = 1,
    first_step: int = 0,
    part: int = 0,
    parts: int = 1,
    device: str | torch.device = "cpu",
    num_workers: int | Literal["auto"] = "auto",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented, mixed batches of `epochs` epochs from step `first_step` of `epoch` on.

    Args:
        batch_size: of all parts together; a multiple of `2 * parts`. A set with fewer images makes one batch of all of
            them, less the remainder, so only then does the number of parts change what a step sees.
        part, parts: make this share of each batch; the shares together are exactly the batch of one part.
            Image i is mixed with image B-1-i, so a share is made of positions from both ends (`part_positions`).
        num_workers: processes that decode files, by default this part's share of the cores; pixels in memory need
            none.

    Yields:
        Normalised images `(B / parts, 3, h, w)` float32 and soft targets `(B / parts, C)`, on `device`.

    Raises:
        SettingError: the batch cannot be divided. DataError: too few images or classes, or a file that went bad.
    """
    _check_parts(part, parts)
    batch_size = check_batch_size(images, batch_size, parts, num_classes)
    positions = part_positions(batch_size, part, parts)
    num_steps = num_train_steps(images, batch_size)
    ahead, steps = tee(_steps(images.num_images, batch_size, num_steps, range(epoch, epoch + epochs), first_step, seed))
    augment, device = _Augment(preprocessing, augmentation, seed), torch.device(device)
    if images.in_memory:
        pixels: Iterable[Tensor] = augment.batches(images, ahead, positions, device)
    else:
        keys = ([(step.epoch, image) for image in step.images[positions].tolist()] for step in ahead)
        if num_workers == "auto":
            num_workers = _workers(preprocessing, len(positions), epochs * num_steps - first_step, parts)
        pixels = _stream(images, augment, keys, device, num_workers)
    return (
        augment.mix(batch, images.labels[step.images[positions]].to(device, non_blocking=True), step, num_classes)
        for batch, step in zip(pixels, steps, strict=True)
    )


class _Step(NamedTuple):
    """Which images make a batch: their indices `(B,)`, of all parts together."""

    epoch: int
    number: int
    images: Tensor


def _steps(
    num_images: int, batch_size: int, num_steps: int, epochs: range, first_step: int, seed: int
) -> Iterator[_Step]:
    """The batches of each epoch, shuffled anew; `first_step` counts in the first."""
    for epoch in epochs:
        order = torch.randperm(num_images, generator=_generator("epoch", seed, epoch))
        for step in range(first_step if epoch == epochs.start else 0, num_steps):
            yield _Step(epoch, step, order[step * batch_size : (step + 1) * batch_size])


def part_positions(batch_size: int, part: int, parts: int) -> Tensor:
    """Positions of a part in its batch, `(B / parts,)`: a stretch, and its mirror image from the end of the batch."""
    half = batch_size // parts // 2
    stretch = torch.arange(part * half, (part + 1) * half)
    return torch.cat([stretch, (batch_size - 1 - stretch).flip(0)])


def eval_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    part: int = 0,
    parts: int = 1,
    device: str | torch.device = "cpu",
    num_workers: int | Literal["auto"] = "auto",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in order: images `(b, 3, h, w)` normalised, and labels `(b,)` int64, on `device`.

    Args:
        batch_size: of what this call yields; the last batch may be smaller.
        part, parts: yield only this contiguous share of the images.
        num_workers: as for `train_batches`.
    """
    _check_parts(part, parts)
    check_setting(batch_size >= 1, "batch_size", batch_size, "at least 1")
    share = range(images.num_images * part // parts, images.num_images * (part + 1) // parts)
    batches = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    geometry, device = EvalTransform(preprocessing), torch.device(device)
    pixels: Iterable[Tensor]
    if images.pixels is not None:
        stored = images.pixels
        pixels = (geometry(stored[index[0] : index[-1] + 1].to(device)) for index in batches)
    else:
        if num_workers == "auto":
            num_workers = _workers(preprocessing, batch_size, len(batches), parts)
        pixels = _stream(images, geometry, ([(0, image) for image in index] for index in batches), device, num_workers)
    return (
        (
            normalise(batch.to(device, non_blocking=True), preprocessing),
            images.labels[index].to(device, non_blocking=True),
        )
        for batch, index in zip(pixels, batches, strict=True)
    )


def check_batch_size(images: ImageSet, batch_size: int, parts: int, num_classes: int) -> int:
    """The size of a training batch, less for a small set, after checking that it can be divided and the labels fit."""
    multiple = 2 * parts
    if batch_size < 1 or batch_size % multiple:
        raise SettingError(
            f"batch_size is {batch_size}; it must be a multiple of {multiple}, twice the number of parts "
            f"(processes times accumulation), such as {max(1, round(batch_size / multiple)) * multiple}."
        )
    if images.num_images < multiple:
        raise DataError(f"The training set has {images.num_images} images; at least {multiple} are needed for a step.")
    if int(images.labels.max()) >= num_classes:
        raise DataError(
            f"The training set has {int(images.labels.max()) + 1} classes or more but the model has {num_classes}; "
            "use a model with as many outputs as the data has classes."
        )
    return min(batch_size, images.num_images // multiple * multiple)


def _check_parts(part: int, parts: int) -> None:
    check_setting(0 <= part < parts, "part", part, f"from 0 to {parts - 1}")


class _Files(Dataset):
    """Decodes and changes one image of one epoch. A named class, so that worker processes can be started anywhere."""

    def __init__(self, files: tuple[str, ...], change: Callable[[Tensor, int, int], Tensor]) -> None:
        self.files = files
        self.change = change

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, index = key
        try:
            image = read_image(self.files[index])
        except BROKEN_IMAGE as error:
            raise DataError(f"{self.files[index]} cannot be decoded ({error}); repair or remove it.") from error
        return self.change(image, epoch, index)


def _stream(
    images: ImageSet,
    change: Callable[[Tensor, int, int], Tensor],
    batches: Iterable[list[tuple[int, int]]],
    device: torch.device,
    num_workers: int,
) -> Iterator[Tensor]:
    """Batches of uint8 pixels, decoded by workers; an image is named by its epoch and its index."""
    loader = DataLoader(
        _Files(images.files, change),
        batch_sampler=batches,  # read once, from its beginning
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_step_back,
        generator=torch.Generator(),  # the loader would otherwise draw its workers' seed from the global one
    )
    try:
        yield from loader
    except DataError as error:  # a worker's comes with its traceback before it
        error.__traceback__ = None  # torch's frames in it would keep the workers alive
        raise DataError(str(error).splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")) from None


def _step_back(worker: int) -> None:
    """Leave the cores to the process that trains, where it computes on them."""
    if hasattr(os, "nice"):
        os.nice(10)


def _workers(preprocessing: Preprocessing, batch_size: int, num_batches: int, parts: int) -> int:
    """As many as a part's share of the cores, if their batches have room and there is one for each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = min(max(1, cores // parts), num_batches)
    if SHARED_MEMORY.is_dir():
        waiting = BATCHES_WAITING * batch_size * 3 * math.prod(preprocessing.img_size)
        most = min(most, shutil.disk_usage(SHARED_MEMORY).free // parts // waiting)
    return most


# Random numbers

_PURPOSES = ("epoch", "step", "image", "mix")


def _seed(purpose: str, *numbers: int) -> int:
    """A well-mixed seed that differs between purposes, seeds, epochs and steps."""
    sequence = np.random.SeedSequence((_PURPOSES.index(purpose) + 1, len(numbers), *numbers))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(purpose: str, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(purpose, *numbers))


@contextmanager
def _numpy_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global generator, from which timm's Mixup draws, and put its state back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(state)


# Augmentation


class _Draws(NamedTuple):
    """Random numbers for B images; each row belongs to one image."""

    box: Tensor  # (B, 4) top, left, height, width of the part that is kept, in stored pixels; may reach outside
    flip: Tensor  # (B,) bool
    ops: Tensor  # (B, rand_augment_ops) rows of OPS
    sign: Tensor  # (B, rand_augment_ops) 1 or -1

    def at(self, positions: Tensor) -> "_Draws":
        return _Draws(*(values[positions] for values in self))


@dataclass(frozen=True)
class _Augment:
    """Everything random that happens to training images."""

    preprocessing: Preprocessing
    settings: AugmentationSettings
    seed: int

    def batches(
        self, images: ImageSet, steps: Iterator[_Step], positions: Tensor, device: torch.device
    ) -> Iterator[Tensor]:
        """The images of each step at `positions`, `(b, 3, h, w)` uint8; as many steps together as memory is set for."""
        assert images.pixels is not None
        values = 3 * max(math.prod(images.pixels.shape[-2:]), math.prod(self.preprocessing.img_size))
        together = max(1, VALUES_TOGETHER // (values * len(positions)))
        while some := list(islice(steps, together)):
            yield from self._batch(images.pixels, some, positions, device).split(len(positions))

    def _batch(self, pixels: Tensor, steps: list[_Step], positions: Tensor, device: torch.device) -> Tensor:
        """The images of several steps, one step after another, changed together."""
        height, width = pixels.shape[-2:]
        own = [
            self._draw(
                len(step.images),
                height,
                width,
                self.settings.crop,
                _generator("step", self.seed, step.epoch, step.number),
            ).at(positions)
            for step in steps
        ]
        draws = _Draws(*(torch.cat(values) for values in zip(*own, strict=True)))
        index = torch.cat([step.images[positions] for step in steps])
        batch = pixels[index.to(pixels.device, non_blocking=True)].to(device, non_blocking=True)
        if self.settings.crop == "pad":
            batch = shift(batch, draws.box)
        elif self.settings.crop == "resized":
            batch = zoom(batch, draws.box, self.preprocessing.interpolation)
        return self._resize(self._colour(batch, draws))

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """One image of a stream: `(3, H, W)` to `(3, h, w)`, uint8. Its draws depend on the epoch, not on the step."""
        generator = _generator("image", self.seed, epoch, index)
        crop = "none" if self.settings.crop == "none" else "resized"
        draws = self._draw(1, image.shape[-2], image.shape[-1], crop, generator)
        if crop == "none":
            image = EvalTransform(self.preprocessing)(image)
        else:
            interpolation = InterpolationMode(self.preprocessing.interpolation)
            top, left, height, width = draws.box[0].tolist()
            size = list(self.preprocessing.img_size)
            image = F.resized_crop(image, top, left, height, width, size, interpolation, antialias=True)
        return self._colour(image[None], draws)[0]

    def mix(self, images: Tensor, labels: Tensor, step: _Step, num_classes: int) -> tuple[Tensor, Tensor]:
        """Normalise uint8 images, and mix each with its mirror image in the batch. Targets are `(b, C)`."""
        images = normalise(images.to(labels.device, non_blocking=True), self.preprocessing)
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
        with _numpy_seed(_seed("mix", self.seed, step.epoch, step.number)):
            return mixup(images, labels)

    def _draw(self, count: int, height: int, width: int, crop: str, generator: torch.Generator) -> _Draws:
        settings = self.settings
        box = torch.tensor([[0, 0, height, width]]).repeat(count, 1)
        if crop == "pad":
            # Mirroring at the edge can give at most side - 1 further pixels.
            for column, side in enumerate((height, width)):
                most = min(round(settings.padding * side), side - 1)
                box[:, column] = torch.randint(-most, most + 1, (count,), generator=generator)
        elif crop == "resized":
            box = random_boxes(count, height, width, settings.min_scale, generator)
        flip = torch.rand(count, generator=generator) < settings.flip
        shape = (count, settings.rand_augment_ops)
        ops = torch.randint(len(OPS), shape, generator=generator)
        sign = torch.randint(2, shape, generator=generator) * 2 - 1
        return _Draws(box, flip, ops, sign)

    def _colour(self, images: Tensor, draws: _Draws) -> Tensor:
        """Mirror, then RandAugment."""
        images = torch.where(
            draws.flip.to(images.device, non_blocking=True)[:, None, None, None], images.flip(-1), images
        )
        fill = tuple(float(round(255 * value)) for value in self.preprocessing.mean)
        return rand_augment(images, draws.ops, draws.sign, self.settings.rand_augment_magnitude, fill)

    def _resize(self, images: Tensor) -> Tensor:
        size = self.preprocessing.img_size
        if tuple(images.shape[-2:]) == size:
            return images
        return F.resize(images, list(size), InterpolationMode(self.preprocessing.interpolation), antialias=True)
