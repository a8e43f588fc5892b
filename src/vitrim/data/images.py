"""Labelled images and whole data sets, in memory or as files. Both are immutable.

Reading files is in `loading`, making batches in `batches`.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from vitrim.data.classes.class_names import ClassNames, read_class_names
from vitrim.data.files.pixels import RGB, PixelFormat
from vitrim.data.files.unreadable import Unreadable, not_counted_note, replaced_note
from vitrim.data.transfer import send
from vitrim.data.workers import NumWorkers, check_num_workers
from vitrim.errors import DataError, counted
from vitrim.runs.progress import log
from vitrim.runs.text_files import encoded

MAX_DEVICE_FRACTION = 0.5  # of the free memory of a GPU, which images may take


class _Content:
    """Stands for the labels and images of a set, wherever its pixels are. Keeps the fingerprints of data sets."""

    def __init__(self) -> None:
        self.fingerprints: dict[tuple[tuple[str, ...], _Content], str] = {}  # by classes and validation images


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Labelled images: pixels in memory, or files that are decoded when they are needed. Immutable.

    Attributes:
        labels: class of each image, `(n,)` int64, on the CPU.
        pixels: `(n, channels, H, W)` uint8 on any device, or None if the images are files.
        files: n paths; empty if there are pixels.
        pixel_format: what the pixels of the files become.
        strict: whether a file that cannot be decoded when it is needed is an error. By default, another image of its
            class replaces it in training, and it is not counted in evaluation.
        num_workers: processes that decode files when batches are made of them; 0 to decode in this process. `auto` is
            one for each core. The number changes no batch.
        decoded_from: n paths of the files that the pixels in memory come from; empty if they come from no image files.
        unreadable: the files that could not be decoded when they were needed.
    """

    labels: Tensor
    pixels: Tensor | None = None
    files: tuple[str, ...] = ()
    pixel_format: PixelFormat = RGB
    strict: bool = False
    num_workers: NumWorkers = "auto"
    decoded_from: tuple[str, ...] = ()
    unreadable: Unreadable = field(repr=False, default_factory=Unreadable)
    _content: _Content = field(init=False, repr=False, default_factory=_Content)

    def __post_init__(self) -> None:
        assert self.labels.dtype == torch.int64 and self.labels.ndim == 1 and self.labels.device.type == "cpu"
        assert self.num_images == (len(self.files) if self.pixels is None else len(self.pixels))
        assert not self.decoded_from or self.num_images == len(self.decoded_from)
        assert self.pixels is None or (self.pixels.dtype == torch.uint8 and self.pixels.ndim == 4 and not self.files)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def channels(self) -> int:
        """Number of channels of each image."""
        return self.pixel_format.channels if self.pixels is None else self.pixels.shape[1]

    @property
    def in_memory(self) -> bool:
        """Whether the images are pixels rather than files."""
        return self.pixels is not None

    def __len__(self) -> int:
        return self.num_images

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """Return the images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        files, decoded_from = (
            tuple(names[i] for i in index.tolist()) if names else () for names in (self.files, self.decoded_from)
        )
        pixels = None if self.pixels is None else self.pixels[send(index, self.pixels.device)]
        return replace(self, labels=self.labels[index], pixels=pixels, files=files, decoded_from=decoded_from)

    def sample(self, num_images: int, seed: int) -> "ImageSet":
        """Return a random subset in which the classes have equal numbers of images, or differ by one.

        The classes take turns. So the first images of a sample are balanced too, and with the same seed a smaller
        sample is the beginning of a larger one. If `num_images` is not less than the size of the set, the set itself
        is returned, in its own order.
        """
        if num_images >= self.num_images:
            return self
        rank = rank_in_class(self.labels, seed)
        shuffled = torch.randperm(self.num_images, generator=torch.Generator().manual_seed(seed))
        return self.subset(shuffled[rank[shuffled].argsort(stable=True)][:num_images])

    def with_unreadable(self, unreadable: Unreadable) -> "ImageSet":
        """Return the same images, with a record of their own of files that could not be decoded."""
        found = replace(self, unreadable=unreadable)
        if not unreadable.sizes:  # else the fingerprint uses other sizes
            object.__setattr__(found, "_content", self._content)
        return found

    def with_num_workers(self, num_workers: NumWorkers) -> "ImageSet":
        """Return the same images, decoded by so many processes. Raises SettingError for a number below 0."""
        check_num_workers(num_workers)
        found = replace(self, num_workers=num_workers)
        object.__setattr__(found, "_content", self._content)
        return found

    def to(self, device: str | torch.device) -> "ImageSet":
        """Return the same images with their pixels on `device`. Labels remain on the CPU, files on disk.

        Pixels that would take more than half of the free memory of a GPU remain where they are; batches are then copied
        one by one.
        """
        device = torch.device(device)
        if self.pixels is None or self.pixels.device == device or self.pixels.nbytes > _room(device):
            return self
        pixels = self.pixels.to(device)
        if pixels is self.pixels:  # `cuda` is the device with the index of this process
            return self
        moved = replace(self, pixels=pixels)
        object.__setattr__(moved, "_content", self._content)
        return moved


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set that is ready for use. Immutable.

    Attributes:
        name: of the data set or its folder, for reports.
        classes: class names; a label is an index in them.
        train: training images.
        validation: images that are only evaluated.
        notes: what was decided or skipped during loading, in sentences for the user.
        class_names: names of a model's outputs that the user stated; None if there are none, or they were applied.
        in_output_order: whether a label is the number of an output of the model, as `match_labels` leaves it.
        outputs: the output of the model for each class that the data set had before `match_labels` has renumbered its
            labels; empty if it has not.
        root: folder of all image files; empty if there are none.
        left_out: names of the files below `root` that could not be decoded during loading.
        run_dir: folder of the run that the images are used in, as far as it is known.
        only: `train`, `val` or `test` if nothing else was read, `all` if these are all images of a data set without
            splits; empty for training and validation images. Such images are in `validation`.
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    validation: ImageSet
    notes: tuple[str, ...] = ()
    class_names: ClassNames | None = None
    in_output_order: bool = False

    def with_class_names(self, names: str | Path | Sequence[str] | ClassNames) -> "ImageData":
        """Return the same data set for a model whose outputs have these names, in their order.

        The labels are matched when the data set is used with a model. By default, the names that the model carries
        decide; without these, the order is measured where it is not certain.

        Args:
            names: as for `read_class_names`: the names, or a file of them.

        Raises:
            DataError: the file cannot be read, or has an empty or a repeated line.
        """
        return replace(self, class_names=read_class_names(names))

    outputs: tuple[int, ...] = ()
    root: str = ""
    left_out: tuple[str, ...] = ()
    run_dir: Path | None = None
    only: str = ""

    def summary(self) -> list[str]:
        """Return lines for the user: the name, the numbers of classes and images, and the notes."""
        sizes = f"{len(self.train):,} training and {counted(len(self.validation), 'validation image')}"
        sizes = sizes if len(self.train) else counted(len(self.validation), "image")
        return [f"{self.name}: {counted(len(self.classes), 'class')}, {sizes}", *(f"  {note}" for note in self.notes)]

    def all_notes(self) -> list[str]:
        """Return the notes, and what could not be decoded since the images were loaded."""
        train, validation = (images.unreadable.among(images.files) for images in (self.train, self.validation))
        notes = [replaced_note(train)] if train else []
        if validation:
            notes.append(not_counted_note(validation, len(self.validation)))
        return [*self.notes, *notes]

    def with_num_workers(self, num_workers: NumWorkers) -> "ImageData":
        """Return the same data set, whose files are decoded by so many processes. `auto` changes nothing.

        Args:
            num_workers: as for `ImageSet`.

        Raises:
            SettingError: the number is below 0.
        """
        if num_workers == "auto":
            return self
        train, validation = (images.with_num_workers(num_workers) for images in (self.train, self.validation))
        return replace(self, train=train, validation=validation)

    def to(self, device: str | torch.device) -> "ImageData":
        """Return the same data set with its pixels on `device`.

        Training and validation images together take at most half of the free memory of a GPU. Others remain where they
        are, and this is logged. Call it once, and use the result for all trainings and evaluations. The fingerprint is
        computed before pixels are moved, so they are not copied back for it.
        """
        if torch.device(device).type == "cuda" and (self.train.in_memory or self.validation.in_memory):
            self.fingerprint()
        room, sets = _room(torch.device(device)), {"training": self.train, "validation": self.validation}
        for name, images in sets.items():
            if images.pixels is None or images.pixels.device.type == torch.device(device).type:
                continue
            if images.pixels.nbytes > room:
                log(f"{self.name}: the {name} images are not moved to the GPU, because they would take half its memory")
                continue
            room -= images.pixels.nbytes
            sets[name] = images.to(device)
        if sets["training"] is self.train and sets["validation"] is self.validation:
            return self
        return replace(self, train=sets["training"], validation=sets["validation"])

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits of a SHA-256 over classes, labels and images.

        Images in memory are read by their pixels, files by their name in the folder and their size. Moving the folder
        does not change the fingerprint. It is computed once for the same images and classes, also if the images were
        moved to another device or are part of another `ImageData`.
        """
        known, key = self.train._content.fingerprints, (self.classes, self.validation._content)
        if key not in known:
            known[key] = self._compute_fingerprint()
        return known[key]

    def _compute_fingerprint(self) -> str:
        digest = hashlib.sha256(encoded("\n".join(self.classes)))
        for images in (self.train, self.validation):
            digest.update(images.labels.numpy().tobytes())
            if images.pixels is not None:
                digest.update(str(tuple(images.pixels.shape)).encode())
                digest.update(images.pixels.cpu().contiguous().numpy().data)
            elif images.files:
                digest.update(str(images.pixel_format).encode() if images.pixel_format != RGB else b"")
                root = os.path.commonpath([os.path.dirname(file) for file in images.files])
                for file, size in zip(images.files, images.unreadable.file_sizes(images.files), strict=True):
                    digest.update(encoded(f"{Path(os.path.relpath(file, root)).as_posix()} {size}\n"))
        return digest.hexdigest()[:16]


