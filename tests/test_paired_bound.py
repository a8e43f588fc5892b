"""The bound on a paired difference: it holds, also where no image differs, and more images narrow it."""

import math
from functools import cache

import numpy as np
import pytest

from vitrim.errors import DataError
from vitrim.paired_bound import fewest_images, images_needed, lower_end

bound = cache(lower_end)


@pytest.mark.parametrize(
    ("num_images", "gain", "loss"),
    [(100, 0.01, 0.02), (400, 0.005, 0.01), (400, 0.02, 0.02), (2000, 0.05, 0.04), (400, 0.0, 0.01)],
)
def test_the_bound_is_above_the_truth_in_2_5_percent_of_samples_at_most(
    num_images: int, gain: float, loss: float
) -> None:
    counts = np.random.default_rng(0).multinomial(num_images, [gain, loss, 1 - gain - loss], size=4000)
    above = [bound(int(gained), int(lost), num_images) > 100 * (gain - loss) + 1e-9 for gained, lost, _ in counts]
    assert np.mean(above) < 0.025 + 3 * math.sqrt(0.025 / 4000)


def test_models_that_agree_on_every_image_may_still_differ() -> None:
    z = 1.959963984540054
    for num_images in (50, 341, 10_000):
        assert lower_end(0, 0, num_images) == pytest.approx(-100 * z**2 / (num_images + z**2), rel=1e-6)


def test_the_bound_is_below_the_measured_difference_and_approaches_it() -> None:
    ends = [lower_end(scale * 2, scale * 5, scale * 200) for scale in (1, 10, 100, 10_000)]
    assert ends == sorted(ends) and -1.6 < ends[-1] < -1.5
    assert lower_end(0, 50, 50) == -100
    assert 80 < lower_end(50, 0, 50) < 100


@pytest.mark.parametrize(("gained", "lost", "max_drop"), [(2, 5, 2.0), (0, 0, 0.5), (9, 4, 0.1), (0, 1, 1.0)])
def test_so_many_images_as_needed_are_enough_and_fewer_are_not(gained: int, lost: int, max_drop: float) -> None:
    needed = images_needed(gained, lost, 200, max_drop)
    assert needed is not None
    for count, is_enough in ((needed, True), (needed - 1, False)):
        assert (lower_end(gained * count / 200, lost * count / 200, count) >= -max_drop) == is_enough


def test_no_number_of_images_shows_what_is_not_so() -> None:
    assert images_needed(1, 5, 200, 2.0) is None


def test_below_the_fewest_images_no_comparison_is_within_the_drop() -> None:
    for max_drop in (0.5, 1.0, 5.0):
        count = fewest_images(max_drop)
        assert lower_end(0, 0, count) >= -max_drop > lower_end(0, 0, count - 1)


def test_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="no images"):
        lower_end(0, 0, 0)
