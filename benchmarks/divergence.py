"""How near a model is to the dense model on the test images: divergence of the outputs, agreement of the classes."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.data.images import ImageSet
from vitrim.data.matching import Calibration
from vitrim.hooks import eval_mode, logits_of

BATCH_SIZE = 256
_ROWS_PER_CHUNK = 4096  # with 1000 classes, 33 MB in float64


@torch.no_grad()
def logits_on(model: nn.Module, images: ImageSet) -> Tensor:
    """Return the logits of a model on all images, in order, `(N, C)` float32 on the CPU."""
    batches = Calibration(images=images, model=model, batch_size=BATCH_SIZE)
    dtype = next(model.parameters()).dtype
    with eval_mode(model):
        return torch.cat([logits_of(model(pixels.to(dtype))).float().cpu() for pixels, _ in batches])


def compare_logits(dense: Tensor, model: Tensor) -> dict[str, Any]:
    """Compare a model with the dense model on the same images.

    Args:
        dense: logits of the dense model, `(N, C)`.
        model: logits of the other model, same shape.

    Returns:
        Plain values for JSON:

        * `kl`: KL(dense || model) of the output distributions, mean over images, in nats.
        * `agreement`: percentage of images on which both models predict the same class.
        * `kl_images`: the divergence on each image with three digits, separated by spaces.
        * `same`: whether both predict the same class, 0 or 1 for each image.
    """
    chunks = zip(dense.split(_ROWS_PER_CHUNK), model.split(_ROWS_PER_CHUNK), strict=True)
    divergence = torch.cat([_divergence(one, other) for one, other in chunks])  # (N,)
    same = dense.argmax(dim=1) == model.argmax(dim=1)  # (N,)
    return {
        "kl": divergence.mean().item(),
        "agreement": 100 * same.double().mean().item(),
        "kl_images": " ".join(f"{value:.3g}" for value in divergence.tolist()),
        "same": "".join("01"[equal] for equal in same.tolist()),
    }


def _divergence(dense: Tensor, model: Tensor) -> Tensor:
    """Return KL(dense || model) of each row, `(N,)`. It is never below 0, although rounding can be."""
    ours, theirs = (logits.double().log_softmax(dim=1) for logits in (model, dense))
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1).clamp(min=0)
