"""The section `gpu-latency`."""

import pytest

from benchmarks.costs.gpu_latency import CASES, parts


def test_widths_in_multiples_of_eight_and_of_one_are_compared_at_three_batch_sizes() -> None:
    for case in CASES:
        assert [line.batch_size for line in case.lines] == [1, 64, 256]
        for line in case.lines:
            cuts = {(cut.keep, cut.multiple) for cut in line.cuts if not cut.head_width}
            assert cuts == {(0.7, 8), (0.7, 1), (0.5, 8), (0.5, 1)}


@pytest.mark.slow
def test_pruned_models_are_compared_with_the_dense_model_in_each_precision() -> None:
    found = [result for measure in parts(smoke=True, device="cpu").values() for result in measure()]
    rows = [row for result in found for row in result.ratios]
    endings = ("bf16 autocast", "float32", "bf16 autocast, compiled")
    assert [sum(row.measure.endswith(f", {how}") for row in rows) for how in endings] == [3, 3, 1]
    assert all(row.value > 0 and row.against == "latency of the dense model" for row in rows)
    assert all(row.section == "gpu-latency" for row in rows)
