"""Compares an exported file with its model: the latency of both, and what both predict for labelled images."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitrim.costs.latency import Latency, LatencySettings, busy_note, time_in_rounds
from vitrim.evaluation import Difference, Evaluation, compare, evaluate
from vitrim.exporting.images import LabelledImages
from vitrim.programs.failing import failing_as
from vitrim.programs.program import AnyBatch, Exportable, Program, difference_of
from vitrim.runs.progress import log

EVALUATION_BATCH = 64  # for float32, whose logits do not depend on the batch size


@dataclass(frozen=True, kw_only=True)
class Int8Accuracy:
    """Accuracy of the model in float32 and of the int8 file, on the same images.

    Attributes:
        float32: the model.
        int8: the file.
        difference: paired, int8 minus float32.
    """

    float32: Evaluation
    int8: Evaluation
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What file and model predict for the same validation images.

    Attributes:
        num_images: number of images.
        same: number of images for which both predict the same class.
        max_difference: the largest difference of the logits, as a fraction of the model's largest logit in its batch.
    """

    num_images: int
    same: int
    max_difference: float


@torch.no_grad()
def timed(exported: Exportable, run: Program, settings: LatencySettings) -> list[Latency]:
    """The latencies of the module and of the file, timed in turns on random images."""
    images = exported.example({"batch": settings.batch_size})
    if note := busy_note():
        log(note)
    return time_in_rounds([partial(exported.module, images), partial(run, images)], settings, images.device)


@torch.no_grad()
def agreement(
    module: nn.Module, run: AnyBatch, batches: Iterable[tuple[Tensor, Tensor]], tolerance: float, *, half: bool
) -> Agreement:
    """Compare what a module and a file compute for labelled images.

    Args:
        half: round images to float16 for both.

    Raises:
        ExportMismatch: a difference is above `tolerance`. ExportFailed: the file does not run on these images.
    """
    num_images, same, largest = 0, 0, 0.0
    for images, _ in batches:
        images = images.half().float() if half and images.is_floating_point() else images
        expected = module(images)
        with failing_as("The exported file does not run on these images"):
            found = run(images)
        largest = max(largest, difference_of(expected, found, tolerance, half=half))
        same += int((expected.argmax(dim=1) == found.argmax(dim=1)).sum())
        num_images += len(images)
    return Agreement(num_images=num_images, same=same, max_difference=largest)


def int8_accuracy(module: nn.Module, run: AnyBatch, images: LabelledImages, batch_size: int) -> Int8Accuracy:
    """Evaluate a module and its int8 file on all validation images.

    Args:
        batch_size: for the file. With dynamic int8, its predictions depend on it.
    """
    before = evaluate(module, images.batches(EVALUATION_BATCH), description="evaluating float32")
    after = evaluate(run, images.batches(batch_size), description="evaluating int8")
    return Int8Accuracy(float32=before, int8=after, difference=compare(before, after))
