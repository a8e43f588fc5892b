"""Batches for training and evaluation: which images, in which order, and for which process.

A batch is a pure function of the images, the settings, the seed, the epoch and the step. Resuming in the middle, the
number of workers or processes, and the state of the global random generators make no difference. That state is not
changed. Batches continue over the end of an epoch, so workers start once. Copies to the device do not wait for it
(`transfer`). What happens to the pixels is in `augmentation` and `preprocessing`.

Shapes: `B` batch, `b` the images of one part of it, `C` classes, `H` and `W` stored height and width, `h` and `w` the
model's.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, tee
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitrim.checks import MAX_BATCH, check_whole
from vitrim.data.augmentation import AugmentationSettings, Augmenter, Step
from vitrim.data.files.decoding import BROKEN_IMAGE
from vitrim.data.files.pixels import UnsupportedPixels
from vitrim.data.images import ImageSet
from vitrim.data.loading import read_image
from vitrim.data.preprocessing import EvalTransform, Preprocessing, check_setting, normalise
from vitrim.data.seeds import generator_for
from vitrim.data.transfer import send
from vitrim.data.workers import NumWorkers, choose_num_workers, ignore_interruption, worker_context
from vitrim.errors import DataError, SettingError, counted

MAX_VALUES_TOGETHER = 2**22  # pixel values augmented in one go; several small batches, where calls cost most
MAX_UNREADABLE = 16  # files of a class, one after another: then the folder itself cannot be read


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which part of the images a process handles. The parts together are exactly the whole.

    Attributes:
        index: of this part, from 0 to `count - 1`.
        count: number of parts: processes, times micro-batches in training.

    Raises:
        SettingError: there is no such part.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        check_setting(0 <= self.index < self.count, "part", self.index, f"from 0 to {self.count - 1}")

    def positions(self, batch_size: int) -> Tensor:
        """Positions of this part in a training batch, `(B / count,)` int64, B being the batch size.

        Image i is mixed with image `batch_size - 1 - i`, so a part is a range of positions and its mirror image.
        """
        half = batch_size // self.count // 2
        front = torch.arange(self.index * half, (self.index + 1) * half)
        return torch.cat([front, (batch_size - 1 - front).flip(0)])

    def range(self, num_images: int) -> range:
        """This part of images that are evaluated: a contiguous range of indices."""
        return range(num_images * self.index // self.count, num_images * (self.index + 1) // self.count)


ALL = Part()


@dataclass(frozen=True, kw_only=True)
class BatchSchedule:
    """Which training batches to make.

    Attributes:
        batch_size: images for one step, over all parts together; a multiple of twice the number of parts. A set with
            fewer images makes one batch of all of them, without the remainder. Only then does the number of parts
            change what a step sees.
        seed: of the order of the images and of all random changes.
        epoch: first epoch, from 0.
        num_epochs: how many epochs.
        first_step: first step, counted in the first epoch.
    """

    batch_size: int
    seed: int
    epoch: int = 0
    num_epochs: int = 1
    first_step: int = 0


def num_train_steps(images: ImageSet, batch_size: int) -> int:
    """Number of steps in one epoch. An incomplete last batch is dropped, but a small set still makes one batch."""
    return max(1, images.num_images // batch_size)


def train_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    augmentation: AugmentationSettings,
    schedule: BatchSchedule,
    *,
    num_classes: int,
    part: Part = ALL,
    device: str | torch.device = "cpu",
    num_workers: NumWorkers = "auto",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make the augmented and mixed training batches of a schedule, in order.

    Args:
        num_classes: number of outputs of the model.
        part: which part of each batch to make.
        num_workers: processes that decode files; 0 for none. `auto` is as the images say; if they say `auto` too, the
            cores are divided evenly over the parts. Pixels in memory need no workers.

    Yields:
        Normalised images `(b, channels, h, w)` float32 and soft targets `(b, C)`, on `device`; b is B divided by the
        number of parts.

    Raises:
        SettingError: the batch cannot be divided into the parts.
        DataError: too few images, more classes than outputs, other channels than the model's, or files that can no
            longer be decoded: one if the set is strict, else `MAX_UNREADABLE` of a class.
    """
    check_channels(images, preprocessing.channels)
    batch_size = check_batch_size(images, schedule.batch_size, part.count, num_classes)
    positions = part.positions(batch_size)
    num_steps = num_train_steps(images, batch_size)
    ahead, steps = tee(_steps(schedule, images.num_images, batch_size, num_steps))
    augmenter, device = Augmenter(preprocessing, augmentation, schedule.seed), torch.device(device)
    if images.pixels is not None:
        pixels: Iterable[Tensor] = _augment_pixels(images.pixels, augmenter, ahead, positions, device)
    else:
        keys = ([(step.epoch, image) for image in step.images[positions].tolist()] for step in ahead)
        found = images.num_workers if num_workers == "auto" else num_workers
        num_batches = schedule.num_epochs * num_steps - schedule.first_step
        found = choose_num_workers(found, preprocessing, len(positions), num_batches, part.count)
        streamed = _stream(images, augmenter, keys, device, found, replaces=True)
        pixels = (batch for batch, _ in streamed)
    return (
        augmenter.mix(batch, send(images.labels[step.images[positions]], device), step, num_classes)
        for batch, step in zip(pixels, steps, strict=True)
    )


