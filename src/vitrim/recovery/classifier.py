"""Closed-form refit of the classifier: what the features lost in a cut, the last layer makes good as far as it can.

There is one feature vector for each image, where the readers inside have one for each token, so the fit could follow
chance. How far it goes is therefore decided by its error on images that it has not seen (leave-one-out), and it may
decide to leave the classifier alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vitrim.hooks import logits_of

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # as shares of the mean squared feature
FEW_IMAGES = 2
MIN_LEAVE_ONE_OUT_REST = 1e-6  # an image that the fit follows wholly says nothing about unseen ones


@torch.no_grad()
def refit_classifier(
    student: nn.Module, images: Sequence[Tensor], given: Iterable[Tensor], wanted: Iterable[Tensor]
) -> bool:
    """Refit the student's classifier in place to give the teacher's logits; whether it did.

    With features x, centred over the images, and r the teacher's logits minus the student's, the change is
    dW = r' x (x'x + lambda I)^-1 and the bias takes up the means. Of several lambdas the one with the least squared
    leave-one-out error is taken, e_i = (r_i - fit_i) / (1 - h_ii), h the hat matrix (Allen 1974, PRESS).

    Args:
        images: batches, prepared for the student, which is in eval mode. given: what it makes of them, batch by batch,
            computed by the classifier when it is asked for. wanted: what the teacher makes of them.
    """
    layer = _classifier(student, images[0][:FEW_IMAGES])
    if layer is None or sum(map(len, images)) < 2:
        return False
    features, residual = _features_and_residual(layer, given, wanted)
    fit = _Fit.of(features, residual, centred=layer.bias is not None)
    errors = torch.stack([fit.unseen_error(ridge) for ridge in RIDGES])
    if not errors.min() < residual.square().sum():
        return False
    change, shift = fit.solve(RIDGES[int(errors.argmin())])
    layer.weight.add_(change.to(layer.weight))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))
    return True


@dataclass(frozen=True)
class _Fit:
    """Ridge least squares of residuals `(n, C)` by features `(n, D)`, for any strength of the ridge.

    `features` less their mean are `left @ diag(sizes) @ right`; `wanted` is `left.T @ residuals` less their mean.
    """

    residual: Tensor
    mean_x: Tensor
    mean_r: Tensor
    left: Tensor
    sizes: Tensor
    right: Tensor
    wanted: Tensor
    leverage: float  # of the mean: 1/n, or 0 where there is none

    @classmethod
    def of(cls, features: Tensor, residual: Tensor, *, centred: bool) -> "_Fit":
        mean_x, mean_r = (values.mean(dim=0) * centred for values in (features, residual))
        left, sizes, right = torch.linalg.svd(features - mean_x, full_matrices=False)
        wanted = left.T @ (residual - mean_r)
        return cls(residual, mean_x, mean_r, left, sizes, right, wanted, centred / len(features))

    def unseen_error(self, ridge: float) -> Tensor:
        """Sum of the squared leave-one-out errors."""
        shrink = self._shrink(ridge)
        lacking = self.residual - self.mean_r - self.left @ (shrink[:, None] * self.wanted)
        own = self.left.square() @ shrink + self.leverage  # h_ii
        return (lacking / (1 - own).clamp_min(MIN_LEAVE_ONE_OUT_REST)[:, None]).square().sum()

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The change of the weight `(C, D)` and of the bias `(C,)`."""
        inverse = self._shrink(ridge) / self.sizes.clamp_min(torch.finfo(self.sizes.dtype).tiny)
        change = self.wanted.T @ (inverse[:, None] * self.right)
        return change, self.mean_r - change @ self.mean_x

    def _shrink(self, ridge: float) -> Tensor:
        squares = self.sizes.square()
        return squares / (squares + ridge * squares.sum() / len(self.mean_x)).clamp_min(torch.finfo(squares.dtype).tiny)


def _classifier(model: nn.Module, images: Tensor) -> nn.Linear | None:
    """The linear layer whose output is the model's logits; None where they are made in another way."""
    outputs: dict[str, list[Tensor]] = {}

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, *, name: str) -> None:
        outputs.setdefault(name, []).append(output)

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    handles = [layer.register_forward_hook(partial(keep, name=name)) for name, layer in layers.items()]
    try:
        logits = logits_of(model(images))
    finally:
        for handle in handles:
            handle.remove()
    once = [(name, given[0]) for name, given in outputs.items() if len(given) == 1]
    same = [name for name, output in once if output.shape == logits.shape and torch.equal(output, logits)]
    return layers[same[-1]] if same and logits.ndim == 2 else None


def _features_and_residual(
    layer: nn.Linear, given: Iterable[Tensor], wanted: Iterable[Tensor]
) -> tuple[Tensor, Tensor]:
    """What the classifier takes, `(n, D)`, and what its logits lack, `(n, C)`, in float64."""
    taken: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0].double()))
    try:
        lacking = [(goal - now).double() for now, goal in zip(given, wanted, strict=True)]
    finally:
        handle.remove()
    return torch.cat(taken), torch.cat(lacking)
