"""Laws of the preprocessing: it is stored and read again, checked, and leaves small images alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from builders.images import memory_set, preprocessing
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageSet
from vitrim.data.preprocessing import EvalTransform, Preprocessing
from vitrim.data.processor import ProcessorSteps
from vitrim.errors import SettingError


def test_preprocessing_is_the_same_after_a_round_trip_through_a_dictionary() -> None:
    model = preprocessing(8, 12, crop_pct=0.9)
    assert Preprocessing.from_dict(model.to_dict()) == model
    with pytest.raises(SettingError, match="colour"):
        Preprocessing.from_dict({**model.to_dict(), "colour": 1})


@pytest.mark.parametrize(
    "changes",
    [{"mean": (0.5,)}, {"mean": ()}, {"std": (0.0, 1.0, 1.0)}, {"interpolation": "random"}, {"crop_pct": 0.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_preprocessing_out_of_range_is_refused(changes: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(changes))):
        Preprocessing(**{**vars(preprocessing()), **changes})


def test_small_images_of_the_size_of_the_model_are_only_normalised() -> None:
    images = memory_set(4)
    ((pixels, _),) = eval_batches(images, preprocessing(8, crop_pct=0.875), batch_size=4)
    mean, std = torch.tensor((0.5, 0.4, 0.3)), torch.tensor((0.2, 0.3, 0.4))
    expected = (images.pixels / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(pixels, expected)


@pytest.mark.parametrize("side", [8, 96, 97, 224])
def test_exactly_the_images_of_the_unchanged_size_are_used_as_they_are(side: int) -> None:
    model = preprocessing(side, crop_pct=0.8)
    pixels = torch.randint(256, (3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(EvalTransform(model)(pixels), pixels) == (model.unchanged_size is not None)
    assert model.unchanged_size in (None, (side, side))
    assert ("used as they are" in model.text()) == (model.unchanged_size is not None)
    with_steps = replace(model, steps=ProcessorSteps(size={"shortest_edge": side + 5}, crop=(side, side)))
    assert with_steps.unchanged_size is None and not torch.equal(EvalTransform(with_steps)(pixels), pixels)


@pytest.mark.parametrize("interpolation", ["lanczos", "box", "hamming"])
def test_what_only_pillow_resizes_is_resized_as_timm_does(interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (41, 30, 3), dtype=np.uint8)
    model = preprocessing(16, crop_pct=0.9, interpolation=interpolation)
    stored = ImageSet(labels=torch.zeros(1, dtype=torch.long), pixels=torch.from_numpy(pixels).permute(2, 0, 1)[None])
    ((found, _),) = eval_batches(stored, model, batch_size=1)
    theirs = create_transform(
        input_size=(3, 16, 16), interpolation=interpolation, mean=model.mean, std=model.std, crop_pct=0.9
    )
    torch.testing.assert_close(found[0], theirs(Image.fromarray(pixels)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("interpolation", ["bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(41, 30), (20, 60), (16, 16)])
def test_a_border_is_filled_with_the_mean_as_timm_does(size: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    model = preprocessing(16, interpolation=interpolation, crop_mode="border")
    found = EvalTransform(model)(torch.from_numpy(pixels).permute(2, 0, 1))
    keys = ("mean", "std", "crop_pct", "crop_mode", "interpolation")
    theirs = create_transform(input_size=(3, 16, 16), normalize=False, **{key: getattr(model, key) for key in keys})
    assert (found.int() - theirs(Image.fromarray(pixels)).int()).abs().max() <= 1


def test_an_interpolation_that_only_image_processors_have_is_refused_without_one() -> None:
    with pytest.raises(SettingError, match="nearest without an image processor"):
        Preprocessing(img_size=(8, 8), mean=(0.5,), std=(0.5,), interpolation="nearest-exact")
