"""Judge the logits of batches of images by their labels: top-1, top-5, loss and confidence of each image.

What is said about all images together is in `evaluation`. Shapes: `B` batch, `C` classes.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.asking import is_out_of_memory
from vitrim.errors import DataError, NotEnoughMemory
from vitrim.hooks import logits_of
from vitrim.precision import in_float64
from vitrim.runs.progress import log, track


def judge_all(
    predict: Callable[..., Tensor],
    batches: Iterable[tuple[Sequence[Tensor], Tensor]],
    description: str,
    num_batches: int | None = None,
    max_label: int | None = None,
) -> list[tuple[Tensor, ...]]:
    """What `_judge` returns for each part of each batch, on the CPU.

    Args:
        predict: returns logits `(b, C)` float32 for one or several batches `(b, channels, h, w)` of the same images.
        batches: these batches, and the labels `(b,)`.
        description: shown before the progress bar.
        num_batches: None if it is not known.
        max_label: of all batches; None if it is not known. Then it is read from the device, which takes time.
    """
    judge = _Judge(predict, max_label)
    judged = [part for batch in track(batches, description, num_batches) for part in judge(*batch)]
    return [tuple(values.cpu() for values in part) for part in judged]  # after all batches: each copy waits


class _Judge:
    """Evaluates batches. A batch that does not fit into memory is divided, and so are all batches after it."""

    def __init__(self, predict: Callable[..., Tensor], max_label: int | None) -> None:
        self.predict, self.max_label = predict, max_label
        self.max_images = math.inf  # of one pass

    def __call__(self, views: Sequence[Tensor], labels: Tensor) -> list[tuple[Tensor, ...]]:
        """Evaluate one batch; returns what `_judge` returns, for each part.

        Args:
            views: the same images `(B, channels, H, W)`, prepared in one or several ways.
            labels: `(B,)`.
        """
        while True:
            size = int(min(self.max_images, max(1, len(labels))))
            try:
                parts = zip(zip(*(view.split(size) for view in views), strict=True), labels.split(size), strict=True)
                return [_judge(self.predict(*part), targets, self.max_label) for part, targets in parts]
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    raise NotEnoughMemory(
                        f"Out of memory on {labels.device.type} while evaluating one image. Use a smaller model or "
                        "smaller images, or free memory."
                    ) from None
            self.max_images = (size + 1) // 2  # after the error is dropped, which holds what the pass has in memory
            log(f"evaluating: the memory is not enough for {size} images in one pass; trying {self.max_images}")
            if labels.device.type == "cuda":
                torch.cuda.empty_cache()


def model_logits(model: nn.Module, images: Tensor) -> Tensor:
    """The logits `(B, C)` of a model for images `(B, channels, H, W)`, as float32."""
    dtype = next((parameter.dtype for parameter in model.parameters()), images.dtype)
    return logits_of(model(images.to(dtype))).float()


def _judge(logits: Tensor, labels: Tensor, max_label: int | None) -> tuple[Tensor, ...]:
    """Compare one batch of logits with the labels.

    Args:
        logits: `(B, C)`.
        labels: `(B,)` int64.
        max_label: of all batches; None if it is not known.

    Returns:
        Whether top-1 is right, whether top-5 is right (NaN for fewer than six outputs), the loss, the top-1 output and
        its softmax value, `(B,)` each, on the device of the logits.
    """
    max_label = int(labels.max()) if max_label is None else max_label
    if max_label >= logits.shape[-1]:
        raise DataError(
            f"The data has the label {max_label}, but the model has outputs 0..{logits.shape[-1] - 1}. "
            "Use a model with an output for each class of the data set."
        )
    best = logits.topk(min(5, logits.shape[-1]), dim=-1).indices  # (B, 5), or fewer columns
    hits = best == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="none")
    top5 = in_float64(hits).sum(dim=1) if logits.shape[-1] > 5 else in_float64(torch.full_like(loss, torch.nan))
    confidence = logits.softmax(dim=-1).gather(1, best[:, :1])[:, 0]
    return hits[:, 0], top5, in_float64(loss), best[:, 0], in_float64(confidence)
