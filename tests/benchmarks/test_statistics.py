"""The confidence intervals of the benchmark: paired, over images and seeds."""

import numpy as np
import pytest

from benchmarks.statistics import Difference, paired_difference, paired_ratio


def noisy(num_seeds: int, num_images: int, accuracy: float, spread: float, rng: np.random.Generator) -> np.ndarray:
    accuracies = accuracy + spread * rng.standard_normal((num_seeds, 1))
    return rng.random((num_seeds, num_images)) < accuracies


def width(difference: Difference) -> float:
    return difference.high - difference.low


def test_equal_models_have_no_difference() -> None:
    right = noisy(3, 300, 0.5, 0.1, np.random.default_rng(0))
    difference = paired_difference(right, right)
    assert (difference.points, difference.low, difference.high) == (0, 0, 0)


def test_exchanging_the_models_mirrors_the_interval() -> None:
    rng = np.random.default_rng(0)
    first, second = noisy(3, 300, 0.5, 0.1, rng), noisy(3, 300, 0.6, 0.1, rng)
    forth, back = paired_difference(first, second), paired_difference(second, first)
    assert (forth.points, forth.low, forth.high) == pytest.approx((-back.points, -back.high, -back.low))


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    base, gains = rng.random((4, 1000)) < 0.5, rng.random(1000)
    similar = base | (gains < 0.2)
    different = base | (gains < np.array([0.0, 0.1, 0.3, 0.4])[:, None])
    assert width(paired_difference(base, different)) > 1.5 * width(paired_difference(base, similar))


def test_with_one_seed_only_images_are_resampled() -> None:
    rng = np.random.default_rng(0)
    first, second = noisy(1, 400, 0.5, 0, rng), noisy(1, 400, 0.55, 0, rng)
    difference = paired_difference(first, second)
    pairs = second.astype(float) - first.astype(float)
    assert not difference.over_seeds
    assert width(difference) == pytest.approx(2 * 1.96 * 100 * pairs.std() / 20, rel=0.1)


def test_the_interval_covers_the_true_difference_about_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        easy = rng.standard_normal(200)  # images and seeds differ, and both are random
        quality = 0.1 * rng.standard_normal((2, 8, 1))
        first, second = easy + quality + 0.5 * rng.standard_normal((2, 8, 200)) > 0
        difference = paired_difference(first, second)
        hits += difference.low <= 0 <= difference.high
    assert 180 <= hits <= 200


def test_a_ratio_of_values_is_that_of_their_means() -> None:
    values = np.random.default_rng(0).random((2, 200)).astype(np.float32)
    ratio = paired_ratio(2 * values, values)
    assert ratio is not None and (ratio.percent, ratio.low, ratio.high) == pytest.approx((200, 200, 200))


def test_a_ratio_is_paired_over_the_images() -> None:
    model = noisy(2, 200, 0.6, 0, np.random.default_rng(0))
    ratio = paired_ratio(model, model)
    assert ratio is not None and (ratio.percent, ratio.low, ratio.high) == (100, 100, 100)
    assert paired_ratio(model, np.zeros_like(model)) is None
