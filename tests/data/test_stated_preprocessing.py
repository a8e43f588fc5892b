"""What a person states about the preprocessing is used, kept with the model, and part of what a run is made from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import vitrim
from builders.families_timm import build_row
from builders.families_torchvision import TORCHVISION
from builders.families_transformers import HUGGINGFACE
from builders.images import image_data
from builders.models import build, random_plan
from vitrim.data.matching import preprocessing_of
from vitrim.errors import SettingError
from vitrim.models import describe, origin_of, record_origin
from vitrim.recipe import load_recipe
from vitrim.source import Source
from vitrim.surgery import prune

STATED = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5), "crop_pct": 0.8, "interpolation": "bilinear"}


def models() -> dict[str, nn.Module]:
    return {
        "timm": build(dtype=torch.float32),
        "transformers": build_row(HUGGINGFACE["transformers ViT"], dtype=torch.float32),
        "torchvision": build_row(next(iter(TORCHVISION.values())), dtype=torch.float32),
    }


@pytest.mark.parametrize("library", ["timm", "transformers", "torchvision"])
def test_what_is_stated_stays_with_the_model(library: str, tmp_path: Path) -> None:
    model = models()[library]
    before = preprocessing_of(model)
    assert vitrim.set_preprocessing(model, **{**STATED, "std": 0.5}) is model
    expected = replace(before, **STATED)
    student = prune(model, random_plan(describe(model), seed=1))
    for name, kept in (("dense", model), ("pruned", student)):
        assert preprocessing_of(kept) == expected
        assert preprocessing_of(vitrim.load(vitrim.save(kept, tmp_path / name))) == expected


def test_images_are_normalised_as_stated() -> None:
    data, model = image_data(tuple("abcdefg")), build(dtype=torch.float32)
    usual, _ = next(iter(vitrim.batches(model, data)))
    stated, _ = next(iter(vitrim.batches(vitrim.set_preprocessing(model, mean=0.25, std=0.125), data)))
    assert torch.allclose(stated * 0.125 + 0.25, usual * 0.5 + 0.5, atol=1e-6)


def test_what_is_not_stated_stays() -> None:
    model = build(dtype=torch.float32)
    before = preprocessing_of(model)
    assert preprocessing_of(vitrim.set_preprocessing(model, crop_pct=0.7)) == replace(before, crop_pct=0.7)


def test_a_run_with_another_preprocessing_is_another_run() -> None:
    recipe, data = load_recipe("default"), image_data(tuple("abcdefg"))

    def identity(**stated: float) -> dict:
        return Source.of(vitrim.set_preprocessing(build(dtype=torch.float32), **stated), data).identity("it", recipe)

    assert identity() == identity(mean=0.5)  # as the model says
    assert identity() != identity(mean=0.4) != identity(mean=0.3)


@pytest.mark.parametrize(
    "stated, found",
    [
        ({"mean": (123.675, 116.28, 103.53)}, r"write 0\.485,0\.456,0\.406"),
        ({"mean": (0.4, 0.5)}, r"2 numbers; the model takes images of 3 channels"),
        ({"mean": -0.5}, r"mean is -0\.5; expected numbers from 0 to 1"),
        ({"std": 0}, r"std is 0; expected numbers above 0"),
        ({"std": (0.5, float("nan"), 0.5)}, r"std is 0\.5, nan, 0\.5"),
        ({"std": 58.395}, r"write 0\.229"),
        ({"crop_pct": 87.5}, r"For 87\.5 %, write 0\.875"),
        ({"crop_pct": 0}, r"crop_pct is 0"),
        ({"interpolation": "cubic"}, r"Did you mean bicubic\?"),
        ({"interpolation": "bilinaer"}, r"Did you mean bilinear\?"),
    ],
)
def test_values_out_of_range_say_what_to_write(stated: dict, found: str) -> None:
    model = build(dtype=torch.float32)
    before = preprocessing_of(model)
    with pytest.raises(SettingError, match=found):
        vitrim.set_preprocessing(model, **stated)
    assert preprocessing_of(model) == before


@pytest.mark.parametrize(
    "steps, stated, found",
    [
        ({}, {"crop_pct": 0.9}, r"image processor states the steps: resized to height 32, width 32"),
        ({"bgr": True}, {"mean": 0.4}, r"does not normalise"),
        ({"as_float": True}, {"interpolation": "lanczos"}, r"resizes by one of nearest-exact, bilinear, bicubic"),
    ],
)
def test_a_contradiction_to_the_image_processor_is_an_error(steps: dict, stated: dict, found: str) -> None:
    model = models()["transformers"]
    origin = origin_of(model)
    settings = {"size": {"height": 32, "width": 32}, "crop": None, "bgr": False, "as_float": False, **steps}
    record_origin(model, replace(origin, preprocessing={**origin.preprocessing, "steps": settings}))
    with pytest.raises(SettingError, match=found):
        vitrim.set_preprocessing(model, **stated)
    assert preprocessing_of(vitrim.set_preprocessing(model, std=0.3) if not steps else model).steps is not None
