"""Laws of the image data: what is found, how it is divided, and that batches are pure functions of their settings."""

import os
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from vitrim.data import augmentation, image_ops
from vitrim.data import batches as data
from vitrim.data import loading as datasets
from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import BatchSchedule, Part, eval_batches, train_batches
from vitrim.data.images import ImageSet
from vitrim.data.loading import load_data
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import DataError, SettingError

NO_MIX = {"mixup": 0.0, "cutmix": 0.0}
PLAIN = AugmentationSettings(crop="none", flip=0.0, rand_augment_ops=0, label_smoothing=0.0, **NO_MIX)
AUGMENTATIONS = {
    "default": AugmentationSettings(),
    "resized": AugmentationSettings(crop="resized", cutmix=0.0),
    "cutmix": AugmentationSettings(mixup=0.0),
    "not mixed": AugmentationSettings(**NO_MIX),
}


def preprocessing(height: int = 8, width: int | None = None, **changes: object) -> Preprocessing:
    values = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), **changes}
    return Preprocessing(img_size=(height, width or height), **values)


def memory_set(num_images: int = 40, height: int = 8, width: int = 8, num_classes: int = 4) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (num_images, 3, height, width), generator=generator, dtype=torch.uint8)
    return ImageSet(labels=torch.arange(num_images) % num_classes, pixels=pixels)


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (*size, colours), dtype=np.uint8)
    Image.fromarray(values.squeeze(-1) if colours == 1 else values).convert(mode).save(path)
    return path


def image_folder(root: Path, splits: dict[str, int], classes: Iterable[str] = ("cat", "dog", "owl")) -> Path:
    """`root/<split>/<class>/<i>.png` with so many images for each class; a split named "" is the root itself."""
    for s, (split, count) in enumerate(splits.items()):
        for c, name in enumerate(classes):
            for i in range(count):
                save_image(root / split / name / f"{i:02}.png", seed=10000 * s + 100 * c + i)
    return root


def file_set(root: Path, num_images: int = 24, size: tuple[int, int] = (12, 10)) -> ImageSet:
    files = tuple(str(save_image(root / f"{i}.png", seed=i, size=size)) for i in range(num_images))
    return ImageSet(labels=torch.arange(num_images) % 4, files=files)


def run(images: ImageSet, augmentation: AugmentationSettings, **changes: object) -> list[tuple[Tensor, Tensor]]:
    schedule = {"batch_size": 8, "seed": 0}
    schedule |= {key: changes.pop(key) for key in ("batch_size", "epoch", "num_epochs", "first_step") if key in changes}
    settings = {"num_classes": 4, **changes}
    model = settings.pop("preprocessing", preprocessing())
    return list(train_batches(images, model, augmentation, BatchSchedule(**schedule), **settings))


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for left, right in zip(first, second, strict=True) for a, b in zip(left, right, strict=True)
    )


