"""Laws of views: images that were prepared for one model become what another model's own preprocessing makes."""

from typing import Any

import pytest
import torch

from vitrim.data.preprocessing import Preprocessing, normalise
from vitrim.data.views import view_between

OURS: dict[str, Any] = {"img_size": (8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
THEIRS: dict[str, Any] = {"img_size": (8, 8), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CPU = torch.device("cpu")


def pixels(count: int = 4) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("std", [THEIRS["std"], (1 / 255,) * 3], ids=["usual", "pixels in 0..255"])
def test_a_view_is_the_preprocessing_of_the_other_model(std: tuple[float, ...]) -> None:
    before, after = Preprocessing(**OURS), Preprocessing(**{**THEIRS, "std": std})
    found = view_between(before, after, CPU)(normalise(pixels(), before))
    assert torch.allclose(found, normalise(pixels(), after), rtol=1e-5, atol=1e-5 / std[0])


def test_the_same_preprocessing_changes_no_bit() -> None:
    before, after = Preprocessing(**OURS), Preprocessing(**OURS, crop_pct=0.9)
    images = normalise(pixels(), before)
    assert view_between(before, after, CPU)(images) is images


def test_a_view_of_mixed_images_is_the_mixture_of_their_views() -> None:
    before, after = Preprocessing(**OURS), Preprocessing(**{**THEIRS, "img_size": (12, 10)}, interpolation="bilinear")
    view, images = view_between(before, after, CPU), normalise(pixels(), before)
    mixed = 0.3 * images + 0.7 * images.flip(0)
    assert torch.allclose(view(mixed), 0.3 * view(images) + 0.7 * view(images).flip(0), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_view_of_another_size_is_resized_on_the_pixels_within_their_range(interpolation: str) -> None:
    before = Preprocessing(**OURS)
    after = Preprocessing(**{**THEIRS, "img_size": (16, 12)}, interpolation=interpolation)
    found = view_between(before, after, CPU)(normalise(pixels(), before))
    mode = {"mode": interpolation, "antialias": True, "align_corners": False}
    resized = torch.nn.functional.interpolate(pixels() / 255, size=(16, 12), **mode).clamp(0, 1)  # type: ignore[arg-type]
    mean, std = (torch.tensor(THEIRS[key])[:, None, None] for key in ("mean", "std"))
    assert torch.allclose(found, (resized - mean) / std, atol=1e-5)
