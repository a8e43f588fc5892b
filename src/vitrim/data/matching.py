"""Fit data to a model: labels, preprocessing, calibration images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import DataError, UnsupportedModel
from vitrim.models import adapter_for, origin_of


def preprocessing_of(model: nn.Module) -> Preprocessing:
    """How images must be prepared for a model: from its own configuration."""
    try:
        recorded = origin_of(model).preprocessing
    except UnsupportedModel:
        recorded = {}
    return Preprocessing.from_dict(recorded or adapter_for(model).preprocessing(model))


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def match_labels(data: ImageData, model: nn.Module) -> ImageData:
    """The data set with its labels as the model counts them: by class name where the model's are known.

    Raises:
        DataError: a class that the model has no output for, or another number of them where names are unknown.
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
            f"{', '.join(unknown[:3])}; the model's {len(known)} begin with {', '.join(known[:3])}. "
            "`vitrim train` gives a model outputs for new classes."
        )
    if len(data.classes) != num_outputs:  # also with more outputs: nothing says which of them are the data's classes
        raise DataError(
            f"The data set {data.name} has {len(data.classes)} classes, but the model has {num_outputs} outputs of "
            f"unknown names. Pass `--num-classes {len(data.classes)}` for a new model, or fine-tune this one with "
            "`vitrim train`."
        )
    return data


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Training images as batches without augmentation, on the model's device; can be gone through again and again."""

    images: ImageSet
    model: nn.Module
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = next(self.model.parameters()).device
        return eval_batches(self.images, preprocessing_of(self.model), batch_size=self.batch_size, device=device)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)
