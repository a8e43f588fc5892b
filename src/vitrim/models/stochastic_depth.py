"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382) that compiles to one graph for all rates."""

import timm.layers
import torch
from torch import Tensor


class DropPath(timm.layers.DropPath):
    """timm's layer with other operations: a Bernoulli draw makes its rate a constant of the compiled graph.

    Each block has another rate, so each would be compiled by itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Set the branch `x` `(B, ...)` of some images to zero, and divide the others by the probability to keep."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        dtype = torch.promote_types(x.dtype, torch.float32)  # in half precision, rounding would change the probability
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = (torch.rand(shape, dtype=dtype, device=x.device) + keep).floor()
        return x * (mask / keep if self.scale_by_keep else mask).to(x.dtype)
