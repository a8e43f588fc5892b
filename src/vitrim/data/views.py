"""Show one model the images that were prepared for another: the same crop, colours and mixture of images.

A teacher sees what its student sees. Only normalisation, size and number of channels are those of the teacher.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitrim.data.preprocessing import Preprocessing, normalise

CHANNEL_CHANGES = ((1, 3), (3, 1))  # grey as red, green and blue; colours as grey
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, with which Pillow makes a grey image


def is_same_view(before: Preprocessing, after: Preprocessing) -> bool:
    """Whether images that are prepared for one model are also prepared for the other."""
    return before.img_size == after.img_size and before.mean == after.mean and before.std == after.std


def can_view(before: Preprocessing, after: Preprocessing) -> bool:
    """Whether the numbers of channels are equal, or can be converted."""
    channels = len(before.mean), len(after.mean)
    return channels[0] == channels[1] or channels in CHANNEL_CHANGES


def view_between(before: Preprocessing, after: Preprocessing, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that prepares for one model the images of a batch that are prepared for another.

    It returns to pixels, converts the channels, resizes to the size of the other model (both sides, with its
    interpolation and antialiasing, limited to 0..1), and normalises. Each step is left out where nothing changes. All
    steps but the limit are linear, so images that were mixed by mixup stay mixed.

    Args:
        before: how the images `(B, C, h, w)` are prepared.
        after: how they shall be prepared.
        device: of the images.
    """
    if is_same_view(before, after):
        return lambda images: images
    scale, shift = (values.to(device) for values in _scale_and_shift(before))
    new_scale, new_shift = (values.to(device) for values in _scale_and_shift(after))
    luma = torch.tensor(LUMA, device=device)[:, None, None] if (len(scale), len(new_scale)) == (3, 1) else None

    def view(images: Tensor) -> Tensor:
        pixels = (images - shift) / scale  # (B, C, h, w) in 0..1
        if luma is not None:
            pixels = (pixels * luma).sum(dim=1, keepdim=True)
        if before.img_size != after.img_size:
            mode = InterpolationMode(after.interpolation)
            pixels = F.resize(pixels, list(after.img_size), mode, antialias=True).clamp(0, 1)
        return pixels * new_scale + new_shift  # a grey channel becomes three where these have three

    return view


def _scale_and_shift(preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """What `normalise` multiplies pixels in 0..1 by, and what it adds then, `(C, 1, 1)` each."""
    black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None]
    black, white = normalise(black_and_white.expand(2, len(preprocessing.mean), 1, 1), preprocessing)
    return white - black, black
