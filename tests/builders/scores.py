"""Scores as arrays, and their comparison."""

import numpy as np

from vitrim.importance.scores import Scores


def flat(scores: Scores) -> np.ndarray:
    """The scores of all heads, then of all neurons, `(U,)`."""
    return np.concatenate([*scores.heads, *scores.neurons])


def assert_same_scores(first: Scores, second: Scores, tolerance: float = 0.0) -> None:
    """Compare the scores of units and blocks; `tolerance` is relative."""
    assert np.allclose(flat(first), flat(second), rtol=tolerance, atol=0)
    assert np.allclose(first.blocks, second.blocks, rtol=tolerance, atol=0)
