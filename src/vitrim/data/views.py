"""Show one model the images that were prepared for another: the same crop, colours and mixture of images.

A teacher sees what its student sees. Only normalisation, size and channels are those of the teacher.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitrim.data.preprocessing import Preprocessing, normalise

CHANNEL_CHANGES = ((1, 3), (3, 1))  # grey as red, green and blue; colours as grey
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, with which Pillow makes a grey image
RESIZED_AS_TENSORS = ("nearest", "nearest-exact", "bilinear", "bicubic")


def is_same_view(before: Preprocessing, after: Preprocessing) -> bool:
    """Whether images that are prepared for one model are also prepared for the other."""
    if before.img_size != after.img_size or len(before.mean) != len(after.mean):
        return False
    cpu = torch.device("cpu")
    one, other = _Normalisation.of(before, cpu), _Normalisation.of(after, cpu)
    pairs = ((one.source, other.source), (one.scale, other.scale), (one.shift, other.shift))
    return all(torch.equal(*pair) for pair in pairs)


def can_view(before: Preprocessing, after: Preprocessing) -> bool:
    """Whether the numbers of channels are equal, or can be converted."""
    channels = len(before.mean), len(after.mean)
    return channels[0] == channels[1] or channels in CHANNEL_CHANGES


def view_interpolation(preprocessing: Preprocessing) -> str:
    """How a view is resized: as for the model, or bicubic where torch cannot do that with tensors."""
    return preprocessing.interpolation if preprocessing.interpolation in RESIZED_AS_TENSORS else "bicubic"


def view_between(before: Preprocessing, after: Preprocessing, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function that prepares for one model the images of a batch that are prepared for another.

    It returns to pixels, converts the channels, resizes to the size of the other model (both sides, with antialiasing,
    limited to 0..1), and normalises. All steps but the limit are linear, so images that were mixed stay mixed. If
    nothing differs, it returns the images themselves. Nothing is copied to the device when it is called.

    Args:
        before: how the images `(B, C, h, w)` are prepared.
        after: how they shall be prepared.
        device: of the images.
    """
    if is_same_view(before, after):
        return lambda images: images
    own, other = _Normalisation.of(before, device), _Normalisation.of(after, device)
    changed = len(before.mean), len(after.mean)
    luma = torch.tensor(LUMA, device=device)[:, None, None] if changed == (3, 1) else None

    def view(images: Tensor) -> Tensor:
        pixels = own.undo(images)  # (B, C, h, w) in 0..1
        if luma is not None:
            pixels = (pixels * luma).sum(dim=1, keepdim=True)
        elif changed == (1, 3):
            pixels = pixels.expand(-1, 3, -1, -1)
        if before.img_size != after.img_size:
            mode = InterpolationMode(view_interpolation(after))
            pixels = F.resize(pixels, list(after.img_size), mode, antialias=True).clamp(0, 1)
        return other.apply(pixels)

    return view


@dataclass(frozen=True, kw_only=True, eq=False)
class _Normalisation:
    """What `normalise` does to pixels in 0..1, found by calling it, so no setting is forgotten.

    Attributes:
        source: which channel of the pixels each channel is made from, `(C,)`.
        position: which channel is made from each channel of the pixels, `(C,)`.
        scale, shift: what it is multiplied by, and what is added then, `(C, 1, 1)` each.
        is_in_order: whether `source` is 0, 1, 2, ...
    """

    source: Tensor
    position: Tensor
    scale: Tensor
    shift: Tensor
    is_in_order: bool

    @classmethod
    def of(cls, preprocessing: Preprocessing, device: torch.device) -> "_Normalisation":
        channels = len(preprocessing.mean)
        black = torch.zeros(1, channels, 1, 1, dtype=torch.uint8)
        single = (255 * torch.eye(channels, dtype=torch.uint8))[:, :, None, None]  # image c is white in channel c
        shift = normalise(black, preprocessing)[0]
        found = (normalise(single, preprocessing) - shift)[:, :, 0, 0]  # (pixel channel, channel)
        source = found.abs().argmax(dim=0)
        scale = found.gather(0, source[None])[0][:, None, None]
        position = source.argsort()
        in_order = torch.equal(source, torch.arange(channels))
        source, position, scale, shift = (values.to(device) for values in (source, position, scale, shift))
        return cls(source=source, position=position, scale=scale, shift=shift, is_in_order=in_order)

    def undo(self, images: Tensor) -> Tensor:
        pixels = (images - self.shift) / self.scale
        return pixels if self.is_in_order else pixels.index_select(1, self.position)

    def apply(self, pixels: Tensor) -> Tensor:
        pixels = pixels if self.is_in_order else pixels.index_select(1, self.source)
        return pixels * self.scale + self.shift
