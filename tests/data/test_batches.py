"""Laws of batches: they are pure functions of their settings, and the parts of a batch are the whole batch."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders.fake_gpu import fake_gpu
from builders.images import (
    AUGMENTATIONS,
    NO_AUGMENTATION,
    NO_MIX,
    batches_of,
    columns,
    equal_batches,
    file_set,
    memory_set,
    preprocessing,
    save_image,
)
from builders.worker_counts import counted_workers
from vitrim.data import batches
from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import Part, eval_batches, num_train_steps
from vitrim.data.files.pixels import PixelFormat
from vitrim.data.images import ImageSet
from vitrim.data.loading import read_image
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import DataError, SettingError

every_augmentation = pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


def one_class_each(images: ImageSet) -> ImageSet:
    """The same images with their index as label, so that targets say which image is where."""
    return ImageSet(labels=torch.arange(len(images)), pixels=images.pixels, files=images.files)


# Training batches


@every_augmentation
def test_a_resumed_epoch_continues_with_the_same_batches(images: ImageSet, augmentation: AugmentationSettings) -> None:
    assert equal_batches(batches_of(images, augmentation, first_step=1), batches_of(images, augmentation)[1:])


def test_batches_neither_use_nor_change_the_global_random_state(images: ImageSet) -> None:
    expected = batches_of(images, AugmentationSettings())
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        # Workers are started once: torch draws their seed in this process.
        found = batches_of(images, AugmentationSettings(), num_workers=2 if seed == 1 else 0)
        assert equal_batches(found, expected)
        list(eval_batches(images, preprocessing(), batch_size=12, num_workers=2 if seed == 2 else 0))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


@every_augmentation
def test_batches_do_not_depend_on_how_many_are_made_together(
    augmentation: AugmentationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, model = memory_set(64, 13, 9), preprocessing(13, 9)
    expected = batches_of(images, augmentation, preprocessing=model)
    for num_batches in (1, 3):
        monkeypatch.setattr(batches, "MAX_VALUES_TOGETHER", num_batches * 8 * 3 * 13 * 9)
        assert equal_batches(batches_of(images, augmentation, preprocessing=model), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_several_epochs_are_the_single_epochs_one_after_another(images: ImageSet, num_workers: int) -> None:
    single = [batch for epoch in (0, 1, 2) for batch in batches_of(images, AugmentationSettings(), epoch=epoch)]
    for epoch, first_step in ((0, 0), (0, 2), (1, 1)):
        changes = {"epoch": epoch, "first_step": first_step, "num_epochs": 3 - epoch, "num_workers": num_workers}
        found = batches_of(images, AugmentationSettings(), **changes)
        assert equal_batches(found, single[3 * epoch + first_step :])


def test_each_image_occurs_once_in_an_epoch_and_the_order_changes(images: ImageSet) -> None:
    orders = []
    for epoch in (0, 1):
        _, targets = columns(batches_of(one_class_each(images), NO_AUGMENTATION, num_classes=24, epoch=epoch))
        orders.append(targets.argmax(dim=1).tolist())
        assert sorted(orders[-1]) == [*range(24)]
    assert orders[0] != orders[1]


def test_a_small_set_makes_one_batch_of_even_size() -> None:
    images = memory_set(7)
    assert num_train_steps(images, 8) == 1
    assert [len(pixels) for pixels, _ in batches_of(images, AugmentationSettings())] == [6]


def test_an_incomplete_last_batch_is_dropped() -> None:
    images = memory_set(30)
    assert num_train_steps(images, 8) == len(batches_of(images, NO_AUGMENTATION)) == 3


def test_without_augmentation_training_sees_the_pixels_of_evaluation(images: ImageSet) -> None:
    for model in (preprocessing(12, 10), preprocessing(16, crop_pct=0.9)):
        if images.in_memory and model.img_size != (12, 10):
            continue  # in memory, training resizes without a crop
        expected, _ = columns(list(eval_batches(images, model, batch_size=24, num_workers=0)))
        _, targets = columns(batches_of(one_class_each(images), NO_AUGMENTATION, num_classes=24))
        found, _ = columns(batches_of(images, NO_AUGMENTATION, preprocessing=model))
        assert torch.equal(found, expected[targets.argmax(dim=1)])


def test_targets_are_distributions_and_label_smoothing_spreads_them(images: ImageSet) -> None:
    for _, targets in batches_of(images, AugmentationSettings()):
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    _, smoothed = batches_of(images, AugmentationSettings(**NO_MIX, label_smoothing=0.2))[0]
    assert smoothed.unique().tolist() == pytest.approx([0.05, 0.85])


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_images_have_the_size_that_the_model_expects(images: ImageSet, crop: Any) -> None:
    for pixels, _ in batches_of(images, AugmentationSettings(crop=crop), preprocessing=preprocessing(16, 20)):
        assert pixels.shape == (8, 3, 16, 20) and pixels.dtype == torch.float32


def test_batches_that_cannot_be_made_are_refused() -> None:
    images = memory_set(12)
    for changes, kind, message in (
        ({"batch_size": 6, "part": Part(count=2)}, SettingError, "multiple of 4"),
        ({"batch_size": 0}, SettingError, "multiple of 2"),
        ({"batch_size": 32, "part": Part(count=16)}, DataError, "12 images; at least 32"),
        ({"num_classes": 3}, DataError, "4 classes or more but the model has 3"),
    ):
        with pytest.raises(kind, match=message):
            batches_of(images, NO_AUGMENTATION, **changes)
    with pytest.raises(SettingError, match="part is 2"):
        Part(index=2, count=2)


# Parts


@every_augmentation
@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_together_are_the_whole_batch(
    images: ImageSet, augmentation: AugmentationSettings, count: int
) -> None:
    whole = batches_of(images, augmentation)
    assert len(whole) == 3
    parts = [Part(index=index, count=count) for index in range(count)]
    for part in parts:
        positions = part.positions(8)
        expected = [(pixels[positions], targets[positions]) for pixels, targets in whole]
        assert equal_batches(batches_of(images, augmentation, part=part), expected)
    assert torch.cat([part.positions(8) for part in parts]).sort()[0].tolist() == [*range(8)]


@pytest.mark.parametrize("side", [7, 9, 32])
def test_the_parts_are_exact_for_sides_that_are_no_multiple_of_a_vector(side: int) -> None:
    images, model = memory_set(64, side, side), preprocessing(side)
    augmentation = AugmentationSettings(crop="resized", rand_augment_ops=3)
    whole = batches_of(images, augmentation, batch_size=64, preprocessing=model)
    for index in range(4):
        part = Part(index=index, count=4)
        positions = part.positions(64)
        found = batches_of(images, augmentation, batch_size=64, preprocessing=model, part=part)
        assert equal_batches(found, [(pixels[positions], targets[positions]) for pixels, targets in whole])


# On a GPU


@every_augmentation
@pytest.mark.parametrize("stored_on", ["cuda", "cpu"])
def test_making_batches_sends_few_bytes_and_never_waits_for_the_gpu(
    augmentation: AugmentationSettings, stored_on: str
) -> None:
    with fake_gpu() as counts:
        pixels = torch.zeros(128, 3, 32, 32, dtype=torch.uint8, device=stored_on)
        images = ImageSet(labels=torch.arange(128) % 4, pixels=pixels)
        made = batches_of(images, augmentation, batch_size=64, preprocessing=preprocessing(48), device="cuda")
        assert [(len(batch), batch.device.type, targets.device.type) for batch, targets in made] == 2 * [
            (64, "cuda", "cuda")
        ]
    own_bytes = 3 * 32 * 32 if stored_on == "cpu" else 0
    assert counts.bytes_to_device <= 128 * (own_bytes + 96)
    assert len(counts.sent) <= 4 + 2 * 2  # for both batches together, and for each of them


@pytest.mark.parametrize("stored_on", ["cuda", "cpu"])
def test_evaluating_sends_pixels_and_labels_and_never_waits_for_the_gpu(stored_on: str) -> None:
    with fake_gpu() as counts:
        pixels = torch.zeros(128, 3, 32, 32, dtype=torch.uint8, device=stored_on)
        images = ImageSet(labels=torch.arange(128) % 4, pixels=pixels)
        made = list(eval_batches(images, preprocessing(48), batch_size=64, device="cuda"))
        assert [batch.device.type for batch, _ in made] == ["cuda", "cuda"]
    assert counts.bytes_to_device <= 128 * (8 + (3 * 32 * 32 if stored_on == "cpu" else 0)) + 2 * 32


# Workers


@pytest.mark.parametrize("num_workers", [2, "auto"])
def test_workers_do_not_change_what_is_streamed(tmp_path: Path, num_workers: Any) -> None:
    images, settings = file_set(tmp_path), AugmentationSettings()
    assert equal_batches(batches_of(images, settings, num_workers=num_workers), batches_of(images, settings))


def test_the_images_say_how_many_workers_decode_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, counts = file_set(tmp_path), counted_workers(monkeypatch)
    cases: tuple[tuple[Any, Any, int], ...] = (("auto", 0, 0), ("auto", 2, 2), (1, 0, 1), (0, "auto", 0))
    for asked, stated, expected in cases:
        batches_of(images.with_num_workers(stated), NO_AUGMENTATION, num_workers=asked)
        list(eval_batches(images.with_num_workers(stated), preprocessing(), batch_size=4, num_workers=asked))
        assert counts == [expected, expected]
        counts.clear()


def broken(file: str) -> None:
    """Truncate an image file, as a copy that was interrupted."""
    Path(file).write_bytes(Path(file).read_bytes()[:60])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_breaks_during_streaming_of_a_strict_set_is_named(tmp_path: Path, num_workers: int) -> None:
    images = replace(file_set(tmp_path), strict=True)
    broken(images.files[3])
    with pytest.raises(DataError, match=r"3\.png cannot be decoded") as found:
        batches_of(images, NO_AUGMENTATION, num_workers=num_workers)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_another_image_of_the_class_replaces_one_that_breaks(
    tmp_path: Path, num_workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    images = file_set(tmp_path)
    changes = {"num_epochs": 3, "num_workers": num_workers}
    whole, labelled = batches_of(images, NO_AUGMENTATION, **changes), one_class_each(images)
    order = columns(batches_of(labelled, NO_AUGMENTATION, **changes, num_classes=24))[1].argmax(dim=1)
    broken(images.files[3]), broken(images.files[7])
    found, targets = columns(batches_of(images, NO_AUGMENTATION, **changes))
    pixels, _ = columns(whole)
    assert torch.equal(targets, columns(whole)[1])
    of_file = {image: pixels[row] for row, image in enumerate(order.tolist())}
    used = [next(i for i in of_file if torch.equal(of_file[i], found[row])) for row in range(len(found))]
    replaced = [(image, other) for image, other in zip(order.tolist(), used, strict=True) if image != other]
    assert sorted(image for image, _ in replaced) == [3, 3, 3, 7, 7, 7]
    assert all(image % 4 == other % 4 and other not in (3, 7) for image, other in replaced)  # the class is index % 4
    assert len({other for image, other in replaced if image == 3}) > 1  # it depends on the epoch
    err = capsys.readouterr().err
    assert sorted(images.unreadable.sizes) == [images.files[3], images.files[7]] and err.count("cannot be decoded") == 2
    later = batches_of(images, NO_AUGMENTATION, **{**changes, "epoch": 1, "num_epochs": 2, "first_step": 1})
    assert equal_batches(later, [(found[i : i + 8], targets[i : i + 8]) for i in range(32, 72, 8)])


def test_a_file_that_was_replaced_stays_replaced_after_it_was_repaired(tmp_path: Path) -> None:
    images = file_set(tmp_path)
    content = Path(images.files[3]).read_bytes()
    broken(images.files[3])
    expected = batches_of(images, AugmentationSettings())
    Path(images.files[3]).write_bytes(content)
    assert equal_batches(batches_of(images, AugmentationSettings()), expected)
    fresh = ImageSet(labels=images.labels, files=images.files)
    assert not equal_batches(batches_of(fresh, AugmentationSettings()), expected)


def test_a_folder_that_cannot_be_read_any_more_ends_the_training(tmp_path: Path) -> None:
    images = file_set(tmp_path)
    for file in images.files:
        Path(file).unlink()
    with pytest.raises(DataError, match=r"neither can 5 others of its class.*folder can be read"):
        batches_of(images, NO_AUGMENTATION)


def test_pixels_that_would_be_a_guess_are_never_replaced(tmp_path: Path) -> None:
    images = file_set(tmp_path)
    Image.fromarray(np.zeros((12, 10), dtype=np.float32)).save(images.files[3], format="TIFF")
    for make in (lambda: batches_of(images, NO_AUGMENTATION), lambda: eval_all(images)):
        with pytest.raises(DataError, match=r"3\.png has 32-bit floating-point"):
            make()


# Evaluation batches


def test_evaluation_batches_are_in_order_and_parts_are_contiguous(images: ImageSet) -> None:
    whole = list(eval_batches(images, preprocessing(), batch_size=7, num_workers=0))
    assert [len(labels) for _, labels in whole] == [7, 7, 7, 3]
    pixels, labels = columns(whole)
    assert torch.equal(labels, images.labels)
    parts = [Part(index=index, count=5) for index in range(5)]
    own = [batch for part in parts for batch in eval_batches(images, preprocessing(), batch_size=4, part=part)]
    assert all(torch.equal(*pair) for pair in zip(columns(own), (pixels, labels), strict=True))


@pytest.mark.parametrize("model", [preprocessing(12, 10, crop_pct=0.9), preprocessing(16, crop_pct=0.9)])
def test_streamed_images_are_evaluated_like_images_in_memory(tmp_path: Path, model: Preprocessing) -> None:
    files = file_set(tmp_path)
    memory = ImageSet(labels=files.labels, pixels=torch.stack([read_image(file) for file in files.files]))
    assert equal_batches(*(list(eval_batches(images, model, batch_size=7)) for images in (files, memory)))


def eval_all(images: ImageSet, **changes: Any) -> list:
    return list(eval_batches(images, preprocessing(), batch_size=4, num_workers=0, **changes))


@pytest.mark.parametrize("count", [1, 2])
def test_images_that_cannot_be_decoded_are_left_out_of_evaluation(tmp_path: Path, count: int) -> None:
    images = one_class_each(file_set(tmp_path))
    whole = columns(eval_all(images))
    unreadable = [4, 5, 6, 7, 9]  # a whole batch and a part of one
    for index in unreadable:
        broken(images.files[index])
    left_out: list[int] = []
    found = [
        batch
        for index in range(count)
        for batch in eval_all(images, part=Part(index=index, count=count), on_unreadable=left_out.append)
    ]
    kept = [index for index in range(24) if index not in unreadable]
    assert all(torch.equal(a[kept], b) for a, b in zip(whole, columns(found), strict=True)) and left_out == unreadable
    assert min(len(labels) for _, labels in found) > 0


def test_other_channels_than_the_models_are_refused(tmp_path: Path) -> None:
    model = preprocessing(mean=(0.5,), std=(0.5,))
    for images in (memory_set(8), file_set(tmp_path, 8)):
        for make in (
            lambda images=images: batches_of(images, NO_AUGMENTATION, preprocessing=model),
            lambda images=images: eval_batches(images, model, batch_size=4),
        ):
            with pytest.raises(DataError, match="3 channels, but the model takes 1"):
                make()


@pytest.mark.parametrize("channels", [1, 4])
@every_augmentation
def test_streamed_images_of_any_channels_are_augmented(
    tmp_path: Path, channels: int, augmentation: AugmentationSettings
) -> None:
    mode = {1: "L", 4: "RGBA"}[channels]
    files = tuple(str(save_image(tmp_path / f"{i}.png", seed=i, mode=mode)) for i in range(8))
    images = ImageSet(labels=torch.arange(8) % 4, files=files, pixel_format=PixelFormat(channels=channels))
    model = preprocessing(mean=(0.5,) * channels, std=(0.5,) * channels)
    for pixels, _ in batches_of(images, augmentation, preprocessing=model):
        assert pixels.shape == (8, channels, 8, 8) and pixels.isfinite().all()
