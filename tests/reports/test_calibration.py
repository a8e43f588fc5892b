"""Laws of the calibration: no error if confidence is accuracy, and the whole difference if one bin has all images."""

import numpy as np
import pytest

from vitrim.reports.calibration import calibration


def test_a_perfectly_calibrated_model_has_no_error() -> None:
    confidence = np.repeat([0.25, 0.5, 0.75], 4)
    correct = np.array([1, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0], dtype=bool)
    found = calibration(correct, confidence)
    assert found["ece"] == 0
    assert [(row["count"], row["confidence"], row["accuracy"]) for row in found["bins"]] == [
        (4, 0.25, 0.25),
        (4, 0.5, 0.5),
        (4, 0.75, 0.75),
    ]


def test_a_model_that_is_always_sure_and_never_right_has_the_largest_error() -> None:
    assert calibration(np.zeros(5, dtype=bool), np.ones(5))["ece"] == 100


def test_the_error_is_the_mean_over_images_of_the_difference_in_their_bin() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(500).round(4)
    correct = rng.random(500) < confidence**2
    found = calibration(correct, confidence)
    assert sum(row["count"] for row in found["bins"]) == 500
    error = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in found["bins"]) / 500
    assert found["ece"] == pytest.approx(100 * error, abs=0.01)
    for row in found["bins"]:
        inside = (confidence > row["low"]) & (confidence <= row["high"] + 1e-12)
        assert row["low"] < row["confidence"] <= row["high"] and inside.sum() == row["count"]


@pytest.mark.parametrize(("confidence", "low"), [(0.3, 0.2), (0.7, 0.6), (1.0, 0.9), (0.0, 0.0), (0.0001, 0.0)])
def test_the_upper_end_of_a_bin_belongs_to_it(confidence: float, low: float) -> None:
    (row,) = calibration(np.ones(1, dtype=bool), np.array([confidence]))["bins"]
    assert row["low"] == low


def test_no_images_have_no_bins() -> None:
    assert calibration(np.zeros(0, dtype=bool), np.zeros(0)) == {"bins": [], "ece": 0.0}
