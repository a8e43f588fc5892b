"""`PositionGrid`: which tensor of a model has one position embedding per patch, and for which image size."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PositionGrid:
    """The position embedding of a model for square patches.

    Attributes:
        name: of the tensor, `(..., tokens, width)`.
        rows: patches from top to bottom.
        columns: patches from left to right.
        num_tokens: tokens of the tensor, with those of no patch, such as the class token.
        patch_size: height and width of a patch in pixels.
    """

    name: str
    rows: int
    columns: int
    num_tokens: int
    patch_size: int

    def side_in(self, tensors: Mapping[str, Tensor]) -> int | None:
        """Patches along one side of the image in other weights; None if they have no square grid under this name."""
        tensor = tensors.get(self.name)
        if tensor is None or tensor.ndim < 2:
            return None
        num_patches = tensor.shape[-2] - (self.num_tokens - self.rows * self.columns)
        side = isqrt(max(num_patches, 0))
        return side if side and side * side == num_patches else None

    def img_size_in(self, tensors: Mapping[str, Tensor], patch_size: int | None = None) -> int | None:
        """The image size in pixels that other weights were made for, if it is not the size of this model."""
        side, size = self.side_in(tensors), patch_size or self.patch_size
        is_own = self.rows == self.columns == side and size == self.patch_size
        return None if side is None or is_own else side * size
