"""`batches`: images of a data set as a model takes them, for a loop of one's own. They say how they are prepared."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vitrim.checks import MAX_BATCH, check_whole
from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import BatchSchedule, check_batch_size, eval_batches, num_train_steps, train_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.loading import load_data
from vitrim.data.matching import device_of, match_labels, preprocessing_of
from vitrim.data.preprocessing import Preprocessing, check_setting
from vitrim.errors import DataError, counted
from vitrim.models import describe
from vitrim.models.wrappers import unwrapped

Split = Literal["train", "val", "test"]
KINDS = {"train": "training image", "val": "validation image", "test": "test image", "all": "image"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelBatches:
    """Batches of images and labels for a model; `batches` makes it. Each iteration yields the same batches.

    Attributes:
        model: the images go to its device.
        images: the images of all batches. A label is the number of an output of the model.
        name: of the data set.
        classes: names of the outputs, in their order.
        split: `train`, `val`, `test`, or `all` for all images of a data set without splits.
        preprocessing: how images are prepared: size, resizing, crop, mean and standard deviation.
        batch_size: images of each batch.
        augmentation: the random changes; None for none.
        seed: of the order and of the random changes.
        epoch: which pass over the images it is, from 0. It changes nothing without augmentation.
    """

    model: nn.Module
    images: ImageSet
    name: str
    classes: tuple[str, ...]
    split: str
    preprocessing: Preprocessing
    batch_size: int
    augmentation: AugmentationSettings | None
    seed: int
    epoch: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = device_of(self.model)
        if self.augmentation is None:
            return eval_batches(self.images, self.preprocessing, batch_size=self.batch_size, device=device)
        schedule = BatchSchedule(batch_size=self.batch_size, seed=self.seed, epoch=self.epoch)
        outputs = describe(self.model).num_classes
        return train_batches(
            self.images, self.preprocessing, self.augmentation, schedule, num_classes=outputs, device=device
        )

    def __len__(self) -> int:
        if self.augmentation is None:
            return -(-len(self.images) // self.batch_size)
        return num_train_steps(self.images, self.batch_size)

    def at_epoch(self, epoch: int) -> "ModelBatches":
        """Return the batches of another pass over the images: in another order, with other random changes.

        Raises:
            SettingError: `epoch` is below 0.
        """
        check_setting(epoch >= 0, "epoch", epoch, "at least 0")
        return replace(self, epoch=epoch)

    def __repr__(self) -> str:
        num_classes = len(torch.unique(self.images.labels))
        sizes = f"{counted(len(self.images), KINDS[self.split])} of {counted(num_classes, 'class')}"
        changes = "without augmentation" if self.augmentation is None else f"epoch {self.epoch}, {self.augmentation}"
        return (
            f"{self.name}: {sizes}, {len(self)} x {self.batch_size}, {changes}\n"
            f"  prepared for the model: {self.preprocessing.text()}"
        )


def batches(
    model: nn.Module,
    data: ImageData | str | Path,
    *,
    split: Split | None = None,
    num_images: int | None = None,
    batch_size: int = 64,
    augmented: bool | AugmentationSettings = False,
    seed: int = 0,
) -> ModelBatches:
    """Make batches of images and labels as a model takes them, for `score`, `recover` or a training loop of one's own.

    Without augmentation, images are `(B, channels, h, w)` float32 and labels `(B,)` int64: the numbers of the model's
    outputs. The images of `compress` for its scores are `batches(model, data, num_images=N)` with the N and the seed of
    its recipe. With augmentation, the images are in a new order in each epoch, and labels are soft, `(B, C)` float32,
    because images are mixed; `at_epoch` gives the batches of another epoch.

    Args:
        model: of a supported library. The batches are on its device.
        data: what `load_data` returns, or the name or path that it takes.
        split: `train`, `val` or `test`. By default `train`, or what `load_data(..., split=...)` read.
        num_images: use a random sample, with equally many images of each class. By default all, in their own order.
        batch_size: images of each batch. The last one may be smaller; with augmentation, it is left out.
        augmented: change training images at random: True for the default settings of training.
        seed: of the sample, and of the order and the changes of augmented images.

    Raises:
        SettingError: a setting is out of range, or images that are no training images are to be augmented.
        DataError: the images cannot be found or read, the data has no images of this split, or they do not fit the
            model: their classes or channels.
        UnsupportedModel: the model cannot be described.
    """
    model = unwrapped(model)
    check_setting(split in (None, *get_args(Split)), "split", split, "'train', 'val' or 'test'")
    check_whole("batch_size", batch_size, 1, MAX_BATCH)
    check_setting(num_images is None or num_images >= 1, "num_images", num_images, "at least 1, or None for all")
    preprocessing = preprocessing_of(model)
    if not isinstance(data, ImageData):
        only: Split | None = "test" if split == "test" else None
        data = load_data(data, channels=preprocessing.channels, split=only)
    data = match_labels(data, model)
    chosen, images = _images(data, split)
    is_plain = not augmented or chosen == "train"
    check_setting(is_plain, "augmented", augmented, "False for images that are no training images")
    images = images if num_images is None else images.sample(num_images, seed)
    augmentation = AugmentationSettings() if augmented is True else augmented or None
    if augmentation is not None:
        batch_size = check_batch_size(images, batch_size, 1, describe(model).num_classes)
    return ModelBatches(
        model=model,
        images=images,
        name=data.name,
        classes=data.classes,
        split=chosen,
        preprocessing=preprocessing,
        batch_size=batch_size,
        augmentation=augmentation,
        seed=seed,
    )


def _images(data: ImageData, split: Split | None) -> tuple[str, ImageSet]:
    """The split and its images."""
    chosen = split or data.only or "train"
    has_it = chosen == data.only if data.only else chosen in ("train", "val")
    images = data.train if chosen == "train" and not data.only else data.validation
    if not has_it or not len(images):
        raise DataError(
            f"{data.name} was loaded without {KINDS[chosen]}s. Load them: vitrim.load_data(..., split={chosen!r})."
        )
    return chosen, images
