"""The intervals of the benchmark: paired, over images and seeds."""

import numpy as np
import pytest

from benchmarks.statistics import Difference, paired_difference, paired_share


def noisy(num_seeds: int, num_images: int, share: float, spread: float, rng: np.random.Generator) -> np.ndarray:
    shares = share + spread * rng.standard_normal((num_seeds, 1))
    return rng.random((num_seeds, num_images)) < shares


def width(difference: Difference) -> float:
    return difference.high - difference.low


def test_equal_models_differ_by_nothing() -> None:
    right = noisy(3, 300, 0.5, 0.1, np.random.default_rng(0))
    difference = paired_difference(right, right)
    assert (difference.points, difference.low, difference.high) == (0, 0, 0)


def test_exchanging_the_models_turns_the_interval_round() -> None:
    rng = np.random.default_rng(0)
    first, second = noisy(3, 300, 0.5, 0.1, rng), noisy(3, 300, 0.6, 0.1, rng)
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.points, there.low, there.high) == pytest.approx((-back.points, -back.high, -back.low))


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    base, gains = rng.random((4, 1000)) < 0.5, rng.random(1000)
    alike = base | (gains < 0.2)
    apart = base | (gains < np.array([0.0, 0.1, 0.3, 0.4])[:, None])
    assert width(paired_difference(base, apart)) > 1.5 * width(paired_difference(base, alike))


def test_one_seed_draws_only_images_again() -> None:
    rng = np.random.default_rng(0)
    first, second = noisy(1, 400, 0.5, 0, rng), noisy(1, 400, 0.55, 0, rng)
    difference = paired_difference(first, second)
    pairs = second.astype(float) - first.astype(float)
    assert not difference.over_seeds
    assert width(difference) == pytest.approx(2 * 1.96 * 100 * pairs.std() / 20, rel=0.1)


def test_the_interval_holds_the_true_difference_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        easy = rng.standard_normal(200)  # images differ, seeds differ, and both are drawn anew
        quality = 0.1 * rng.standard_normal((2, 8, 1))
        first, second = easy + quality + 0.5 * rng.standard_normal((2, 8, 200)) > 0
        difference = paired_difference(first, second)
        hits += difference.low <= 0 <= difference.high
    assert 180 <= hits <= 200


def test_a_share_is_paired_over_the_images() -> None:
    whole = noisy(2, 200, 0.6, 0, np.random.default_rng(0))
    share = paired_share(whole, whole)
    assert share is not None and (share.percent, share.low, share.high) == (100, 100, 100)
    assert paired_share(whole, np.zeros_like(whole)) is None
