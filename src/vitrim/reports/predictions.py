"""What models predict for the same images: accuracy of each class, and which classes are confused.

Shapes: `n` images that all evaluations have.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrim.data.images import ImageData
from vitrim.errors import visible
from vitrim.evaluation import Evaluation

MAX_CONFUSIONS = 40


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The predictions of one model.

    Attributes:
        correct: whether each prediction is right, `(n,)` bool.
        predicted: class of each image, `(n,)` int64; None if it was not noted.
        confidence: softmax value of this class, `(n,)` float64; None if it was not noted.
    """

    correct: np.ndarray
    predicted: np.ndarray | None
    confidence: np.ndarray | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Images that one or two models have classified.

    Attributes:
        classes: names of the classes, in which nothing is hidden. They may be HTML.
        indices: of the images in the validation set, `(n,)` int64.
        labels: `(n,)` int64.
        dense: predictions of the dense model.
        small: predictions of the smaller model; None if there is none.
    """

    classes: tuple[str, ...]
    indices: np.ndarray
    labels: np.ndarray
    dense: Predictions
    small: Predictions | None = None

    def name(self, label: int) -> str:
        """The name of a class. A model may have more outputs than there are names."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"


def judged(data: ImageData, dense: Evaluation, small: Evaluation | None = None) -> Judged | None:
    """Put together what is known about the validation images. Images that a model could not read are left out.

    Args:
        data: the images, with labels as the model counts them.
        dense: evaluation of the dense model on them.
        small: evaluation of the smaller model on them.

    Returns:
        None if an evaluation is of another number of images.
    """
    labels, found = data.validation.labels.numpy(), [one for one in (dense, small) if one is not None]
    if any(len(one.correct) + len(one.not_counted) != len(labels) for one in found):
        return None
    dropped = sorted({index for one in found for index in one.not_counted})
    indices = np.setdiff1d(np.arange(len(labels)), dropped)
    models = [_at(one, indices, len(labels)) for one in found]
    names = tuple(map(visible, data.classes))
    return Judged(classes=names, indices=indices, labels=labels[indices], dense=models[0], small=(*models[1:], None)[0])


def _at(found: Evaluation, indices: np.ndarray, num_images: int) -> Predictions:
    """The predictions for the images at these indices of the validation set."""
    counted = np.setdiff1d(np.arange(num_images), found.not_counted)
    place = np.searchsorted(counted, indices)
    predicted, confidence = (
        None if all_of is None else all_of[place] for all_of in (found.predicted, found.confidence)
    )
    return Predictions(correct=found.correct[place], predicted=predicted, confidence=confidence)


def class_rows(images: Judged) -> list[dict[str, Any]]:
    """The entry `classes` of `details.json`: accuracy of each class that has images, in percent."""
    size = max(len(images.classes), int(images.labels.max(initial=-1)) + 1)
    totals = np.bincount(images.labels, minlength=size)
    models = {"dense_top1": images.dense, **({"top1": images.small} if images.small else {})}
    right = {key: np.bincount(images.labels[model.correct], minlength=size) for key, model in models.items()}
    return [
        {
            "name": images.name(label),
            "num_images": int(totals[label]),
            **{key: round(100 * int(counts[label]) / int(totals[label]), 4) for key, counts in right.items()},
        }
        for label in np.flatnonzero(totals).tolist()
    ]


def confusion_rows(images: Judged) -> list[dict[str, Any]]:
    """The entry `confusions` of `details.json`: for pairs of a label and a wrong class, how often each model errs so.

    Returns:
        Pairs whose counts differ, those with the largest difference first, at most 40. Empty if there is no smaller
        model, or if the predictions were not noted.
    """
    if images.small is None:
        return []
    before, after = (_confusions(images.labels, model) for model in (images.dense, images.small))
    if before is None or after is None:
        return []
    pairs = [(after.get(pair, 0) - before.get(pair, 0), pair) for pair in before.keys() | after.keys()]
    chosen = sorted((-abs(change), pair) for change, pair in pairs if change)[:MAX_CONFUSIONS]
    return [
        {
            "label": images.name(label),
            "predicted": images.name(predicted),
            "dense": before.get((label, predicted), 0),
            "small": after.get((label, predicted), 0),
        }
        for _, (label, predicted) in chosen
    ]


def _confusions(labels: np.ndarray, model: Predictions) -> dict[tuple[int, int], int] | None:
    """How often each wrong pair of label and prediction occurs; None if the predictions were not noted."""
    if model.predicted is None:
        return None
    wrong = ~model.correct
    return Counter(zip(labels[wrong].tolist(), model.predicted[wrong].tolist(), strict=True))
