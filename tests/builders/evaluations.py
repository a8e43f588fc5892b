"""Evaluations with predictions that a test states, and the data that they are of."""

from typing import Any

import numpy as np
import torch

from builders.images import memory_set
from vitrim.data.images import ImageData, ImageSet
from vitrim.evaluation import Evaluation


def data_of(labels: list[int] | np.ndarray, classes: tuple[str, ...] = (), **changes: Any) -> ImageData:
    """A data set with these validation labels, of 8 x 8 pixels in memory."""
    pixels = memory_set(len(labels)).pixels
    images = ImageSet(labels=torch.as_tensor(np.array(labels, dtype=np.int64)), pixels=pixels)
    names = classes or tuple(f"class {index}" for index in range(int(max(labels)) + 1))
    return ImageData(name="made up", classes=names, train=memory_set(), **{"validation": images, **changes})


def predicting(labels: Any, predicted: Any, confidence: Any = None, **changes: Any) -> Evaluation:
    """The evaluation of a model that predicts these classes; by default, with the confidence 0.9."""
    labels, predicted = np.array(labels), np.array(predicted)
    correct = labels == predicted
    top1 = 100 * float(correct.mean())
    sure = np.full(len(labels), 0.9) if confidence is None else np.array(confidence, dtype=float)
    values = {"low": top1, "high": top1, "top5": None, "loss": 1.0, "num_images": len(labels), "correct": correct}
    return Evaluation(**{"top1": top1, "predicted": predicted, "confidence": sure, **values, **changes})
