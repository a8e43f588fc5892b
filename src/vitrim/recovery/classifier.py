"""Closed-form refit of the classifier: it corrects what the features lost in a cut, as far as it can.

There is one feature vector for each image, where projections inside the model have one for each token. So a fit could
follow chance. Its strength is therefore chosen by the error on images that it has not seen (leave-one-out). If no
strength helps there, the classifier is not changed.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.hooks import forward_hooks, forward_pre_hooks, logits_of
from vitrim.models.layers import PRODUCTS, module_problem
from vitrim.precision import in_float64

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # as fractions of the mean squared feature
NUM_PROBE_IMAGES = 2  # to find the classifier


@torch.no_grad()
def refit_classifier(
    student: nn.Module, images: Sequence[Tensor], outputs: Iterable[Tensor], targets: Iterable[Tensor]
) -> bool:
    """Refit the student's classifier in place, so that it returns the teacher's logits.

    With features x `(n, D)` and residuals r `(n, C)` (the teacher's logits minus the student's), both centred over the
    images, the change is dW = r'x (x'x + lambda I)^-1, and the bias takes the means. Of several lambdas, the one with
    the smallest squared leave-one-out error is taken (Allen 1974, PRESS; computed by scikit-learn's `RidgeCV`).

    Args:
        images: batches `(B, C, h, w)` prepared for the student, which is in eval mode.
        outputs: the student's logits `(B, C)`, batch by batch. They are computed when they are asked for.
        targets: the teacher's logits `(B, C)`.

    Returns:
        Whether the classifier was changed.
    """
    from sklearn.linear_model import RidgeCV  # takes half a second to import

    layer = _classifier(student, images[0][:NUM_PROBE_IMAGES])
    if layer is None or sum(map(len, images)) < 2:
        return False
    features, residuals = _features_and_residuals(layer, outputs, targets)
    has_bias = layer.bias is not None
    mean_square = (features - features.mean(dim=0) * has_bias).square().sum() / features.shape[1]
    if not mean_square > 0:
        return False
    alphas = [ridge * float(mean_square) for ridge in RIDGES]
    fit = RidgeCV(alphas=alphas, fit_intercept=has_bias, gcv_mode="svd").fit(
        features.cpu().numpy(), residuals.cpu().numpy()
    )
    unseen_error = -fit.best_score_ * residuals.numel()  # sum of the squared leave-one-out errors
    if not unseen_error < float(residuals.square().sum()):
        return False
    layer.weight.add_(torch.from_numpy(fit.coef_).view_as(layer.weight).to(layer.weight))
    if has_bias:
        layer.bias.add_(torch.as_tensor(fit.intercept_).view_as(layer.bias).to(layer.bias))
    return True


def _classifier(model: nn.Module, images: Tensor) -> Any:
    """The linear layer whose output is the model's logits; None where they are made in another way."""
    outputs: dict[str, list[Tensor]] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            outputs.setdefault(name, []).append(output)

        return hook

    layers = {
        name: layer
        for name, layer in model.named_modules()
        if type(layer) in PRODUCTS and not module_problem(name, layer)  # else its weight alone is not what it computes
    }
    with forward_hooks([(layer, record(name)) for name, layer in layers.items()]):
        logits = logits_of(model(images))
    once = [(name, found[0]) for name, found in outputs.items() if len(found) == 1]
    same = [name for name, output in once if output.shape == logits.shape and torch.equal(output, logits)]
    return layers[same[-1]] if same and logits.ndim == 2 else None


def _features_and_residuals(
    layer: nn.Linear, outputs: Iterable[Tensor], targets: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """The inputs of the classifier `(n, D)`, and what its logits lack `(n, C)`, in float64."""
    features: list[Tensor] = []
    with forward_pre_hooks([(layer, lambda module, args: features.append(in_float64(args[0])))]):
        residuals = [in_float64(target - output) for output, target in zip(outputs, targets, strict=True)]
    return torch.cat(features), torch.cat(residuals)
