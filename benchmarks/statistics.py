"""Intervals over images and seeds: the pigeonhole bootstrap of crossed data (Owen 2007, doi 10.1214/07-AOAS122).

Every seed's model is judged on the same images, so neither the images nor the seeds alone are the sample: both are
drawn again, independently. With three seeds the part of the interval that comes from seeds is rough; with one seed
there is no such part, and `Difference.over_seeds` says so.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

NUM_DRAWS = 2000
CONFIDENCE = 0.95
_ROWS_AT_ONCE = 250  # image weights as float32: 10 MB for 10,000 images


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Second minus first, in points of top-1; `over_seeds` is False where one seed left only images to draw again."""

    points: float
    low: float
    high: float
    num_seeds: int
    num_images: int

    @property
    def over_seeds(self) -> bool:
        return self.num_seeds > 1


@dataclass(frozen=True, kw_only=True)
class Share:
    """Accuracy of one model as a share of another's, in percent."""

    percent: float
    low: float
    high: float


def paired_difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How much better `second` is.

    Args:
        first, second: whether each image is classified right, `(S, N)` of bool: the same seeds and images for both.
    """
    _check(first, second)
    pairs = second.astype(np.float32) - first.astype(np.float32)  # (S, N)
    low, high = _interval(100 * _resampled_means(pairs))
    num_seeds, num_images = pairs.shape
    points = 100 * float(pairs.mean(dtype=np.float64))
    return Difference(points=points, low=low, high=high, num_seeds=num_seeds, num_images=num_images)


def paired_share(part: np.ndarray, whole: np.ndarray) -> Share | None:
    """Accuracy of `part` over that of `whole`, both `(S, N)` of bool; None where `whole` may be right on no image."""
    _check(part, whole)
    wholes = _resampled_means(whole.astype(np.float32))
    if not wholes.all():
        return None
    low, high = _interval(100 * _resampled_means(part.astype(np.float32)) / wholes)  # same draws: the images are paired
    return Share(percent=100 * float(part.mean() / whole.mean()), low=low, high=high)


def _check(first: np.ndarray, second: np.ndarray) -> None:
    assert first.ndim == 2 and first.shape == second.shape and first.size, (first.shape, second.shape)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Mean of `values` `(S, N)` in each draw of seeds and images, `(NUM_DRAWS,)`."""
    num_seeds, num_images = values.shape
    images, seeds = _counts(num_images, 0), _counts(num_seeds, 1)  # (draws, N), (draws, S)
    blocks = range(0, NUM_DRAWS, _ROWS_AT_ONCE)
    sums = np.concatenate(
        [images[at : at + _ROWS_AT_ONCE].astype(np.float32) @ values.T for at in blocks]
    )  # (draws, S)
    return (sums.astype(np.float64) * seeds).sum(axis=1) / (num_seeds * num_images)


@lru_cache(maxsize=4)
def _counts(size: int, stream: int) -> np.ndarray:
    """How often each of `size` items is in each draw with replacement, `(NUM_DRAWS, size)`; the same at every call."""
    generator = np.random.default_rng([stream, size])
    drawn = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(NUM_DRAWS))
    counts = np.empty((NUM_DRAWS, size), dtype=np.uint16)
    for row, found in zip(counts, drawn, strict=True):
        row[:] = found
    return counts