def _steps(schedule: BatchSchedule, num_images: int, batch_size: int, num_steps: int) -> Iterator[Step]:
    """The steps of each epoch, shuffled anew."""
    for epoch in range(schedule.epoch, schedule.epoch + schedule.num_epochs):
        order = torch.randperm(num_images, generator=generator_for("epoch", schedule.seed, epoch))
        for step in range(schedule.first_step if epoch == schedule.epoch else 0, num_steps):
            yield Step(epoch, step, order[step * batch_size : (step + 1) * batch_size])


def _augment_pixels(
    pixels: Tensor, augmenter: Augmenter, steps: Iterator[Step], positions: Tensor, device: torch.device
) -> Iterator[Tensor]:
    """The images of each step at `positions`, `(b, channels, h, w)` uint8, made in groups of steps of limited size."""
    values = pixels.shape[1] * max(math.prod(pixels.shape[-2:]), math.prod(augmenter.preprocessing.img_size))
    group_size = max(1, MAX_VALUES_TOGETHER // (values * len(positions)))
    while group := list(islice(steps, group_size)):
        yield from augmenter.several_steps(pixels, group, positions, device).split(len(positions))


def eval_batches(
    images: ImageSet,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    part: Part = ALL,
    device: str | torch.device = "cpu",
    num_workers: NumWorkers = "auto",
    on_unreadable: Callable[[int], object] = lambda index: None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Make batches of one part of the images, in order and without random changes.

    Images whose file can no longer be decoded are left out, and their batch is smaller.

    Args:
        batch_size: images in each batch of this part; the last batch may be smaller.
        part: a contiguous range of the images.
        num_workers: as for `train_batches`.
        on_unreadable: called with the index of each image that is left out.

    Yields:
        Normalised images `(b, channels, h, w)` float32 and labels `(b,)` int64, on `device`.

    Raises:
        SettingError: `batch_size` is below 1.
        DataError: the images have other channels than the model's, or the set is strict and a file can no longer be
            decoded.
    """
    check_channels(images, preprocessing.channels)
    check_whole("batch_size", batch_size, 1, MAX_BATCH)
    own = part.range(images.num_images)
    batches = [list(own[start : start + batch_size]) for start in range(0, len(own), batch_size)]
    geometry, device = EvalTransform(preprocessing), torch.device(device)
    made: Iterable[tuple[Tensor, list[int]]]
    if images.pixels is not None:
        stored = images.pixels
        made = ((geometry(send(stored[index[0] : index[-1] + 1], device)), index) for index in batches)
    else:
        found = images.num_workers if num_workers == "auto" else num_workers
        found = choose_num_workers(found, preprocessing, batch_size, len(batches), part.count)
        keys = ([(0, image) for image in index] for index in batches)
        streamed = _stream(images, geometry, keys, device, found, replaces=False)
        made = _readable(zip(streamed, batches, strict=True), on_unreadable)
    return (
        (normalise(send(batch, device), preprocessing), send(images.labels[index], device)) for batch, index in made
    )


def _readable(
    streamed: Iterable[tuple[tuple[Tensor, list[int]], list[int]]], on_unreadable: Callable[[int], object]
) -> Iterator[tuple[Tensor, list[int]]]:
    """Drop unreadable images from batches, and batches without any other image. Yields images and their indices."""
    for (batch, unreadable), index in streamed:
        for image in unreadable:
            on_unreadable(image)
        if not unreadable:
            yield batch, index
        elif kept := [row for row, image in enumerate(index) if image not in unreadable]:
            yield batch[kept], [index[row] for row in kept]


def check_channels(images: ImageSet, channels: int) -> None:
    """Raise DataError unless the images have as many channels as the model takes."""
    if images.channels != channels:
        raise DataError(
            f"The images have {images.channels} channels, but the model takes {channels}. "
            f"Load them with channels={channels}: load_data(..., channels={channels})."
        )


def check_batch_size(images: ImageSet, batch_size: int, num_parts: int, num_classes: int) -> int:
    """Check that training batches can be made, and return their size, which is smaller for a small set.

    Raises:
        SettingError: `batch_size` is not a multiple of twice the number of parts.
        DataError: too few images for one step, or more classes than the model has outputs.
    """
    multiple = 2 * num_parts
    check_divisible(batch_size, num_parts)
    if images.num_images < multiple:
        raise DataError(
            f"The training set has {counted(images.num_images, 'image')}; at least {multiple} are needed for a step."
        )
    if int(images.labels.max()) >= num_classes:
        raise DataError(
            f"The training set has {int(images.labels.max()) + 1} classes or more but the model has {num_classes} "
            "outputs; use a model with as many outputs as the data has classes."
        )
    return min(batch_size, images.num_images // multiple * multiple)


def check_divisible(batch_size: int, num_parts: int) -> None:
    """Raise SettingError unless a training batch can be divided into `num_parts` parts of pairs of images."""
    multiple = 2 * num_parts
    if batch_size < multiple or batch_size % multiple:
        raise SettingError(
            f"batch_size is {batch_size}; expected a multiple of {multiple} (2 x processes x accumulate), such as "
            f"{max(1, round(batch_size / multiple)) * multiple}."
        )


# Streaming: images that do not fit in memory are decoded batch by batch


class _Streamed(NamedTuple):
    """One image of a batch, `(channels, h, w)` uint8, and whether its own file cannot be decoded, and why."""

    image: Tensor
    unreadable: bool
    reason: str


class _Files(Dataset):
    """Decodes and changes one image of one epoch. Not a local class, so worker processes can be started anywhere."""

    def __init__(self, images: ImageSet, change: "Augmenter | EvalTransform", replaces: bool) -> None:
        self.files, self.labels, self.pixel_format = images.files, images.labels, images.pixel_format
        self.change, self.replaces, self.strict = change, replaces, images.strict
        self.known = frozenset(images.unreadable.sizes)

    def __getitem__(self, key: tuple[int, int]) -> _Streamed:
        epoch, index = key
        image, reason = self._read(index)
        if image is None and self.strict:
            raise DataError(f"{self.files[index]} cannot be decoded ({reason}); repair or remove it.")
        if image is not None:
            return _Streamed(self.change(image, epoch, index), False, "")
        if not self.replaces:
            blank = torch.zeros(self.pixel_format.channels, *self.change.preprocessing.img_size, dtype=torch.uint8)
            return _Streamed(self.change(blank, epoch, index), True, reason)
        return _Streamed(self.change(self._replacement(epoch, index, reason), epoch, index), True, reason)

    def _read(self, index: int) -> tuple[Tensor | None, str]:
        """The image, or why there is none."""
        file = self.files[index]
        if file in self.known:
            return None, "as before"
        try:
            return read_image(file, self.pixel_format), ""
        except UnsupportedPixels as error:
            raise DataError(str(error)) from error
        except BROKEN_IMAGE as error:
            return None, " ".join(str(error).split()) or type(error).__name__

    def _replacement(self, epoch: int, index: int, reason: str) -> Tensor:
        """Another image of the same class, which depends on the epoch: the next one that can be decoded."""
        mates = (self.labels == self.labels[index]).nonzero().flatten().tolist()
        first = mates.index(index) + 1 + epoch % max(1, len(mates) - 1)
        others = [mates[(first + i) % len(mates)] for i in range(len(mates))]
        tries = [mate for mate in others if mate != index and self.files[mate] not in self.known][:MAX_UNREADABLE]
        for mate in tries:
            image, _ = self._read(mate)
            if image is not None:
                return image
        raise DataError(
            f"{self.files[index]} cannot be decoded ({reason}), and neither can {len(tries)} others of its class. "
            "Check that the folder can be read, and repair or remove the files."
        )


def _stream(
    images: ImageSet,
    change: "Augmenter | EvalTransform",
    batches: Iterable[list[tuple[int, int]]],
    device: torch.device,
    num_workers: int,
    *,
    replaces: bool,
) -> Iterator[tuple[Tensor, list[int]]]:
    """Decode batches of `(epoch, index)` keys in worker processes.

    Args:
        replaces: use another image of the class for an image that cannot be decoded.

    Yields:
        Images `(b, channels, h, w)` uint8 on the CPU, and the indices of those that cannot be decoded.
    """
    ahead, keys = tee(batches)
    loader = DataLoader(
        _Files(images, change, replaces),
        batch_sampler=ahead,  # read once, from its beginning
        num_workers=num_workers,
        multiprocessing_context=worker_context(num_workers),
        worker_init_fn=ignore_interruption,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # else the loader draws the seed of its workers from the global generator
    )
    consequence = "another image of its class is used instead" if replaces else "it is not used"
    try:
        for (batch, is_unreadable, reasons), key in zip(loader, keys, strict=True):
            found = {key[row][1]: reasons[row] for row in is_unreadable.nonzero().flatten().tolist()}
            for index, reason in found.items():
                images.unreadable.add(images.files[index], reason, consequence)
            yield batch, list(found)
    except DataError as error:  # from a worker, the message starts with the worker's traceback
        error.__traceback__ = None  # the frames of torch in it would keep the workers alive
        raise DataError(str(error).splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")) from None
