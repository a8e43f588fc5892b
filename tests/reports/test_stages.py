"""Laws of the results of stages: only a distillation that ends below its start is called worse."""

from pathlib import Path

import numpy as np
import pytest

from builders.evaluations import predicting
from vitrim.reports.stages import StageResults

LABELS = np.zeros(100, dtype=int)


def results(**num_right: int) -> StageResults:
    """Stages of so many right images, in order."""
    found = StageResults()
    for name, count in num_right.items():
        found.add({"name": name.replace("_", " ")}, predicting(LABELS, np.arange(100) >= count))
    return found


@pytest.mark.parametrize(
    ("num_right", "is_worse"),
    [
        ({"width_cut": 10, "width_recover": 80, "width_distil": 70}, True),
        ({"width_cut": 10, "width_recover": 80, "width_distil": 80}, False),
        ({"width_cut": 90, "width_distil": 70}, True),
        ({"width_cut": 90, "width_recover": 60, "width_distil": 70}, False),
        ({"width_cut": 90}, False),
    ],
)
def test_a_distillation_below_its_start_is_said_and_noted(
    num_right: dict[str, int], is_worse: bool, tmp_path: Path
) -> None:
    found = results(**num_right)
    assert bool(found.is_worse("width")) == is_worse and not found.is_worse("depth")
    assert [note.startswith("width: after the distillation") for note in found.notes(tmp_path)] == [True] * is_worse
