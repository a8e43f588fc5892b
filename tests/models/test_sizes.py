"""Sizes that no machine could build are refused at once, without memory and without a change of the random numbers."""

import re
from typing import Any

import pytest
import torch
from torch import nn

from vitrim.errors import NotEnoughMemory, SettingError
from vitrim.models.sizes import check_memory, check_numbers, check_sizes, short, shown, unused_pixels
from vitrim.saving.opening import open_model


@pytest.mark.parametrize("value", [10**7, -(10**7), 10**30, 10**5000], ids=["1e7", "-1e7", "1e30", "1e5000"])
def test_absurd_numbers_are_refused_wherever_they_are(value: int) -> None:
    for arguments in ({"width": value}, {"width": [1, value]}, {"sizes": {"width": [value]}}):
        with pytest.raises(SettingError, match=r"width of x is .*; expected at most 1,000,000\."):
            check_numbers("x", arguments)
    with pytest.raises(SettingError, match="depth of x is 1000; expected at most 256"):
        check_numbers("x", {"depth": 1000})


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 100_000},
        {"depths": [2, 10**9]},
        {"img_size": 10**6},
        {"img_size": [224, 0]},
        {"patch_size": 0},
        {"num_classes": 10**12},
        {"num_classes": -1},
        {"embed_dim": 10**9},
        {"embed_dim": 60_000, "depth": 200},
        {"mlp_ratio": 1e300},
        {"mlp_ratio": float("nan")},
        {"anything": {"inside": [10**30]}},
    ],
    ids=str,
)
def test_no_architecture_is_built_with_absurd_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises((SettingError, NotEnoughMemory)):
        open_model("vit_tiny_patch16_224", model_args=arguments)


def test_a_model_that_does_not_fit_the_memory_is_refused_before_it_is_built() -> None:
    before = torch.get_rng_state()
    with pytest.raises(NotEnoughMemory, match=r"its weights are .* GB, and .* GB are free"):
        check_sizes("x", {"width": 900_000}, lambda: nn.Linear(900_000, 900_000))
    assert torch.equal(before, torch.get_rng_state())


def test_a_usual_model_is_not_built_twice() -> None:
    check_sizes("x", {"width": 768, "depth": 12, "pool": True}, lambda: pytest.fail("it was built"))
    check_memory("x", nn.Linear(2, 2))


def test_what_a_library_cannot_build_is_left_to_the_library() -> None:
    def build() -> nn.Module:
        raise ZeroDivisionError

    check_sizes("x", {"width": 900_000}, build)


def test_values_are_shortened_in_messages() -> None:
    assert short("x" * 99).endswith("...") and len(short("x" * 99)) == 60
    assert short(10**5000) == "a number of 16610 bits"
    assert short([10**5000]) == "a list that has no text"
    assert shown({"depth": 2, "name": "a"}) == "depth=2, name='a'"
    assert len(shown({f"a{index}": "x" * 99 for index in range(99)})) == 300


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ((48, 48), ""),
        (
            (60, 60),
            "12 pixels at the right and at the bottom are not used; with images of 48 or 64 pixels, all are",
        ),
        ((49, 49), "images of 49 pixels are no multiple of the patches of 16 pixels: 1 pixel at the right and at the"),
        ((48, 60), "images of 48 x 60 pixels .* of 16 x 16 pixels: 0 at the bottom and 12 at the right are not used"),
    ],
)
def test_pixels_that_no_patch_has_are_named_and_the_model_does_not_use_them(
    sides: tuple[int, int], expected: str
) -> None:
    model = open_model("vit_tiny_patch16_224", model_args={"img_size": sides, "embed_dim": 12, "depth": 1})
    found = unused_pixels(model, sides)
    assert re.search(expected, found) if expected else not found
    images = torch.rand(1, 3, *sides)
    rest = sides[1] % 16
    changed = images.clone()
    changed[..., sides[1] - (rest or 16) :] += 1
    assert torch.equal(model(images), model(changed)) == bool(rest)


def test_a_model_that_pads_images_uses_all_pixels() -> None:
    sizes = {"embed_dim": 12, "depth": 1, "dynamic_img_pad": True}
    model = open_model("vit_tiny_patch16_224", img_size=60, model_args=sizes)
    assert unused_pixels(model, (60, 60)) == ""
