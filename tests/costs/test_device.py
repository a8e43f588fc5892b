"""Laws of the measurements for a budget: only what the budget needs is measured, and it is read as it was written."""

import json

import pytest
from torch import nn

from builders.clocks import in_eights, install, steady
from builders.models import build
from builders.runs import digits_model, stop
from vitrim.costs import device
from vitrim.costs.budget import Budget
from vitrim.costs.device import DeviceTimes, settings_for_comparison
from vitrim.costs.latency import LatencySettings
from vitrim.models import describe
from vitrim.plan import PruningPlan

SETTINGS = LatencySettings()


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return digits_model(depth=2, mlp_ratio=8.0)


@pytest.fixture
def found(dense: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> DeviceTimes:
    install(in_eights, monkeypatch, tmp_path_factory.getbasetemp() / "in eights")
    return DeviceTimes.measure(dense, Budget(latency_ms=0.7 * in_eights(dense), multiple_of="measured"), SETTINGS)


def test_a_budget_in_milliseconds_needs_latency_table_and_dense_latency(found: DeviceTimes, dense: nn.Module) -> None:
    assert found.dense_ms == in_eights(dense)
    times = found.times(describe(dense))
    assert times is not None
    assert times.total(PruningPlan.full(describe(dense))) == pytest.approx(found.dense_ms)
    assert found.multiple_of == 8


def test_what_the_budget_does_not_need_is_not_measured(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    install(steady, monkeypatch)
    for name in ("latency_table", "measure_latency", "fast_multiple"):
        monkeypatch.setattr(device, name, stop)
    found = DeviceTimes.measure(dense, Budget(multiple_of=4), SETTINGS)
    assert found == DeviceTimes(multiple_of=4)
    assert found.times(describe(dense)) is None


def test_measurements_are_read_from_json_as_they_were_written(found: DeviceTimes) -> None:
    for times in (found, DeviceTimes(multiple_of=2)):
        data = json.loads(json.dumps(times.to_dict()))
        assert data.keys() == {"multiple_of"} | ({"dense_ms", "table"} if times.table else set())
        assert DeviceTimes.from_dict(data) == times
    assert found.to_dict()["table"].keys() == {"units", "blocks", "widths"}


def test_a_slow_model_is_compared_in_fewer_rounds() -> None:
    rounds = [settings_for_comparison(SETTINGS, dense_ms).rounds for dense_ms in (1e-3, 100.0, 300.0, 1e6)]
    assert rounds == [device.MAX_COMPARISON_ROUNDS, 60, 20, device.MIN_COMPARISON_ROUNDS]


@pytest.mark.parametrize(("multiple_of", "in_bf16", "expected"), [("auto", True, 8), ("auto", False, 1), (3, True, 3)])
def test_a_student_that_is_trained_in_bf16_keeps_multiples_of_8_neurons(
    multiple_of: int | str, in_bf16: bool, expected: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = DeviceTimes.measure(build(), Budget(multiple_of=multiple_of), SETTINGS, in_bf16=in_bf16)
    assert found == DeviceTimes(multiple_of=expected)
    assert ("a multiple of 8 neurons" in capsys.readouterr().err) == (multiple_of == "auto" and in_bf16)
