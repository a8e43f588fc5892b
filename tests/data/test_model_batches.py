"""`batches`: what a model gets, how often, and what is said about it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitrim
from builders.images import image_data, image_folder
from builders.models import build
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.errors import DataError, SettingError
from vitrim.models import origin_of, record_origin
from vitrim.recipe import load_recipe
from vitrim.source import Source

CLASSES = tuple("abcdefg")
MODEL = build(dtype=torch.float32)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return image_data(CLASSES, num_images=30)


def equal(one: list[tuple[Tensor, Tensor]], other: list[tuple[Tensor, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(*pair) for first, second in zip(one, other, strict=True) for pair in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_those_of_the_evaluation_and_can_be_iterated_again(split: str, data: ImageData) -> None:
    found = vitrim.batches(MODEL, data, split=split, batch_size=8)
    images = match_labels(data, MODEL).train if split == "train" else match_labels(data, MODEL).validation
    expected = list(eval_batches(images, preprocessing_of(MODEL), batch_size=8))
    assert len(found) == len(expected)
    assert equal(list(found), expected) and equal(list(found), expected)


def test_calibration_images_are_those_of_compress(data: ImageData) -> None:
    recipe = load_recipe("default", ["importance.num_images=14"])
    source = Source.of(MODEL, data)
    expected = list(source.calibration(recipe.importance, recipe.seed))
    found = vitrim.batches(MODEL, data, num_images=14, seed=recipe.seed, batch_size=recipe.importance.batch_size)
    assert equal(list(found), expected)
    assert torch.bincount(found.images.labels).tolist() == [2] * 7


def test_augmented_batches_have_soft_labels_and_differ_between_epochs_only(data: ImageData) -> None:
    found = vitrim.batches(MODEL, data, batch_size=8, augmented=True)
    first, again, other = list(found), list(found), list(found.at_epoch(1))
    assert len(found) == len(first) == 3
    assert equal(first, again) and not equal(first, other)
    images, labels = first[0]
    assert images.shape == (8, 3, 32, 32) and labels.shape == (8, 7)
    assert torch.allclose(labels.sum(dim=1), torch.ones(8))


def test_labels_are_the_outputs_of_the_model(data: ImageData) -> None:
    model = build(dtype=torch.float32)
    origin = origin_of(model)
    record_origin(model, type(origin)(**{**vars(origin), "classes": tuple(reversed(CLASSES))}))
    found = vitrim.batches(model, data)
    assert found.classes == tuple(reversed(CLASSES))
    assert found.images.labels.tolist() == [6 - label for label in data.train.labels.tolist()]


def test_a_path_is_loaded(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 1, "val": 1}, classes=CLASSES)
    for path in (tmp_path, str(tmp_path)):
        found = vitrim.batches(MODEL, path, split="val", batch_size=4)
        assert len(found) == 2 and len(found.images) == 7


def test_the_text_states_images_classes_and_preprocessing(data: ImageData) -> None:
    text = str(vitrim.batches(MODEL, data, num_images=14, batch_size=4))
    preprocessing = preprocessing_of(MODEL)
    for part in ("14 training images of 7 classes, 4 x 4", "bicubic", "32x32", "mean 0.5, 0.5, 0.5", "std 0.5"):
        assert part in text, text
    assert preprocessing.text() in text


@pytest.mark.parametrize(
    "settings, found",
    [
        ({"split": "tests"}, "split is 'tests'"),
        ({"num_images": 0}, "num_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"split": "val", "augmented": True}, "False for images that are no training"),
        ({"augmented": True, "batch_size": 7}, "multiple of 2"),
    ],
)
def test_wrong_settings_are_named(settings: dict, found: str, data: ImageData) -> None:
    with pytest.raises(SettingError, match=found):
        vitrim.batches(MODEL, data, **settings)


def test_other_channels_than_the_model_are_an_error() -> None:
    with pytest.raises(DataError, match="channels"):
        vitrim.batches(build(dtype=torch.float32, in_chans=1), image_data(CLASSES))


def test_the_split_that_was_read_alone_is_used(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 3, "val": 2, "test": 1})
    model = build(num_classes=3, dtype=torch.float32)
    for split, count in (("train", 9), ("val", 6), ("test", 3)):
        alone = vitrim.batches(model, vitrim.load_data(tmp_path, split=split))
        assert (len(alone.images), alone.split) == (count, split)
        assert len(vitrim.batches(model, tmp_path, split=split).images) == count
    whole = vitrim.batches(model, vitrim.load_data(tmp_path / "test", split="auto"))
    assert str(whole).startswith("test: 3 images of 3 classes")
    with pytest.raises(DataError, match=r"loaded without test images\. Load them: .*split='test'"):
        vitrim.batches(model, vitrim.load_data(tmp_path), split="test")
    with pytest.raises(DataError, match="without training images"):
        vitrim.batches(model, vitrim.load_data(tmp_path, split="val"), split="train")
