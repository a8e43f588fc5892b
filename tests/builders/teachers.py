"""Teachers for tests: a model with other numbers for its images, another order of its classes, and other outputs."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitrim.data.images import ImageData
from vitrim.hooks import logits_of

CNN_SIZES: dict[str, Any] = {"channels": (4, 4, 4, 4), "stem_width": 4}


class Wrapped(nn.Module):
    """A model of this project inside a module of somebody's own, which takes pixels in 0..1.

    Args:
        model: takes images with mean and standard deviation 0.5.
        order: which output of the model each output is.
        returned: `tensor`, `tuple` or `dict`.
    """

    def __init__(self, model: nn.Module, *, order: Sequence[int] = tuple(range(10)), returned: str = "tensor") -> None:
        super().__init__()
        self.model, self.order, self.returned = model, list(order), returned
        self.pretrained_cfg: dict[str, Any] = {
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "label_names": [str(digit) for digit in order],
        }

    def forward(self, images: Tensor) -> Any:
        """Logits `(B, len(order))`, alone or with something else."""
        logits = logits_of(self.model((images - 0.5) / 0.5))[:, self.order]
        return {"tensor": logits, "tuple": (logits, images), "dict": {"logits": logits}}[self.returned]


def cnn(num_classes: int = 10, *, side: int = 8, seed: int = 0) -> nn.Module:
    """A tiny ResNet of timm for images of `side` pixels, with ImageNet's mean and standard deviation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        size: dict[str, Any] = {"input_size": (3, side, side)}
        return timm.create_model("resnet10t", num_classes=num_classes, pretrained_cfg_overlay=size, **CNN_SIZES)


def linear_classifier(data: ImageData, order: Sequence[int] = tuple(range(10))) -> nn.Module:
    """A linear classifier of pixels in 0..1, fitted to the training images by least squares; it has no class names.

    Args:
        order: which class each output is.
    """
    assert data.train.pixels is not None
    pixels = data.train.pixels.flatten(1) / 255
    targets = 10 * nn.functional.one_hot(data.train.labels, 10).float()[:, list(order)]
    layer = nn.Linear(pixels.shape[1], 10)
    with torch.no_grad():
        solved = torch.linalg.lstsq(torch.cat([pixels, torch.ones(len(pixels), 1)], dim=1), targets, driver="gelsd")
        layer.weight.copy_(solved.solution[:-1].T)
        layer.bias.copy_(solved.solution[-1])
    model: Any = nn.Sequential(nn.Flatten(), layer)
    model.pretrained_cfg = {"mean": 0.0, "std": 1.0}
    return model
