"""Whether a model's confidence is its accuracy: Guo et al. 2017, https://arxiv.org/abs/1706.04599."""

from typing import Any

import numpy as np

NUM_BINS = 10


def calibration(correct: np.ndarray, confidence: np.ndarray) -> dict[str, Any]:
    """Divide images by confidence into ten bins of equal width, and compare confidence with accuracy in each.

    The expected calibration error (equation 5) is the mean over all images of the difference of both in their bin. A
    bin has confidences above its lower end, up to its upper end.

    Args:
        correct: whether each prediction is right, `(n,)` bool.
        confidence: softmax value of each prediction, `(n,)` float64.

    Returns:
        `bins` with images, each with `low`, `high`, `count`, `confidence` and `accuracy` (means from 0 to 1); and `ece`
        in percent.
    """
    place = np.clip(np.ceil(confidence * NUM_BINS - 1e-9).astype(int) - 1, 0, NUM_BINS - 1)  # 0.3 * 10 is above 3
    bins, error = [], 0.0
    for index in range(NUM_BINS):
        inside = place == index
        count = int(inside.sum())
        if not count:
            continue
        means = float(confidence[inside].mean()), float(correct[inside].mean())
        error += count * abs(means[0] - means[1])
        bins.append(
            {
                "low": index / NUM_BINS,
                "high": (index + 1) / NUM_BINS,
                "count": count,
                "confidence": round(means[0], 4),
                "accuracy": round(means[1], 4),
            }
        )
    return {"bins": bins, "ece": round(100 * error / max(1, len(correct)), 4)}