@pytest.fixture(params=["memory", "files"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSet:
    return memory_set(24, 12, 10) if request.param == "memory" else file_set(tmp_path)


# Batches are pure functions


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_resuming_gives_the_tail_of_the_epoch(images: ImageSet, augmentation: AugmentationSettings) -> None:
    assert same(run(images, augmentation, first_step=1), run(images, augmentation)[1:])


def test_batches_do_not_depend_on_global_random_state_and_leave_it_alone(images: ImageSet) -> None:
    expected = run(images, AugmentationSettings())
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert same(run(images, AugmentationSettings()), expected)
        list(eval_batches(images, preprocessing(), batch_size=5))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_workers_do_not_change_what_is_streamed(tmp_path: Path) -> None:
    images = file_set(tmp_path)
    assert same(run(images, AugmentationSettings(), num_workers=2), run(images, AugmentationSettings()))


def test_workers_by_default_have_a_core_each_and_room_for_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    assert [data.default_num_workers(preprocessing(), 8, 100, parts) for parts in (1, 2, 16)] == [8, 4, 1]
    assert data.default_num_workers(preprocessing(), 8, 3, 1) == 3  # not more than batches
    monkeypatch.setattr(data, "SHARED_MEMORY", Path(__file__).parent)
    batch_bytes = 8 * 3 * 8 * 8
    for room, workers in ((batch_bytes, 0), (3 * batch_bytes, 1), (8 * batch_bytes, 2)):
        monkeypatch.setattr(data.shutil, "disk_usage", lambda _, room=room: type("Usage", (), {"free": room}))
        assert data.default_num_workers(preprocessing(), 8, 100, 1) == workers


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_follow_one_another(images: ImageSet, num_workers: int) -> None:
    alone = [batch for epoch in (0, 1, 2) for batch in run(images, AugmentationSettings(), epoch=epoch)]
    for epoch, first_step in ((0, 0), (0, 2), (1, 1)):
        changes = {"epoch": epoch, "first_step": first_step, "num_epochs": 3 - epoch, "num_workers": num_workers}
        assert same(run(images, AugmentationSettings(), **changes), alone[3 * epoch + first_step :])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
def test_how_many_batches_are_made_together_changes_nothing(
    augmentation: AugmentationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, model = memory_set(64, 13, 9), preprocessing(13, 9)
    expected = run(images, augmentation, preprocessing=model)
    for batches in (1, 3):
        monkeypatch.setattr(data, "MAX_VALUES_TOGETHER", batches * 8 * 3 * 13 * 9)
        assert same(run(images, augmentation, preprocessing=model), expected)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_together_are_the_whole_batch(images: ImageSet, augmentation: AugmentationSettings, parts: int) -> None:
    whole = run(images, augmentation)
    assert len(whole) == 3
    for part in range(parts):
        positions = Part(index=part, count=parts).positions(8)
        expected = [(pixels[positions], targets[positions]) for pixels, targets in whole]
        assert same(run(images, augmentation, part=Part(index=part, count=parts)), expected)
    assert torch.cat([Part(index=part, count=parts).positions(8) for part in range(parts)]).sort()[0].tolist() == [
        *range(8)
    ]


@pytest.mark.parametrize("side", [7, 9, 32])
def test_parts_law_holds_for_sizes_that_are_no_multiple_of_a_vector(side: int) -> None:
    images, model = memory_set(64, side, side), preprocessing(side)
    augmentation = AugmentationSettings(crop="resized", rand_augment_ops=3)
    whole = run(images, augmentation, batch_size=64, preprocessing=model)
    for part in range(4):
        positions = Part(index=part, count=4).positions(64)
        own = run(images, augmentation, batch_size=64, preprocessing=model, part=Part(index=part, count=4))
        assert same(own, [(pixels[positions], targets[positions]) for pixels, targets in whole])


def test_each_image_is_seen_once_an_epoch_in_an_order_that_changes(images: ImageSet) -> None:
    many = ImageSet(labels=torch.arange(24), pixels=images.pixels, files=images.files)
    orders = []
    for epoch in (0, 1):
        targets = torch.cat([targets for _, targets in run(many, PLAIN, num_classes=24, epoch=epoch)])
        orders.append(targets.argmax(dim=1).tolist())
        assert sorted(orders[-1]) == [*range(24)]
    assert orders[0] != orders[1]


def test_draws_differ_between_images_and_between_epochs() -> None:
    pixels = memory_set(1, 32, 32).pixels.repeat(8, 1, 1, 1)
    images = ImageSet(labels=torch.arange(8) % 4, pixels=pixels)
    (first, _), (second, _) = (
        run(images, AugmentationSettings(**NO_MIX), epoch=epoch, preprocessing=preprocessing(32))[0] for epoch in (0, 1)
    )
    views = torch.cat([first, second]).flatten(1)
    assert len(views.unique(dim=0)) == 16


def test_a_small_set_makes_one_even_batch() -> None:
    images = memory_set(7)
    assert data.num_train_steps(images, 8) == 1
    assert [len(pixels) for pixels, _ in run(images, AugmentationSettings())] == [6]


def test_incomplete_last_batch_is_dropped() -> None:
    images = memory_set(30)
    assert data.num_train_steps(images, 8) == len(run(images, PLAIN)) == 3


# What the changes do


def test_without_augmentation_training_sees_the_images_of_evaluation(images: ImageSet) -> None:
    for model in (preprocessing(12, 10), preprocessing(16, crop_pct=0.9)):
        if images.in_memory and model.img_size != (12, 10):
            continue  # in memory, training resizes without cutting
        expected = torch.cat([pixels for pixels, _ in eval_batches(images, model, batch_size=24)])
        order = torch.cat(
            [
                targets
                for _, targets in run(
                    ImageSet(labels=torch.arange(24), pixels=images.pixels, files=images.files), PLAIN, num_classes=24
                )
            ]
        ).argmax(dim=1)
        assert torch.equal(
            torch.cat([pixels for pixels, _ in run(images, PLAIN, preprocessing=model)]), expected[order]
        )


def test_targets_are_distributions_and_smoothing_spreads_them(images: ImageSet) -> None:
    for _, targets in run(images, AugmentationSettings()):
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    _, smoothed = run(images, AugmentationSettings(**NO_MIX, label_smoothing=0.2))[0]
    assert smoothed.unique().tolist() == pytest.approx([0.05, 0.85])


def test_batches_have_the_size_of_the_model(images: ImageSet) -> None:
    for crop in ("none", "pad", "resized"):
        for pixels, _ in run(images, AugmentationSettings(crop=crop), preprocessing=preprocessing(16, 20)):
            assert pixels.shape == (8, 3, 16, 20) and pixels.dtype == torch.float32


def test_shift_is_a_crop_after_reflecting_padding() -> None:
    images = memory_set(6, 9, 7).pixels
    box = torch.tensor([[-3, 2], [0, 0], [3, -2], [1, 1], [-1, -1], [2, 3]])
    padded = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    expected = [padded[i, :, 3 + y : 12 + y, 3 + x : 10 + x] for i, (y, x) in enumerate(box.tolist())]
    assert torch.equal(image_ops.shift(images, box), torch.stack(expected))


def test_zoom_is_a_resized_crop() -> None:
    images = memory_set(5, 16, 12).pixels
    box = augmentation.random_boxes(5, 16, 12, 0.3, torch.Generator().manual_seed(0))
    zoomed = image_ops.zoom(images, box, "bilinear")
    for i, (top, left, height, width) in enumerate(box.tolist()):
        crop = F.resized_crop(images[i : i + 1], top, left, height, width, [16, 12], antialias=True)
        # Only the border differs: a crop repeats its edge, a zoom sees the neighbours outside the box.
        assert (zoomed[i].int() - crop[0].int())[:, 3:-3, 3:-3].abs().max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (20, 60)])
def test_random_boxes_lie_inside_and_keep_scale_and_aspect(size: tuple[int, int]) -> None:
    top, left, height, width = augmentation.random_boxes(500, *size, 0.35, torch.Generator().manual_seed(0)).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= size[0] and (left + width).max() <= size[1]
    aspect = width / height
    assert aspect.min() > 0.75 * 0.88 and aspect.max() < 4 / 3 * 1.12  # sides are rounded to pixels
    if size[0] == size[1]:
        area = height * width / (size[0] * size[1])
        assert area.min() > 0.3 and area.max() <= 1 and area.std() > 0.1


def test_rand_augment_keeps_type_and_shape_and_does_nothing_without_operations() -> None:
    images = memory_set(28, 12, 10).pixels
    before = images.clone()
    every = torch.arange(28)[:, None] % 14
    changed = image_ops.rand_augment(images, every, torch.ones_like(every), 9, (128.0,) * 3)
    assert changed.dtype == torch.uint8 and changed.shape == images.shape and torch.equal(images, before)
    nothing = torch.zeros(28, 0, dtype=torch.int64)
    assert torch.equal(image_ops.rand_augment(images, nothing, nothing, 9, (128.0,) * 3), images)


def test_rand_augment_treats_each_image_by_itself() -> None:
    images = memory_set(28, 16, 16).pixels
    ops = torch.arange(28)[:, None] % 14
    sign = torch.where(torch.arange(28)[:, None] < 14, 1, -1)
    together = image_ops.rand_augment(images, ops, sign, 15, (0.0,) * 3)
    one_by_one = [
        image_ops.rand_augment(images[i : i + 1], ops[i : i + 1], sign[i : i + 1], 15, (0.0,) * 3) for i in range(28)
    ]
    assert torch.equal(together, torch.cat(one_by_one))
    unchanged = (together == images).flatten(1).all(dim=1)
    assert unchanged[5] and unchanged.sum() <= 6  # noise may have full range and equal counts already


@pytest.mark.parametrize(
    ("op", "strength", "reference"),
    [
        (0, 0.2, lambda x: _torchvision_affine(x, shear=[np.degrees(np.arctan(0.2)), 0.0], center=[0, 0])),
        (1, 0.2, lambda x: _torchvision_affine(x, shear=[0.0, np.degrees(np.arctan(0.2))], center=[0, 0])),
        (2, 0.2, lambda x: _torchvision_affine(x, translate=[-4, 0])),
        (3, 0.2, lambda x: _torchvision_affine(x, translate=[0, -3])),
        (4, 0.5, lambda x: F.rotate(x, np.degrees(0.5), F.InterpolationMode.BILINEAR, fill=[90.0] * 3)),
    ],
)
def test_move_is_torchvisions_but_for_the_edge(op: int, strength: float, reference: Callable) -> None:
    images = torch.nn.functional.interpolate(memory_set(4, 4, 5).pixels, (16, 20), mode="bilinear")
    moved = image_ops.move(images, torch.full((4,), op), torch.full((4,), strength), (90.0,) * 3)
    differs = (moved.int() - reference(images).int()).abs() > 1
    assert differs.float().mean() < 0.15  # torchvision mixes in the fill colour twice half-way over the edge


def _torchvision_affine(images: Tensor, **changes: object) -> Tensor:
    settings = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **changes}
    return F.affine(images, interpolation=F.InterpolationMode.BILINEAR, fill=[90.0] * 3, **settings)


