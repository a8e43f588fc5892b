"""Labelled images and whole data sets, however they are stored. Immutable."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images: as pixels in memory, or as files that are decoded when they are needed. Immutable.

    Attributes:
        labels: class of each image, `(n,)` int64, on the CPU.
        pixels: `(n, 3, H, W)` uint8 on any device, or None.
        files: n paths, empty when there are pixels.
    """

    labels: Tensor
    pixels: Tensor | None = None
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert self.labels.dtype == torch.int64 and self.labels.ndim == 1 and self.labels.device.type == "cpu"
        assert self.num_images == (len(self.files) if self.pixels is None else len(self.pixels))
        assert self.pixels is None or (self.pixels.dtype == torch.uint8 and self.pixels.ndim == 4 and not self.files)

    @property
    def num_images(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        return self.pixels is not None

    def __len__(self) -> int:
        return self.num_images

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        files = tuple(self.files[i] for i in index.tolist()) if self.pixels is None else ()
        pixels = None if self.pixels is None else self.pixels[index.to(self.pixels.device)]
        return ImageSet(labels=self.labels[index], pixels=pixels, files=files)

    def sample(self, num_images: int, seed: int) -> "ImageSet":
        """A random subset in which every class has the same number of images, give or take one.

        The classes take turns, so every beginning of it is balanced too, and a smaller sample begins a larger one.
        All images, in their own order, when there are not more than `num_images`.
        """
        if num_images >= self.num_images:
            return self
        rank = rank_in_class(self.labels, seed)
        shuffled = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        return self.subset(shuffled[rank[shuffled].argsort(stable=True)][:num_images])

    def to(self, device: str | torch.device) -> "ImageSet":
        """With the pixels on `device`; files and labels stay."""
        return self if self.pixels is None else replace(self, pixels=self.pixels.to(device))


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set ready for use; `notes` say what was decided on the way and should be told."""

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    notes: tuple[str, ...] = ()

    def summary(self) -> list[str]:
        """How much there is, and the notes: lines for the person who waits."""
        sizes = f"{len(self.train)} training and {len(self.validation)} validation images"
        return [f"{self.name}: {len(self.classes)} classes, {sizes}", *(f"  {note}" for note in self.notes)]

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the SHA-256 over classes, labels and images.

        Images count by their pixels in memory, by name and size on disk: moving the folder does not change it.
        """
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for images in (self.train, self.validation):
            digest.update(images.labels.numpy().tobytes())
            if images.pixels is not None:
                digest.update(str(tuple(images.pixels.shape)).encode())
                digest.update(images.pixels.cpu().contiguous().numpy().data)
            elif images.files:
                root = os.path.commonpath([os.path.dirname(file) for file in images.files])
                for file in images.files:
                    digest.update(f"{Path(os.path.relpath(file, root)).as_posix()} {os.path.getsize(file)}\n".encode())
        return digest.hexdigest()[:16]


def rank_in_class(labels: Tensor, seed: int) -> Tensor:
    """The place of each image, `(n,)` from 0, when the images of its class are shuffled."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, shuffled inside
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)  # where the class of each grouped image begins
    return torch.empty_like(labels).scatter_(0, grouped, torch.arange(len(labels)) - first)
