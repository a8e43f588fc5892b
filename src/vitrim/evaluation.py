"""Measure how accurate a model is on labelled images, and compare two models on the same images.

Every number has a 95 % interval over images. Measuring time or size of a model is in `costs`.

Shapes: `B` batch, `C` classes, `n` all images.
"""

import math
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from scipy import stats
from torch import Tensor, nn

from vitrim.asking import within_memory
from vitrim.data.batches import Part, eval_batches
from vitrim.data.files.unreadable import not_counted_note
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import device_of, match_labels, preprocessing_of
from vitrim.data.preprocessing import Preprocessing
from vitrim.data.workers import NumWorkers
from vitrim.errors import DataError, UnsupportedModel
from vitrim.hooks import eval_mode
from vitrim.judging import judge_all, model_logits
from vitrim.models import origin_of
from vitrim.models.wrappers import unwrapped
from vitrim.paired_bound import CONFIDENCE, paired_interval
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Accuracy and loss of one model on `num_images` images.

    Attributes:
        top1: top-1 accuracy in percent.
        low: lower end of the 95 % interval of `top1` over images, in percent: the score interval of Wilson, 1927,
            https://doi.org/10.1080/01621459.1927.10502953.
        high: upper end of this interval, in percent.
        top5: top-5 accuracy in percent; None for models with fewer than six outputs.
        loss: mean cross entropy.
        num_images: number of images that were evaluated.
        correct: whether the top-1 prediction of each image is right, in order, `(num_images,)` bool.
        not_counted: indices of images whose file could not be decoded. They are in no number.
        predicted: the top-1 class of each image, in order, `(num_images,)` int64. Classes count as those of the data
            set; -1 stands for an output of the model that is no class of it. Of prepared batches, classes are outputs.
            None for evaluations of earlier versions.
        confidence: softmax value of this class, rounded to four decimals, `(num_images,)` float64; 0 if the outputs are
            no numbers. None for evaluations of earlier versions.
    """

    top1: float
    low: float
    high: float
    top5: float | None
    loss: float
    num_images: int
    correct: np.ndarray = field(repr=False)
    not_counted: tuple[int, ...] = ()
    predicted: np.ndarray | None = field(default=None, repr=False)
    confidence: np.ndarray | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `correct` becomes a string of 0 and 1."""
        values = {**asdict(self), "correct": "".join("01"[bool(right)] for right in self.correct)}
        for name in ("predicted", "confidence"):
            values[name] = None if values[name] is None else values[name].tolist()
        optional = {"not_counted": (), "predicted": None, "confidence": None}
        return {name: value for name, value in values.items() if name not in optional or value != optional[name]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Evaluation":
        """Return the evaluation that `to_dict` was called on; raises KeyError, TypeError or ValueError for others."""
        numbers = {name: float(values[name]) for name in ("top1", "low", "high", "loss")}
        predicted, confidence = values.get("predicted"), values.get("confidence")
        if any(found is not None and len(found) != len(values["correct"]) for found in (predicted, confidence)):
            raise ValueError("there is not one prediction for each image")
        return cls(
            **numbers,
            top5=None if values["top5"] is None else float(values["top5"]),
            num_images=int(values["num_images"]),
            correct=np.array([mark == "1" for mark in values["correct"]]),
            not_counted=tuple(map(int, values.get("not_counted", ()))),
            predicted=None if predicted is None else np.array(predicted, dtype=np.int64),
            confidence=None if confidence is None else np.array(confidence, dtype=np.float64),
        )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Difference of the top-1 accuracies of two models on the same images.

    Attributes:
        points: second minus first, in percentage points.
        low: lower end of the 95 % interval of `points` over images, see `vitrim.paired_bound`.
        high: upper end of this interval.
        p_value: two-sided exact test of McNemar, 1947, https://doi.org/10.1007/BF02295996. Of the images on which only
            one model is right, `m` in all, the second model is right on `k`. The p-value is that of `k` under a
            binomial distribution with `m` trials of probability 1/2.
        gained: number of images that only the second model classifies rightly.
        lost: number of images that only the first model classifies rightly.
        num_images: number of images that both models classified.
    """

    points: float
    low: float
    high: float
    p_value: float
    gained: int = 0
    lost: int = 0
    num_images: int = 0


@within_memory("evaluate the model", "Lower batch_size of the evaluation (--eval-batch), or use a smaller model.")
@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageData | ImageSet | Iterable[tuple[Tensor, Tensor]],
    *,
    batch_size: int = 256,
    num_workers: NumWorkers = "auto",
    description: str = "evaluating",
) -> Evaluation:
    """Measure top-1 and top-5 accuracy and the loss of a model, on the model's device.

    The model is evaluated in eval mode, and is in its own mode afterwards.

    Args:
        data: a data set (its validation images are used), an image set, or prepared batches of images
            `(B, channels, H, W)` and labels `(B,)`. If several processes run, each evaluates a part of a data set or
            image set. Prepared batches are evaluated completely in each process.
        batch_size: images in each batch of a process; not used for prepared batches.
        num_workers: processes that decode files; `auto` is as the images say, which by default is one for each core.
        description: shown before the progress bar.

    Raises:
        DataError: there are no images, the model has no classifier or no output for a label, or the order of its
            classes is unclear.
    """
    model = unwrapped(model)
    predict = partial(model_logits, model)
    if not isinstance(data, ImageData | ImageSet):
        with eval_mode(model):
            return _summarise(judge_all(predict, (((images,), labels) for images, labels in data), description))
    check_classifier(model)
    matched = match_labels(replace(data, outputs=()), model) if isinstance(data, ImageData) else data
    with eval_mode(model):
        found = evaluate_outputs(
            predict,
            matched.validation if isinstance(matched, ImageData) else matched,
            [preprocessing_of(model)],
            device=device_of(model),
            batch_size=batch_size,
            num_workers=num_workers,
            description=description,
        )
    return with_classes(found, matched.outputs) if isinstance(matched, ImageData) else found


def evaluate_outputs(
    predict: Callable[..., Tensor],
    images: ImageSet,
    preprocessings: Sequence[Preprocessing],
    *,
    device: torch.device,
    batch_size: int = 256,
    num_workers: NumWorkers = "auto",
    description: str = "evaluating",
) -> Evaluation:
    """Measure the accuracy of any function of images. If several processes run, each evaluates a part of them.

    Args:
        predict: returns logits `(b, C)` float32. Its arguments are batches `(b, channels, h, w)` of the same images,
            one for each of `preprocessings`.
        images: with labels that are columns of the logits.
        preprocessings: how the images are prepared.
        device: of the images.
        batch_size: images in each batch of a process.
        num_workers: as for `evaluate`.
        description: as for `evaluate`.

    Returns:
        The evaluation. Its predicted classes are columns of the logits.

    Raises:
        DataError: there are no images, most of them cannot be decoded, or a label has no column.
    """
    process, unreadable = this_process(), list[int]()
    part = Part(index=process.process_index, count=process.num_processes)
    views = [
        eval_batches(
            images,
            preprocessing,
            batch_size=batch_size,
            part=part,
            device=device,
            num_workers=num_workers,
            on_unreadable=(lambda index: None) if number else unreadable.append,
        )
        for number, preprocessing in enumerate(preprocessings)
    ]
    batches = ((tuple(view for view, _ in batch), batch[0][1]) for batch in zip(*views, strict=True))
    num_batches = math.ceil(len(images) / (batch_size * part.count))
    max_label = int(images.labels.max()) if len(images) else None
    results = judge_all(predict, batches, description, num_batches, max_label)
    if process.num_processes > 1:
        results, unreadable = gather_object(results), gather_object(unreadable)
    if unreadable:
        _report_unreadable(images, unreadable, description)
    return replace(_summarise(results), not_counted=tuple(sorted(unreadable)))


def with_classes(found: Evaluation, output_of_class: Sequence[int]) -> Evaluation:
    """The evaluation with classes of a data set as predictions, in place of outputs of a model.

    Args:
        found: its predictions are outputs.
        output_of_class: the output of each class of the data set; empty if they have the same numbers.
    """
    return replace(found, predicted=_classes_of(found.predicted, output_of_class))


def _classes_of(outputs: np.ndarray | None, output_of_class: Sequence[int]) -> np.ndarray | None:
    """The classes of a data set that outputs of a model stand for; -1 for an output that is no class of it.

    Args:
        outputs: `(n,)` int64.
        output_of_class: the output of each class of the data set; empty if they have the same numbers.
    """
    if outputs is None or not output_of_class:
        return outputs
    class_of = np.full(max(*output_of_class, *outputs.tolist()) + 1, -1, dtype=np.int64)
    class_of[list(output_of_class)] = np.arange(len(output_of_class))
    return class_of[outputs]


def _report_unreadable(images: ImageSet, unreadable: list[int], description: str) -> None:
    """Log which images are not counted; raises DataError if they are more than half."""
    note = not_counted_note([images.files[index] for index in unreadable], len(images))
    if 2 * len(unreadable) > len(images):
        raise DataError(f"{note}. These are too many to leave out; check that the folder can be read.")
    log(f"{description}: {note}")


def compare(first: Evaluation, second: Evaluation) -> Difference:
    """Compare two models that were evaluated on the same images. The difference is positive if `second` is better.

    Images that could not be decoded in one of the evaluations are left out of the comparison.

    Raises:
        DataError: the two evaluations have different numbers of images.
    """
    if _num_all(first) != _num_all(second):
        raise DataError(
            f"The models were evaluated on {_num_all(first)} and {_num_all(second)} images. "
            "Evaluate both on the same images in the same order."
        )
    dropped = {*first.not_counted, *second.not_counted}
    before, after = (_counted_without(evaluation, dropped).astype(float) for evaluation in (first, second))
    pairs = after - before  # (n,) 1 only second right, -1 only first
    gained, lost = int((pairs > 0).sum()), int((pairs < 0).sum())
    low, high = paired_interval(gained, lost, len(pairs))
    return Difference(
        points=100 * (gained - lost) / len(pairs),
        low=low,
        high=high,
        p_value=float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
        gained=gained,
        lost=lost,
        num_images=len(pairs),
    )


def worse_than_before(before: Evaluation, after: Evaluation, what: str) -> str:
    """Say that a training has ended below the model that it started from; empty if it has not.

    Args:
        before: evaluation of the model that was trained.
        after: evaluation of the trained model on the same images.
        what: name of the training in the sentence, such as `the distillation`.
    """
    if after.top1 >= before.top1:
        return ""
    difference = compare(before, after)
    by_chance = difference.p_value >= 1 - CONFIDENCE
    chance = "chance may explain this" if by_chance else "chance does not explain this"
    return (
        f"after {what}, top-1 is {after.top1:.2f} %, below the {before.top1:.2f} % of the model that it started from "
        f"({difference.points:+.2f} points [{difference.low:+.2f}, {difference.high:+.2f}]; {chance}). "
        "Try a lower learning rate, more epochs or more images."
    )


def _num_all(evaluation: Evaluation) -> int:
    """Number of images, with those that could not be decoded."""
    return len(evaluation.correct) + len(evaluation.not_counted)


def _counted_without(evaluation: Evaluation, dropped: Set[int]) -> np.ndarray:
    """`correct` without the images that one of two evaluations does not count."""
    counted = np.setdiff1d(np.arange(_num_all(evaluation)), evaluation.not_counted)
    return evaluation.correct[~np.isin(counted, sorted(dropped))]


def check_classifier(model: nn.Module) -> None:
    """Refuse a model that returns features. Their largest value would be taken for the class.

    Raises:
        DataError: the model has no classifier.
    """
    with suppress(UnsupportedModel):  # a model that does not tell how it was made
        if origin_of(model).model_args["num_classes"] == 0:
            raise DataError(
                f"This {type(model).__name__} has no classifier: it returns features. Give it a head with one output "
                "for each class before it is evaluated."
            )


def _summarise(judged: Sequence[tuple[Tensor, ...]]) -> Evaluation:
    """Average what `judge_all` returned for all batches."""
    if not judged:
        raise DataError("There is no image to evaluate on; expected at least one. Is the data set or iterable empty?")
    top1, top5, loss, predicted, confidence = (torch.cat(column) for column in zip(*judged, strict=True))  # (n,) each
    count, right = len(top1), int(top1.sum())
    interval = stats.binomtest(right, count).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Evaluation(
        top1=100 * right / count,
        low=100 * float(interval.low),
        high=100 * float(interval.high),
        top5=None if top5.isnan().any() else 100 * float(top5.mean()),
        loss=float(loss.mean()),
        num_images=count,
        correct=top1.numpy(),
        predicted=predicted.numpy(),
        confidence=np.nan_to_num(confidence.numpy(), nan=0.0).round(4),
    )