# Evaluation


def test_evaluation_keeps_order_and_parts_are_contiguous(images: ImageSet) -> None:
    whole = list(eval_batches(images, preprocessing(), batch_size=7))
    assert [len(labels) for _, labels in whole] == [7, 7, 7, 3]
    assert torch.equal(torch.cat([labels for _, labels in whole]), images.labels)
    shares = [
        list(eval_batches(images, preprocessing(), batch_size=4, part=Part(index=part, count=5))) for part in range(5)
    ]
    for column in (0, 1):
        pieces = [batch[column] for share in shares for batch in share]
        assert torch.equal(torch.cat(pieces), torch.cat([batch[column] for batch in whole]))


@pytest.mark.parametrize("model", [preprocessing(12, 10, crop_pct=0.9), preprocessing(16, crop_pct=0.9)])
def test_streaming_and_memory_evaluate_the_same_pixels(tmp_path: Path, model: Preprocessing) -> None:
    files = file_set(tmp_path)
    memory = ImageSet(labels=files.labels, pixels=torch.stack([datasets.read_image(file) for file in files.files]))
    assert same(*(list(eval_batches(images, model, batch_size=7)) for images in (files, memory)))


def test_small_images_of_the_models_size_are_only_normalised() -> None:
    images = memory_set(4)
    ((pixels, _),) = eval_batches(images, preprocessing(8, crop_pct=0.875), batch_size=4)
    mean, std = torch.tensor((0.5, 0.4, 0.3)), torch.tensor((0.2, 0.3, 0.4))
    expected = (images.pixels / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(pixels, expected)


# Image sets


def test_sample_is_balanced_deterministic_and_nested() -> None:
    images = memory_set(43)
    sample = images.sample(10, seed=3)
    assert torch.bincount(sample.labels).max() - torch.bincount(sample.labels).min() <= 1
    assert torch.equal(sample.pixels, images.sample(20, seed=3).pixels[:10])
    assert not torch.equal(sample.pixels, images.sample(10, seed=4).pixels)
    assert images.sample(99, seed=3) is images


def test_subset_takes_images_with_their_labels(images: ImageSet) -> None:
    part = images.subset([5, 2])
    assert part.labels.tolist() == [1, 2] and len(part) == part.num_images == 2
    assert part.files == (() if images.in_memory else (images.files[5], images.files[2]))


def test_fingerprint_follows_content_and_not_place(tmp_path: Path) -> None:
    for memory_bytes in (0, 1 << 20):
        prints = []
        for place in ("a", "b"):
            root = image_folder(tmp_path / place, {"train": 3, "val": 1})
            prints.append(load_data(root, memory_bytes=memory_bytes).fingerprint())
        assert prints[0] == prints[1]
        save_image(tmp_path / "b" / "train" / "cat" / "00.png", seed=5 + memory_bytes, size=(8, 9))
        assert load_data(tmp_path / "b", memory_bytes=memory_bytes).fingerprint() != prints[0]


# Finding and dividing


def test_digits_are_split_by_class_and_say_so() -> None:
    digits = load_data("digits")
    assert digits.train.num_images + digits.validation.num_images == 1797 and digits.validation.num_images == 450
    assert digits.train.pixels.shape[1:] == (3, 8, 8) and digits.train.pixels.max() == 255
    assert digits.notes == ("validation split cut from training: 25 % per class, seed 0",)


def test_image_folder_in_memory_equals_its_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 4, "Test": 2})
    loaded, streamed = load_data(root), load_data(root, memory_bytes=0)
    assert loaded.classes == ("cat", "dog", "owl") and loaded.notes == ()
    assert loaded.train.in_memory and not streamed.train.in_memory
    for name in ("train", "validation"):
        memory, files = getattr(loaded, name), getattr(streamed, name)
        assert torch.equal(memory.pixels, torch.stack([datasets.read_image(file) for file in files.files]))
        assert torch.equal(memory.labels, files.labels)


