"""What images can say about a difference of accuracies: its interval, and how many images a small drop needs.

The interval is the score interval of Tango, 1998, Equivalence test and confidence interval for the
difference in proportions for the paired-sample design, Statistics in Medicine 17, 891-908,
https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B. It stays right where the models
disagree on few images or on none: a bootstrap of no difference has no width.
"""

import math

from scipy import optimize, stats

from vitrim.errors import DataError

CONFIDENCE = 0.95  # of the two-sided interval, so 97.5 % for its lower end alone
MAX_IMAGES = 10**9


def lower_end(gained: float, lost: float, num_images: float) -> float:
    """The lower end of the 95 % interval of the difference of accuracies, second model minus first, in points.

    Args:
        gained: number of images that only the second model classifies rightly.
        lost: number of images that only the first model classifies rightly.
        num_images: number of all images.

    Raises:
        DataError: there are no images.
    """
    if num_images < 1:
        raise DataError("There are no images to compare two models on.")
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    estimate = (gained - lost) / num_images

    def excess(difference: float) -> float:
        return _score(difference, gained, lost, num_images) - z

    lowest = -1 + 1e-12
    if estimate <= lowest or excess(lowest) <= 0:
        return -100.0
    # the score grows without limit below the estimate, and is 0 at the estimate
    return 100 * float(optimize.brentq(excess, lowest, estimate - 1e-12, xtol=1e-12))


def paired_interval(gained: float, lost: float, num_images: float) -> tuple[float, float]:
    """The 95 % interval of the difference of accuracies, second model minus first, in points.

    Args:
        gained: as in `lower_end`.
        lost: as in `lower_end`.
        num_images: as in `lower_end`.
    """
    return lower_end(gained, lost, num_images), -lower_end(lost, gained, num_images)


def _score(difference: float, gained: float, lost: float, num_images: float) -> float:
    """Tango's statistic for the hypothesis that the true difference is `difference`; it is normal under it."""
    a = 2 * num_images
    b = -gained - lost + (2 * num_images - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    only_first = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # the most likely fraction under it
    variance = num_images * (2 * only_first + difference * (1 - difference))
    return (gained - lost - num_images * difference) / math.sqrt(max(variance, 1e-300))


def images_needed(gained: float, lost: float, num_images: int, max_drop: float) -> int | None:
    """About how many images would show that the drop is within `max_drop` points, if they behave like these images.

    Args:
        gained: as in `lower_end`.
        lost: as in `lower_end`.
        num_images: as in `lower_end`.
        max_drop: in percentage points, above 0.

    Returns:
        None if no number of images would: the measured drop itself is not below `max_drop`.
    """
    if 100 * (lost - gained) / num_images >= max_drop:
        return None

    def is_enough(count: int) -> bool:
        scale = count / num_images
        return lower_end(gained * scale, lost * scale, count) >= -max_drop

    high = 1
    while not is_enough(high):
        high *= 2
        if high > MAX_IMAGES:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def fewest_images(max_drop: float) -> int:
    """The number of images below which no comparison can show a drop within `max_drop` points.

    Even two models that agree on every image can then differ by more.
    """
    return images_needed(0, 0, 1, max_drop) or MAX_IMAGES