def _room(device: torch.device) -> float:
    """The bytes that images may take: a fraction of the free memory of a GPU; no limit on other devices."""
    return MAX_DEVICE_FRACTION * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def divided(images: ImageSet, fraction: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Divide images into training and validation images, each class by itself.

    Args:
        images: at least one class has two of them.
        fraction: of the images of each class that are used for validation. They are at least one, if the class has two.
        seed: of the choice.

    Raises:
        DataError: every class has only one image.
    """
    counts = torch.bincount(images.labels)
    num_held_out = (counts * fraction).round().long().clamp(min=1).minimum(counts - 1)  # 0 of 1, at least 1 of 2
    held_out = rank_in_class(images.labels, seed) < num_held_out[images.labels]
    if not held_out.any():
        raise DataError(
            "Every class has only one image, so none can be held out for validation; add training images, or a folder "
            "val with validation images."
        )
    return images.subset((~held_out).nonzero().flatten()), images.subset(held_out.nonzero().flatten())


def rank_in_class(labels: Tensor, seed: int) -> Tensor:
    """Shuffle the images of each class, and return the rank of each image in its class, from 0.

    Args:
        labels: `(n,)` int64.
        seed: of the shuffle.

    Returns:
        `(n,)` int64.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    grouped = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, shuffled inside
    counts = torch.bincount(labels)
    first = (counts.cumsum(0) - counts).repeat_interleave(counts)  # position of the first image of the same class
    return torch.empty_like(labels).scatter_(0, grouped, torch.arange(len(labels)) - first)