def test_images_of_different_sizes_are_streamed(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 40, "val": 2})
    save_image(root / "train" / "dog" / "13.png", size=(9, 8))
    loaded = load_data(root)
    assert not loaded.train.in_memory and loaded.validation.in_memory and loaded.train.num_images == 120


def test_missing_validation_is_cut_from_training(tmp_path: Path) -> None:
    for root in (image_folder(tmp_path / "a", {"": 20}), image_folder(tmp_path / "b", {"train": 20})):
        loaded = load_data(root, memory_bytes=0)
        assert torch.bincount(loaded.validation.labels).tolist() == [2, 2, 2]
        assert not set(loaded.train.files) & set(loaded.validation.files)
        assert loaded.notes == ("validation split cut from training: 10 % per class, seed 0",)


def test_holdout_replaces_validation_and_limit_thins_what_is_left(tmp_path: Path) -> None:
    root = image_folder(tmp_path, {"train": 10, "val": 2})
    both = [load_data(root, holdout=0.2, limit_per_class=limit, memory_bytes=0) for limit in (3, 5)]
    for loaded, limit in zip(both, (3, 5), strict=True):
        assert torch.bincount(loaded.train.labels).tolist() == [limit] * 3
        assert torch.bincount(loaded.validation.labels).tolist() == [2, 2, 2]
        assert not set(loaded.train.files) & set(loaded.validation.files)
        assert all("train" in file for file in loaded.validation.files) and len(loaded.notes) == 2
    assert both[0].validation.files == both[1].validation.files
    assert set(both[0].train.files) < set(both[1].train.files)
    assert load_data(root, holdout=0.2, memory_bytes=0, seed=1).validation.files != both[0].validation.files
    untouched = load_data(root, limit_per_class=1, memory_bytes=0)
    assert all("/val/" in Path(file).as_posix() for file in untouched.validation.files)


