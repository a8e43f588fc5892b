"""Fit data to a model: its labels, its preprocessing, its calibration images.

The only file of this folder that looks at a model.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import DataError, UnsupportedModel
from vitrim.models import adapter_for, origin_of
from vitrim.models.wrappers import unwrapped


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """Return how images are prepared for a model: as recorded with its weights, else from its configuration.

    Raises:
        UnsupportedModel: no adapter knows the model.
        SettingError: the record is damaged.
    """
    try:
        recorded = origin_of(model).preprocessing
    except UnsupportedModel:
        recorded = {}
    return Preprocessing.from_dict(recorded or adapter_for(model).preprocessing(unwrapped(model)))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter."""
    return next(model.parameters()).device


def match_labels(data: ImageData, model: nn.Module) -> ImageData:
    """Return the data set with the labels that the model was trained on.

    If the model's class names are known, labels are matched by name. Else the number of classes must be the same, and
    labels are not changed.

    Raises:
        DataError: the model has no output for a class, or its class names are unknown and the numbers differ.
    """
    origin = origin_of(model)
    known, num_outputs = origin.classes, int(origin.model_args["num_classes"])
    if known and set(data.classes) <= set(known):
        if data.classes == known:
            return data
        index = torch.tensor([known.index(name) for name in data.classes])
        renamed = [replace(part, labels=index[part.labels]) for part in (data.train, data.validation)]
        return replace(data, classes=known, train=renamed[0], validation=renamed[1])
    if known:
        unknown = [name for name in data.classes if name not in known]
        raise DataError(
            f"The data set {data.name} has {len(unknown)} classes that the model was not trained for, such as "
            f"{', '.join(unknown[:3])}. The model has {len(known)} classes, such as {', '.join(known[:3])}. "
            "Train the model on this data set with `vitrim train`, or use another data set."
        )
    if (
        len(data.classes) != num_outputs
    ):  # also if there are more outputs: which of them belong to these classes is unknown
        raise DataError(
            f"The data set {data.name} has {len(data.classes)} classes, but the model has {num_outputs} outputs and "
            f"no class names. Pass `--num-classes {len(data.classes)}` for a new model, or fine-tune this one with "
            "`vitrim train`."
        )
    return data


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Batches of images without augmentation, on the model's device. Can be iterated any number of times.

    Attributes:
        images: the calibration images.
        model: its configuration says how they are prepared.
        batch_size: images in each batch; the last batch may be smaller.
    """

    images: ImageSet
    model: nn.Module
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        preprocessing, device = preprocessing_of(self.model), device_of(self.model)
        return eval_batches(self.images, preprocessing, batch_size=self.batch_size, device=device)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)
