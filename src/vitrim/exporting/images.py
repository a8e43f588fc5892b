"""The images of a data set that an exported file is compared and quantised with."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitrim.data.batches import eval_batches
from vitrim.data.files.decoding import BROKEN_IMAGE
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.loading import read_image
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.data.processor import resize_with_pillow
from vitrim.errors import SettingError, counted
from vitrim.runs.progress import log

Batches = Sequence[tuple[Tensor, Tensor]]
COMPARED_IMAGES = 256  # validation images on which the logits of file and model are compared
SEED = 0  # of both samples
READ_AT_ONCE = 64
_InBatches = Callable[[ImageSet, int], Iterable[tuple[Tensor, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images as a file takes them, with labels.

    Attributes:
        batches: returns all validation images in batches of this size, the same on every call.
        compared: the same for a sample with equally many images of each class.
        calibration: returns so many training images, `(n, ...)`, with equally many of each class.
        classes: names of the outputs, if the data states them.
    """

    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    compared: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    calibration: Callable[[int], Tensor]
    classes: tuple[str, ...] = ()


def labelled_images(model: nn.Module, data: ImageData | ImageSet | Batches | None) -> LabelledImages | None:
    """The images of a data set, prepared for a model; None without data.

    Args:
        data: a data set, images to evaluate on, or prepared batches of images and labels.
    """

    def prepared(chosen: ImageSet, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        return eval_batches(chosen, preprocessing_of(model), batch_size=batch_size)

    return _labelled(model, data, prepared, prepared)


def labelled_pixels(
    model: nn.Module,
    data: ImageData | ImageSet | Batches | None,
    image_size: tuple[int, int] | None,
    calibration_size: tuple[int, int],
) -> LabelledImages | None:
    """The images of a data set as pixels `(1, H, W, channels)` uint8, one by one; None without data.

    Args:
        data: a data set, images to evaluate on, or batches of pixels and labels.
        image_size: height and width to which Pillow resizes all images. By default each image has its own size.
        calibration_size: the same for the images of calibration.
    """

    said: set[str] = set()

    def resized(size: tuple[int, int] | None) -> Callable[[ImageSet, int], Iterable[tuple[Tensor, Tensor]]]:
        return lambda chosen, batch_size: _pixels(chosen, size, said)

    return _labelled(model, data, resized(image_size), resized(image_size or calibration_size))


def _pixels(images: ImageSet, size: tuple[int, int] | None, said: set[str]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels, one by one. Files that cannot be decoded are left out, and a line of the log says how many.

    Args:
        said: files that an earlier line has counted. It is extended.
    """
    broken: list[str] = []
    for index, label in enumerate(images.labels.tolist()):
        try:
            stored = None if images.pixels is None else images.pixels[index].cpu()
            pixels = read_image(images.files[index], images.pixel_format) if stored is None else stored
        except BROKEN_IMAGE:
            broken.append(images.files[index])
            continue
        if size and tuple(pixels.shape[-2:]) != size:
            pixels = resize_with_pillow(pixels, size, "bilinear")
        yield pixels.permute(1, 2, 0)[None].contiguous(), torch.tensor([label])
    if new := [file for file in broken if file not in said]:
        said.update(new)
        names = ", ".join(os.path.join(*Path(file).parts[-2:]) for file in new[:3]) + (", ..." if len(new) > 3 else "")
        log(f"left out {counted(len(new), 'image')} that cannot be decoded: {names}")


def _labelled(
    model: nn.Module, data: ImageData | ImageSet | Batches | None, in_batches: _InBatches, for_calibration: _InBatches
) -> LabelledImages | None:
    train: ImageSet | None = None
    classes: tuple[str, ...] = ()
    if isinstance(data, ImageData):
        matched = match_labels(data, model)
        data, train, classes = matched.validation, matched.train, matched.classes
    if data is None:
        return None
    if not isinstance(data, ImageSet):
        prepared = data
        return LabelledImages(batches=lambda _: prepared, compared=lambda _: prepared, calibration=_no_images)
    images = data

    def calibration(num_images: int) -> Tensor:
        if train is None or not len(train):
            return _no_images(num_images)
        return torch.cat([part for part, _ in for_calibration(train.sample(num_images, SEED), READ_AT_ONCE)])

    return LabelledImages(
        batches=lambda batch_size: in_batches(images, batch_size),
        compared=lambda batch_size: in_batches(images.sample(COMPARED_IMAGES, SEED), batch_size),
        calibration=calibration,
        classes=classes,
    )


def _no_images(num_images: int) -> Tensor:
    raise SettingError(
        f"Static int8 is calibrated on {num_images} training images, and the data has none. Give a data set with "
        "training images as --data (in Python: what `load_data` returns as data), or use dynamic int8."
    )
