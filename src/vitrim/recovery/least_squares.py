"""Ridge least squares for one output projection, from sums over calibration images and tokens."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from vitrim.hooks import columns_dim
from vitrim.precision import float64_device, in_float64
from vitrim.recovery.blockwise import in_float32

STRIP = 256  # columns multiplied at a time: wide enough to be fast, narrow enough to save a third of the products


def refit(layer: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]], ridge: float) -> None:
    """Refit a linear layer or a 1 x 1 convolution in place.

    Args:
        pairs: inputs `(..., in)` and target outputs `(..., out)`, batch by batch; channels second for a convolution.
        ridge: as a fraction of the mean squared input.
    """
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    change, shift = moments_of(layer, pairs).solve(ridge)
    layer.weight.add_(change.to(layer.weight).view_as(layer.weight))
    if layer.bias is not None:
        layer.bias.add_(shift.to(layer.bias))


def moments_of(layer: nn.Linear | nn.Conv2d, pairs: Iterable[tuple[Tensor, Tensor]]) -> "Moments":
    """Sum up the inputs of a layer, and the residuals: target outputs minus its outputs."""
    moments, dim = Moments(layer), columns_dim(layer)
    for x, target in pairs:
        x, residual = in_float32(x), in_float32(target) - in_float32(layer(x))
        moments.add(x.movedim(dim, -1).flatten(0, -2), residual.movedim(dim, -1).flatten(0, -2))
    return moments


class Moments:
    """Sums over tokens that the least-squares fit of a layer's residual needs, in float64.

    Attributes:
        count: number of tokens T.
        xx: sum of x'x, `(in, in)`. It is symmetric, and most of what is above its diagonal is left out.
        rx: sum of r'x, `(out, in)`.
        x: sum of inputs, `(in,)`.
        r: sum of residuals, `(out,)`.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.count = 0
        self.has_bias = layer.bias is not None
        zeros = partial(torch.zeros, dtype=torch.float64, device=float64_device(layer.weight.device))
        num_out, num_in = layer.weight.shape[:2]
        self.xx, self.rx = zeros(num_in, num_in), zeros(num_out, num_in)
        self.x, self.r = zeros(num_in), zeros(num_out)

    def add(self, x: Tensor, residual: Tensor) -> None:
        """Add the inputs `(T, in)` and residuals `(T, out)` of tokens."""
        self.count += len(x)
        for start in range(0, x.shape[1], STRIP):
            strip = x[:, start:].T @ x[:, start : start + STRIP]
            self.xx[start:, start : start + STRIP] += strip.to(self.xx.device)
        self.rx += in_float64(residual.T @ x)
        self.x += in_float64(x.sum(dim=0))
        self.r += in_float64(residual.sum(dim=0))

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The change of the weight `(out, in)` and of the bias `(out,)`; the formula is in `recover`."""
        mean_x, mean_r = self.x / self.count, self.r / self.count
        xx, rx = self.xx / self.count, self.rx / self.count
        if self.has_bias:  # a free bias means a fit of the centred values
            xx, rx = xx - torch.outer(mean_x, mean_x), rx - torch.outer(mean_r, mean_x)
        strength = ridge * xx.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        regular = xx + strength * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        change = torch.cholesky_solve(rx.T, torch.linalg.cholesky(regular)).T  # reads the lower triangle alone
        return change, mean_r - change @ mean_x
