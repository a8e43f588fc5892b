"""Laws of the fit of one layer: it is the least-squares solution, for linear layers and 1 x 1 convolutions."""

import pytest
import torch
from torch import Tensor, nn

from vitrim.recovery.least_squares import STRIP, moments_of, refit

RIDGE = 1e-2
WIDE = 2 * STRIP + 88  # the products are computed in several strips


def solution(layer: nn.Linear, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The change of weight and bias, as the normal equations of all tokens at once have it."""
    width, has_bias = layer.in_features, layer.bias is not None
    inputs, residual = x.flatten(0, 1), (target - layer(x)).flatten(0, 1)
    mean_x, mean_r = (values.mean(dim=0) * has_bias for values in (inputs, residual))
    centred = inputs - mean_x
    penalty = RIDGE * centred.square().sum() / width * torch.eye(width, dtype=x.dtype)
    change = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (residual - mean_r)).T
    return change, mean_r - change @ mean_x


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_the_refit_of_a_wide_layer_is_the_least_squares_solution(bias: bool) -> None:
    layer = nn.Linear(WIDE, 3, bias=bias).double()
    x, target = torch.randn(2, 400, WIDE, dtype=torch.float64) + 1, torch.randn(2, 400, 3, dtype=torch.float64)
    change, shift = moments_of(layer, zip(x, target, strict=True)).solve(RIDGE)
    expected_change, expected_shift = solution(layer, x, target)
    assert torch.allclose(change, expected_change, rtol=1e-8, atol=1e-12)
    assert not bias or torch.allclose(shift, expected_shift, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_convolution_of_one_pixel_is_refitted_like_a_linear_layer(bias: bool) -> None:
    linear = nn.Linear(6, 4, bias=bias).double()
    convolution = nn.Conv2d(6, 4, kernel_size=1, bias=bias).double()
    convolution.weight.copy_(linear.weight[:, :, None, None])
    if bias:
        convolution.bias.copy_(linear.bias)
    x, target = torch.randn(2, 5, 9, 6, dtype=torch.float64), torch.randn(2, 5, 9, 4, dtype=torch.float64)
    before = linear.weight.clone()
    refit(linear, zip(x, target, strict=True), RIDGE)
    images = [values.movedim(-1, 1).unflatten(2, (3, 3)) for values in (x.flatten(0, 1), target.flatten(0, 1))]
    refit(convolution, [(images[0], images[1])], RIDGE)
    assert not torch.allclose(linear.weight, before)
    assert torch.allclose(convolution.weight.flatten(1), linear.weight, rtol=1e-9, atol=1e-12)
    assert not bias or torch.allclose(convolution.bias, linear.bias, rtol=1e-9, atol=1e-12)
