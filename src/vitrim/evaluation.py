"""How good a model is on labelled images, with intervals: alone (Wilson), and against another model (paired)."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.data.batches import Part, eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import device_of, preprocessing_of
from vitrim.errors import DataError
from vitrim.hooks import eval_mode, logits_of
from vitrim.runs.processes import this_process
from vitrim.runs.progress import track

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Accuracy in percent and the mean cross entropy over `num_images` images.

    Attributes:
        low, high: 95 % interval of `top1` over images (Wilson).
        top5: percent; None for models with fewer than six outputs.
        correct: for each image, in order, whether top-1 is right, `(num_images,)` of bool.
    """

    top1: float
    low: float
    high: float
    top5: float | None
    loss: float
    num_images: int
    correct: np.ndarray = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "correct": "".join("01"[bool(right)] for right in self.correct)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Evaluation":
        return cls(**{**values, "correct": np.array([mark == "1" for mark in values["correct"]])})


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The paired difference of two models' top-1 in points, second minus first, with its 95 % interval over images.

    `p_value`: exact McNemar test, the probability of so uneven a split of the images on which the two disagree.
    """

    points: float
    low: float
    high: float
    p_value: float


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageData | ImageSet | Iterable[tuple[Tensor, Tensor]],
    *,
    batch_size: int = 256,
    num_workers: int | Literal["auto"] = "auto",
    description: str = "evaluating",
) -> Evaluation:
    """Measure top-1, top-5 and the loss on the validation images of `data`, on the device where the model is.

    Args:
        data: a data set (its validation images are used), an image set, or batches of (images, labels) that are
            prepared already. Several processes share the images of the first two.

    Raises:
        DataError: there are no images, or labels that the model has no output for.
    """
    images = data.validation if isinstance(data, ImageData) else data
    batches: Iterable[tuple[Tensor, Tensor]]
    total, shared = None, isinstance(images, ImageSet)
    if isinstance(images, ImageSet):
        state = this_process()
        part = Part(index=state.process_index, count=state.num_processes)
        batches = eval_batches(
            images,
            preprocessing_of(model),
            batch_size=batch_size,
            part=part,
            device=device_of(model),
            num_workers=num_workers,
        )
        total = -(-len(images) // (batch_size * part.count))
    else:
        batches = images
    with eval_mode(model):
        results = [_judge(model, *batch) for batch in track(batches, description, total)]
    if shared and this_process().num_processes > 1:
        results = gather_object(results)
    if not results:
        raise DataError("There is no image to evaluate on; expected at least one.")
    return _summarise(*(torch.cat(column) for column in zip(*results, strict=True)))


def compare(first: Evaluation, second: Evaluation) -> Difference:
    """The difference between two models on the same images; positive where `second` is better.

    Raises:
        DataError: the two were not evaluated on the same number of images.
    """
    if len(first.correct) != len(second.correct):
        raise DataError(
            f"The models were evaluated on {len(first.correct)} and {len(second.correct)} images; a paired comparison "
            "needs the same images for both."
        )
    pairs = second.correct.astype(float) - first.correct.astype(float)
    points = 100 * float(pairs.mean())
    if not pairs.any():
        return Difference(points=0.0, low=0.0, high=0.0, p_value=1.0)
    interval = stats.bootstrap(
        (pairs,), np.mean, confidence_level=CONFIDENCE, n_resamples=2000, batch=100, method="percentile", rng=0
    ).confidence_interval
    gained, disagreed = int((pairs > 0).sum()), int((pairs != 0).sum())
    return Difference(
        points=points,
        low=100 * float(interval.low),
        high=100 * float(interval.high),
        p_value=float(stats.binomtest(gained, disagreed).pvalue),
    )


def _judge(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For one batch: top-1 right, top-5 right (NaN where there are no more than five outputs), loss; `(B,)` each."""
    dtype = next((parameter.dtype for parameter in model.parameters()), images.dtype)
    logits = logits_of(model(images.to(dtype))).float()
    if int(labels.max()) >= logits.shape[-1]:
        raise DataError(
            f"The data has the label {int(labels.max())}, but the model has outputs 0..{logits.shape[-1] - 1}."
        )
    best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices
    hits = best == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="none")
    top5 = hits.double().sum(dim=1) if logits.shape[-1] > 5 else torch.full_like(loss, torch.nan).double()
    return hits[:, 0].cpu(), top5.cpu(), loss.double().cpu()


def _summarise(top1: Tensor, top5: Tensor, loss: Tensor) -> Evaluation:
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
    )
