"""Confidence intervals over images and seeds: the pigeonhole bootstrap (Owen 2007, doi 10.1214/07-AOAS122).

The models of all seeds are evaluated on the same images. So images and seeds are resampled independently. With three
seeds, the part of the interval that comes from the seeds is rough. With one seed there is no such part, and
`Difference.over_seeds` is False.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

NUM_DRAWS = 2000
CONFIDENCE = 0.95
_ROWS_PER_CHUNK = 250  # 10,000 images need 10 MB per chunk as float32


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first, in points of top-1, with the ends of its interval."""

    points: float
    low: float
    high: float
    num_seeds: int
    num_images: int

    @property
    def over_seeds(self) -> bool:
        """Whether seeds were resampled too. With one seed, only images are."""
        return self.num_seeds > 1


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A mean of one model divided by that of another, in percent, with the ends of its interval."""

    percent: float
    low: float
    high: float


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """Return the accuracy of `second` minus that of `first`.

    Args:
        first: whether each image is classified right, for `S` seeds and `N` images, `(S, N)` of bool.
        second: the same for the other model, with the same seeds and images.
    """
    _check(first, second)
    pairs = second.astype(np.float32) - first.astype(np.float32)  # (S, N)
    low, high = _interval(100 * _resampled_means(pairs))
    num_seeds, num_images = pairs.shape
    points = 100 * float(pairs.mean(dtype=np.float64))
    return Difference(points=points, low=low, high=high, num_seeds=num_seeds, num_images=num_images)


def paired_ratio(numerator: np.ndarray, denominator: np.ndarray) -> Ratio | None:
    """Return the mean of `numerator` divided by that of `denominator`, such as a ratio of accuracies.

    Args:
        numerator: a value of at least 0, or whether the model is right, for `S` seeds and `N` images, `(S, N)`.
        denominator: the same for the other model, with the same seeds and images.

    Returns:
        The ratio, or None if a resampled mean of `denominator` is zero.
    """
    _check(numerator, denominator)
    below = _resampled_means(denominator.astype(np.float32))
    if not below.all():
        return None
    # both use the same draws, so images are paired
    low, high = _interval(100 * _resampled_means(numerator.astype(np.float32)) / below)
    means = [float(values.mean(dtype=np.float64)) for values in (numerator, denominator)]
    return Ratio(percent=100 * means[0] / means[1], low=low, high=high)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    assert first.ndim == 2 and first.shape == second.shape and first.size, (first.shape, second.shape)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Return the mean of `values` `(S, N)` in each draw of seeds and images, `(NUM_DRAWS,)`."""
    num_seeds, num_images = values.shape
    images, seeds = _counts(num_images, 0), _counts(num_seeds, 1)  # (draws, N), (draws, S)
    starts = range(0, NUM_DRAWS, _ROWS_PER_CHUNK)
    sums = np.concatenate(
        [images[at : at + _ROWS_PER_CHUNK].astype(np.float32) @ values.T for at in starts]
    )  # (draws, S)
    return (sums.astype(np.float64) * seeds).sum(axis=1) / (num_seeds * num_images)


@lru_cache(maxsize=4)
def _counts(size: int, stream: int) -> np.ndarray:
    """Return how often each item is in each draw with replacement, `(NUM_DRAWS, size)`. Every call returns the same."""
    generator = np.random.default_rng([stream, size])
    drawn = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(NUM_DRAWS))
    counts = np.empty((NUM_DRAWS, size), dtype=np.uint16)
    for row, found in zip(counts, drawn, strict=True):
        row[:] = found
    return counts
