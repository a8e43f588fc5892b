"""The images of a data set that an exported file is compared and quantised with."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.errors import SettingError

Batches = Sequence[tuple[Tensor, Tensor]]
COMPARED_IMAGES = 256  # validation images on which the logits of file and model are compared
SEED = 0  # of both samples
READ_AT_ONCE = 64


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

    def in_batches(chosen: ImageSet, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
        return eval_batches(chosen, preprocessing_of(model), batch_size=batch_size)

    def calibration(num_images: int) -> Tensor:
        if train is None or not len(train):
            return _no_images(num_images)
        return torch.cat([part for part, _ in in_batches(train.sample(num_images, SEED), READ_AT_ONCE)])

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
