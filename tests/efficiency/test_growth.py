"""The section `growth`: points are measured in separate processes, and the table can be made."""

from dataclasses import asdict

import pytest
import torch

from benchmarks.costs.growth import measure_growth
from benchmarks.costs.growth_process import BATCH_SIZE, in_its_own_process, points_of, seconds_of_step


@pytest.mark.slow
def test_a_separate_process_counts_only_its_own_memory() -> None:
    held = torch.zeros(50_000_000)  # 200 MB in this process, which the other one must not count
    point = points_of(smoke=True)[0]
    found = in_its_own_process({"run": "step", **asdict(point)})
    assert found["model_bytes"] >= 4 * found["params"] > 0
    assert 0 <= found["peak_bytes"] < held.nbytes


def test_points_of_one_axis_differ_only_in_it() -> None:
    for along, name in (("images", "num_images"), ("classes", "num_classes")):
        points = [asdict(point) for point in points_of() if point.along == along]
        sizes = [point.pop(name) for point in points]
        assert len(points) > 2 and sizes == sorted(sizes)
        assert all(point == points[0] for point in points)


def test_plain_training_steps_do_not_change_the_model() -> None:
    model, data = points_of(smoke=True)[0].make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert seconds_of_step(model, data) > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not model.training


@pytest.mark.slow
def test_the_table_of_growth_can_be_made() -> None:
    rows, points = measure_growth(smoke=True)
    assert {row.section for row in rows} == {"growth"}
    assert sum(row.limit is not None for row in rows) == 4
    assert all(row.value >= 0 and row.setting for row in rows)
    keys = {"along", "x", "name", "seconds", "step_seconds", "model_bytes", "peak_bytes", "step_peak_bytes"}
    assert len(points) == 2 and all(keys <= point.keys() for point in points)
    assert all(point["seconds"] > point["step_seconds"] > 0 and point["steps"] * BATCH_SIZE >= 8 for point in points)
