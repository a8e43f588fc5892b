"""Stochastic depth (Huang et al. 2016, arXiv:1603.09382) that compiles to one graph for all rates."""

import torch
from timm.layers import DropPath as TimmDropPath
from torch import Tensor


class DropPath(TimmDropPath):
    """timm's layer with other operations: a Bernoulli draw makes its rate a constant of the compiled graph.

    Each block has another rate, so each would be compiled by itself. Here the rate is a tensor without dimensions. It
    stays on the CPU, because torch passes such a tensor to a GPU with the call.
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__(drop_prob, scale_by_keep)
        self.removes = drop_prob > 0.0
        self.keep_prob = torch.tensor(1 - drop_prob, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Set the branch `x` `(B, ...)` of some images to zero, and divide the others by the probability to keep."""
        if not (self.removes and self.training):
            return x
        dtype = torch.promote_types(x.dtype, torch.float32)  # in half precision, rounding would change the probability
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        mask = (torch.rand(shape, dtype=dtype, device=x.device) + self.keep_prob).floor()
        return x * (mask / self.keep_prob if self.scale_by_keep else mask).to(x.dtype)