def tiny_imagenet(root: Path, num_classes: int = 3) -> Path:
    names = [f"n{i:08}" for i in range(num_classes)]
    lines = []
    for c, name in enumerate(names):
        for i in range(2):
            save_image(root / "train" / name / "images" / f"{name}_{i}.JPEG", seed=c)
        (root / "train" / name / f"{name}_boxes.txt").write_text("not an image")
        save_image(root / "val" / "images" / f"val_{c}.JPEG", seed=c)
        lines.append(f"val_{c}.JPEG\t{name}\t0\t0\t8\t8\n")
    (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    save_image(root / "test" / "images" / "test_0.JPEG")
    return root


def test_official_tiny_imagenet_is_recognised(tmp_path: Path) -> None:
    loaded = load_data(tiny_imagenet(tmp_path), strict=True)
    assert loaded.classes == ("n00000000", "n00000001", "n00000002") and loaded.notes == ()
    assert loaded.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and loaded.validation.labels.tolist() == [2, 1, 0]
    assert torch.equal(loaded.train.pixels[4], loaded.validation.pixels[0])  # the same seed, so the same picture


def test_named_data_set_is_found_by_folder_parent_or_archive(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path / "disk" / "tiny-imagenet-200", num_classes=200)
    (tmp_path / "archives").mkdir()
    with zipfile.ZipFile(tmp_path / "archives" / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted((tmp_path / "disk").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "disk"))
    prints = {
        load_data("tiny-imagenet", data_dir=place, cache_dir=tmp_path / "cache").fingerprint()
        for place in (tmp_path / "disk", tmp_path / "disk" / "tiny-imagenet-200", tmp_path / "archives")
    }
    assert len(prints) == 1


def cifar_arrays() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (6, 3072), dtype=np.uint8), np.array([3, 1, 2, 0, 9, 5], dtype=np.uint8)


