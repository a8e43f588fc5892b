"""Laws of resampling as tensor operations: sizes are those of timm and transformers, weights are averages."""

import pytest
import torch
from timm.data.transforms import ResizeKeepRatio
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from builders.images import preprocessing
from vitrim.data.preprocessing import INTERPOLATIONS
from vitrim.data.processor import ProcessorSteps, resized
from vitrim.exporting.resampling import axis_weights, crop_offset, resized_size

SIZES = torch.randint(1, 900, (500, 2), generator=torch.Generator().manual_seed(0)).tolist()
RULES = (
    {"height": 30, "width": 32},
    {"shortest_edge": 256},
    {"shortest_edge": 800, "longest_edge": 1333},
    {"max_height": 333, "max_width": 255},
)


def scalar(number: int) -> Tensor:
    return torch.tensor(number)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_sizes_are_those_of_an_image_processor(rule: dict[str, int]) -> None:
    settings = preprocessing(24, steps=ProcessorSteps(size=rule, crop=(24, 24)))
    for height, width in SIZES:
        found = resized_size(scalar(height), scalar(width), settings)
        assert tuple(map(int, found)) == tuple(max(1, side) for side in resized(height, width, rule))


@pytest.mark.parametrize(("crop_mode", "longest"), [("center", 0.0), ("border", 1.0)])
def test_sizes_are_those_of_timm(crop_mode: str, longest: float) -> None:
    settings = preprocessing(224, 336, crop_pct=0.875, crop_mode=crop_mode)
    for height, width in SIZES:
        image = torch.empty(1, height, width)
        expected = ResizeKeepRatio.get_params(image, (256, 384), longest)
        found = resized_size(scalar(height), scalar(width), settings)
        assert list(map(int, found)) == [max(1, side) for side in expected]


@pytest.mark.parametrize("crop", [1, 4, 5, 8, 13])
def test_a_crop_begins_where_torchvision_begins_it(crop: int) -> None:
    for size in range(1, 20):
        row = torch.arange(1, size + 1)[None, None].expand(1, crop, -1)
        expected = center_crop(row, [crop, crop])[0, 0]  # 0 where it pads
        found = torch.arange(crop) + int(crop_offset(scalar(size), crop, rounds_down=False)) + 1
        assert torch.equal(torch.where((found < 1) | (found > size), 0, found), expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_each_row_of_weights_sums_to_one_and_an_equal_size_changes_nothing(interpolation: str) -> None:
    for size, new in ((9, 9), (9, 20), (23, 7), (1, 5), (40, 1)):
        weights = axis_weights(size, scalar(new), torch.arange(-1, new + 1), interpolation)
        assert weights.shape == (new + 2, size)
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(new + 2))
    same = axis_weights(9, scalar(9), torch.arange(9), interpolation)
    torch.testing.assert_close(same, torch.eye(9), atol=1e-6, rtol=0)
