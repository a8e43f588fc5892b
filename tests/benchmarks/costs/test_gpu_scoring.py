"""The section `gpu-scoring`."""

import pytest

from benchmarks.costs.gpu_scoring import FORWARD, parts


@pytest.mark.slow
def test_each_run_is_compared_with_one_forward_pass_and_has_its_speed() -> None:
    found = [result for measure in parts(smoke=True, device="cpu").values() for result in measure()]
    rows = [row for result in found for row in result.ratios]
    for run in ("score", "statistics for rotation", "recover"):
        assert [row for row in rows if run in row.measure and row.against == FORWARD]
        assert [row for row in rows if run in row.measure and row.unit == "images/s"]
    assert all(row.value > 0 and row.setting and row.section == "gpu-scoring" for row in rows)