def write_cifar(root: Path, name: str, binary: bool) -> Path:
    """The official layouts with six images in each file."""
    pixels, labels = cifar_arrays()
    many = name == "cifar100"
    folder = root / {(0, 0): "cifar-10-batches-py", (0, 1): "cifar-10-batches-bin", (1, 0): "cifar-100-python"}.get(
        (many, binary), "cifar-100-binary"
    )
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


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("binary", [False, True])
def test_cifar_layouts_are_recognised(tmp_path: Path, name: str, binary: bool) -> None:
    folder = write_cifar(tmp_path / "disk", name, binary)
    (tmp_path / "archives").mkdir()
    with tarfile.open(tmp_path / "archives" / f"{folder.name}.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    pixels, labels = cifar_arrays()
    for place in (folder, folder.parent, tmp_path / "archives"):
        loaded = load_data(name, data_dir=place, cache_dir=tmp_path / "cache")
        assert len(loaded.classes) == (10 if name == "cifar10" else 100) and loaded.classes[1] == "class1"
        assert torch.equal(loaded.validation.pixels, torch.from_numpy(pixels.reshape(6, 3, 32, 32)))
        assert loaded.validation.labels.tolist() == labels.tolist()
        assert loaded.train.num_images == (30 if name == "cifar10" else 6)


def test_pickle_written_by_old_numpy_is_read(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar10", binary=False)
    current = pickle.dumps({"labels": [1], "data": np.zeros((1, 3072), dtype=np.uint8)}, protocol=2)
    old = current.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    (folder / "test_batch").write_bytes(old)
    assert load_data("cifar10", data_dir=folder).validation.num_images == 1


class Attack:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("attacked",)


def test_pickle_with_code_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_cifar(tmp_path, "cifar10", binary=False)
    (folder / "data_batch_3").write_bytes(pickle.dumps({"data": Attack()}))
    with pytest.raises(DataError, match=r"mkdir.*attack"):
        load_data("cifar10", data_dir=folder)
    assert not Path("attacked").exists()


def test_failed_download_names_url_cache_and_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fail)
    with pytest.raises(DataError, match=r"cifar-10-binary.*no network.*--data-dir") as caught:
        load_data("cifar10", cache_dir=tmp_path / "cache")
    assert str(tmp_path / "cache") in str(caught.value) and not list((tmp_path / "cache").iterdir())


def test_download_is_kept_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cifar(tmp_path / "server", "cifar10", binary=True)
    calls = []

    def fetch(url: str, root: str, md5: str) -> None:
        calls.append((url, md5))
        with tarfile.open(Path(root) / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.add(folder, folder.name)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_data("cifar10").fingerprint() == load_data("cifar10").fingerprint()
    assert calls == [("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530")]


# Decoding


@pytest.mark.parametrize("suffix", ["png", "JPG", "webp", "bmp", "tif", "gif", "ppm"])
def test_every_format_is_an_image(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        for i in range(2):
            save_image(tmp_path / name / f"{i}.{suffix}")
    assert load_data(tmp_path).train.pixels.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.linear_gradient("L").resize((8, 8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        through = {"P": grey.quantize(), "CMYK": grey.convert("RGB"), "RGBA": grey.convert("RGB")}
        image = through.get(mode, grey).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path, **({"transparency": b"\x00" * 8} if mode == "P" else {}))
    decoded = datasets.read_image(str(path))
    assert decoded.shape == (3, 8, 8) and decoded.dtype == torch.uint8
    if mode != "1":
        assert (decoded.int() - torch.from_numpy(np.array(grey)).int()).abs().max() <= 4


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_broken_files_are_skipped_and_named_or_refused(tmp_path: Path, memory_bytes: int) -> None:
    root = image_folder(tmp_path, {"train": 5, "val": 3})
    (root / "train" / "cat" / "01.png").write_bytes(b"no image")
    (root / "train" / "dog" / "02.png").write_bytes(b"")
    (root / "val" / "dog" / "00.png").write_text("<html>")
    (root / "train" / "owl" / "list.csv").write_text("a,b")
    (root / "train" / "owl" / ".hidden").write_text("not counted")
    loaded = load_data(root, memory_bytes=memory_bytes)
    assert (loaded.train.num_images, loaded.validation.num_images) == (13, 8)
    names = ", ".join(os.path.join(*pair) for pair in (("owl", "list.csv"), ("cat", "01.png"), ("dog", "02.png")))
    assert loaded.notes == (f"skipped 4 files that are not readable images: {names}, ...",)
    with pytest.raises(DataError, match=r"list\.csv is not an image"):
        load_data(root, strict=True)
    (root / "train" / "owl" / "list.csv").unlink()
    with pytest.raises(DataError, match=r"01\.png cannot be decoded"):
        load_data(root, strict=True, memory_bytes=memory_bytes)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_file_that_goes_bad_while_streaming_is_named(tmp_path: Path, num_workers: int) -> None:
    images = file_set(tmp_path)
    Path(images.files[3]).write_bytes(Path(images.files[3]).read_bytes()[:60])
    with pytest.raises(DataError, match=r"3\.png cannot be decoded") as found:
        run(images, PLAIN, num_workers=num_workers)
    assert "\n" not in str(found.value)


# Errors


def _ruin(root: Path, split: str = "train") -> None:
    for path in (root / split).rglob("*.png"):
        path.write_bytes(b"no image")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda root: None, "no data set or folder.*give the path.*cifar10"),
    "file": (lambda root: save_image(root.with_suffix(".png")).rename(root), "is a file.*unpack"),
    "empty": (lambda root: root.mkdir(), "is empty"),
    "flat": (lambda root: save_image(root / "a.png"), "1 files but no class folders"),
    "one class": (lambda root: image_folder(root, {"": 2}, ["cat"]), "only one class folder, 'cat'"),
    "no images": (lambda root: [(root / n).mkdir(parents=True) for n in "ab"], "no image in any of its 2 folders"),
    "empty class": (lambda root: (image_folder(root, {"": 2}) / "emu").mkdir(), "emu has no image"),
    "only val": (lambda root: image_folder(root, {"val": 2}), "folder val but no folder train"),
    "unknown class": (
        lambda root: (image_folder(root, {"train": 2}), image_folder(root, {"val": 1}, ["cat", "emu"])),
        "class 'emu'.*has not",
    ),
    "mostly broken": (lambda root: _ruin(image_folder(root, {"train": 2, "val": 2})), "6 of 6 training images cannot"),
    "broken class": (
        lambda root: _ruin(image_folder(root, {"train": 2, "val": 2}), "train/cat"),
        "'cat' has no readable",
    ),
    "too few": (lambda root: image_folder(root, {"": 1}), "only one image"),
    "bad annotation": (
        lambda root: (tiny_imagenet(root) / "val" / "val_annotations.txt").write_text("val_0.JPEG n0"),
        "Line 1 of .*val_annotations.txt",
    ),
}


@pytest.mark.parametrize(("build", "message"), FOLDERS.values(), ids=FOLDERS)
def test_unusable_folder_is_refused_with_a_reason(tmp_path: Path, build: Callable, message: str) -> None:
    build(tmp_path / "images")
    with pytest.raises(DataError, match=message):
        load_data(tmp_path / "images")


def test_data_dir_that_holds_something_else_says_what_was_looked_for(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 1, "val": 1})
    with pytest.raises(DataError, match=r"cifar-100-python.*archive.*100 class folders"):
        load_data("cifar100", data_dir=tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_data("cifar100", data_dir=tmp_path / "absent")


def test_damaged_cifar_files_and_archives_are_named(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar10", binary=True)
    for content, message in ((b"123", "3 bytes"), (bytes([77]) + bytes(3072), "labels below 10")):
        (folder / "data_batch_2.bin").write_bytes(content)
        with pytest.raises(DataError, match=rf"data_batch_2.*{message}"):
            load_data("cifar10", data_dir=folder)
    (folder / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"lacks the file data_batch_2\.bin"):
        load_data(folder)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "cifar10.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"Could not unpack .*cifar10\.zip"):
        load_data("cifar10", data_dir=tmp_path / "archives", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    "settings", [{"holdout": 1.0}, {"limit_per_class": 0}, {"data_dir": "somewhere"}], ids=lambda s: next(iter(s))
)
def test_settings_of_loading_are_checked(settings: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(settings))):
        load_data("digits", **settings)


@pytest.mark.parametrize(
    "field",
    [{"crop": "centre"}, {"padding": 1.0}, {"min_scale": 0.0}, {"flip": 2.0}, {"rand_augment_ops": -1},
     {"rand_augment_magnitude": 31}, {"mixup": -1.0}, {"cutmix": -0.1}, {"mix_probability": 1.1},
     {"label_smoothing": 1.0}],
    ids=lambda field: next(iter(field)),
)  # fmt: skip
def test_augmentation_settings_are_checked(field: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(field))):
        AugmentationSettings(**field)


def test_preprocessing_round_trips_and_is_checked() -> None:
    model = preprocessing(8, 12, crop_pct=0.9)
    assert Preprocessing.from_dict(model.to_dict()) == model
    for changes in ({"mean": (0.5,)}, {"std": (0.0, 1.0, 1.0)}, {"interpolation": "lanczos"}, {"crop_pct": 0.0}):
        with pytest.raises(SettingError, match=next(iter(changes))):
            Preprocessing(**{**vars(model), **changes})
    with pytest.raises(SettingError, match="colour"):
        Preprocessing.from_dict({**model.to_dict(), "colour": 1})


def test_batches_that_cannot_be_made_are_refused() -> None:
    images = memory_set(12)
    for changes, kind, message in (
        ({"batch_size": 6, "part": Part(count=2)}, SettingError, "multiple of 4"),
        ({"batch_size": 0}, SettingError, "multiple of 2"),
        ({"batch_size": 32, "part": Part(count=16)}, DataError, "12 images; at least 32"),
        ({"num_classes": 3}, DataError, "4 classes or more but the model has 3"),
    ):
        with pytest.raises(kind, match=message):
            run(images, PLAIN, **changes)
    with pytest.raises(SettingError, match="part is 2"):
        Part(index=2, count=2)
