"""Small image sets, image folders, data sets in their official layouts, and the batches of a training."""

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import BatchSchedule, train_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.preprocessing import Preprocessing

NO_MIX = {"mixup": 0.0, "cutmix": 0.0}
NO_AUGMENTATION = AugmentationSettings(crop="none", flip=0.0, rand_augment_ops=0, label_smoothing=0.0, **NO_MIX)
AUGMENTATIONS = {
    "default": AugmentationSettings(),
    "resized": AugmentationSettings(crop="resized", cutmix=0.0),
    "cutmix": AugmentationSettings(mixup=0.0),
    "not mixed": AugmentationSettings(**NO_MIX),
}
Batches = list[tuple[Tensor, Tensor]]


def preprocessing(height: int = 8, width: int | None = None, **changes: Any) -> Preprocessing:
    values = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), **changes}
    return Preprocessing(img_size=(height, width or height), **values)


def memory_set(num_images: int = 40, height: int = 8, width: int = 8, num_classes: int = 4) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (num_images, 3, height, width), generator=generator, dtype=torch.uint8)
    return ImageSet(labels=torch.arange(num_images) % num_classes, pixels=pixels)


def file_set(root: Path, num_images: int = 24, size: tuple[int, int] = (12, 10)) -> ImageSet:
    files = tuple(str(save_image(root / f"{i}.png", seed=i, size=size)) for i in range(num_images))
    return ImageSet(labels=torch.arange(num_images) % 4, files=files)


def image_data(classes: tuple[str, ...], num_images: int = 12) -> ImageData:
    """A data set of 32 x 32 pixels in memory; training and validation images are the same."""
    images = memory_set(num_images, 32, 32, len(classes))
    return ImageData(name="made up", classes=classes, train=images, validation=images)


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (*size, colours), dtype=np.uint8)
    Image.fromarray(values.squeeze(-1) if colours == 1 else values).convert(mode).save(path)
    return path


def image_folder(root: Path, splits: dict[str, int], classes: Iterable[str] = ("cat", "dog", "owl")) -> Path:
    """`root/<split>/<class>/<i>.png` with so many images of each class; a split named "" is the root itself."""
    for s, (split, count) in enumerate(splits.items()):
        for c, name in enumerate(classes):
            for i in range(count):
                save_image(root / split / name / f"{i:02}.png", seed=10000 * s + 100 * c + i)
    return root


def folders(root: Path, *places: str, count: int = 2) -> Path:
    """`root/<place>/<name of the place>_<i>.png`, with so many images in each place."""
    for place in places:
        for i in range(count):
            save_image(root / place / f"{place.replace('/', '_')}_{i}.png", seed=i, size=(4, 4))
    return root


def table(file: Path, *lines: str, images: Iterable[str] = ()) -> Path:
    """Write a text file, and images by their paths from its folder."""
    for name in images:
        save_image(file.parent / name, size=(4, 4))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


def listed(loaded: ImageData, part: str = "train") -> dict[str, str]:
    """The class of each image of a data set that was loaded with `memory_bytes=0`, by the name of its file."""
    images = getattr(loaded, part)
    return {
        Path(file).name: loaded.classes[label] for file, label in zip(images.files, images.labels.tolist(), strict=True)
    }


def tiny_imagenet(root: Path, num_classes: int = 3, images_per_class: int = 2) -> Path:
    """The official layout of Tiny ImageNet, with 8 x 8 images."""
    names = [f"n{i:08}" for i in range(num_classes)]
    lines = []
    for c, name in enumerate(names):
        for i in range(images_per_class):
            save_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", seed=c)
        (root / "train" / name / f"{name}_boxes.txt").write_text("not an image")
        save_image(root / "val" / "images" / f"val_{c}.JPEG", seed=c)
        lines.append(f"val_{c}.JPEG\t{name}\t0\t0\t8\t8\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    save_image(root / "test" / "images" / "test_0.JPEG")
    return root


def cifar_arrays() -> tuple[np.ndarray, np.ndarray]:
    """The six images `(6, 3072)` and labels `(6,)` of each file that `write_cifar` writes."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (6, 3072), dtype=np.uint8), np.array([3, 1, 2, 0, 9, 5], dtype=np.uint8)


def write_cifar(root: Path, name: str, *, binary: bool) -> Path:
    """The official layouts of CIFAR, with six images in each file."""
    pixels, labels = cifar_arrays()
    many = name == "cifar100"
    folder_names = ("cifar-100-python", "cifar-100-binary") if many else ("cifar-10-batches-py", "cifar-10-batches-bin")
    folder = root / folder_names[binary]
    folder.mkdir(parents=True)
    classes = [f"class{i}" for i in range(100 if many else 10)]
    files = ["train", "test"] if many else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    if binary:
        (folder / ("fine_label_names.txt" if many else "batches.meta.txt")).write_text("\n".join(classes) + "\n\n")
        records = np.column_stack([labels * 0, labels, pixels] if many else [labels, pixels])
        for file in files:
            (folder / f"{file}.bin").write_bytes(records.tobytes())
    else:
        key = "fine_label_names" if many else "label_names"
        (folder / ("meta" if many else "batches.meta")).write_bytes(pickle.dumps({key: classes}))
        for protocol, file in enumerate(files):
            content = {"fine_labels" if many else "labels": labels.tolist(), b"data": pixels}
            (folder / file).write_bytes(pickle.dumps(content, protocol=2 + protocol % 4))
    return folder


def batches_of(images: ImageSet, augmentation: AugmentationSettings, **changes: Any) -> Batches:
    """Training batches of eight images; `changes` to the schedule and to the arguments of `train_batches`.

    No worker processes unless asked for: starting them takes most of the time of a test.
    """
    schedule = {"batch_size": 8, "seed": 0}
    schedule |= {key: changes.pop(key) for key in ("batch_size", "epoch", "num_epochs", "first_step") if key in changes}
    settings = {"num_classes": 4, "num_workers": 0, **changes}
    model = settings.pop("preprocessing", preprocessing())
    return list(train_batches(images, model, augmentation, BatchSchedule(**schedule), **settings))


def equal_batches(first: Batches, second: Batches) -> bool:
    """Whether two lists of batches are the same, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(a, b) for left, right in zip(first, second, strict=True) for a, b in zip(left, right, strict=True)
    )


def columns(batches: Batches) -> tuple[Tensor, Tensor]:
    """All images and all targets of some batches."""
    images, targets = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(targets)
