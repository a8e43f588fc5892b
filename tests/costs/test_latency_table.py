"""Laws of the latency table: parts add up, linear times are found exactly, and measurements are made once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builders.clocks import in_eights, install, steady, uneven
from builders.models import build, random_plan
from builders.runs import Stopped, stop
from vitrim.costs import latency_table as module
from vitrim.costs.counting import PartCosts
from vitrim.costs.latency import LatencySettings
from vitrim.costs.latency_table import LatencyTable, fast_multiple, latency_table
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.surgery import prune

SETTINGS = LatencySettings()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test measures again."""
    monkeypatch.setattr(module, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "vitrim" / "latency"


def wide_model(**changes: Any) -> nn.Module:
    return build(**{"depth": 3, "mlp_ratio": 8.0, "dtype": torch.float32, **changes})  # 128 neurons


def times_of(model: nn.Module, dense_ms: float) -> PartCosts:
    return latency_table(model, SETTINGS).times(describe(model), dense_ms)


def test_the_parts_add_up_to_the_dense_model(monkeypatch: pytest.MonkeyPatch) -> None:
    install(uneven, monkeypatch)
    model = wide_model()
    assert times_of(model, 12.0).total(PruningPlan.full(describe(model))) == pytest.approx(12.0)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_linear_times_are_predicted_exactly(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(steady, monkeypatch)
    model = wide_model()
    plan = random_plan(describe(model), seed=seed, blocks=(0, 2) if seed % 2 else None)
    assert times_of(model, steady(model)).total(plan) == pytest.approx(steady(prune(model, plan)), rel=1e-6)


def test_cutting_twice_costs_what_cutting_once_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    install(in_eights, monkeypatch)
    model = wide_model()
    first = random_plan(describe(model), seed=1, blocks=(0, 2))
    later = random_plan(describe(prune(model, first)), seed=2, blocks=(1,))
    times = times_of(model, in_eights(model))
    assert times.after(first).total(later) == pytest.approx(times.total(first.then(later)))


def test_more_units_never_cost_less() -> None:
    noisy = LatencyTable(
        units={"blocks heads": [(0.5, -0.05), (0.25, 0.02)], "blocks neurons": [(0.25, 0.2), (0.5, 0.25), (0.75, 0.1)]},
        blocks={"blocks": 0.05},
    )
    times = noisy.times(describe(wide_model()), 10.0)
    assert all((np.diff(values) >= 0).all() and values[0] >= 0 for values in times.units.values())
    assert min(times.blocks) >= 0 and times.fixed >= 0


def test_savings_above_the_dense_latency_are_scaled_down() -> None:
    model = wide_model()
    times = LatencyTable(units={"blocks neurons": [(0.5, 0.7)]}, blocks={"blocks": 0.9}).times(describe(model), 10.0)
    assert times.total(PruningPlan.full(describe(model))) == pytest.approx(10.0)
    assert times.fixed == 0


@pytest.mark.parametrize(("clock", "multiple"), [(steady, 1), (in_eights, 8)])
def test_the_smallest_fast_multiple_is_found(clock: Any, multiple: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(clock, monkeypatch)
    assert fast_multiple(wide_model(), SETTINGS, 0.7) == multiple


def test_with_few_neurons_the_multiple_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    install(in_eights, monkeypatch)
    assert fast_multiple(build(mlp_ratio=0.1, dtype=torch.float32), SETTINGS, 0.7) == 1


# The cache


def test_a_measurement_is_used_again_under_the_same_conditions_only(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(steady, monkeypatch)
    model = wide_model()
    first = latency_table(model, SETTINGS)
    monkeypatch.setattr(module, "measure_savings", stop)
    assert latency_table(wide_model(seed=1), SETTINGS) == first  # weights do not change the time
    others = [(wide_model(depth=2), SETTINGS), (model.double(), SETTINGS), (model, LatencySettings(batch_size=2))]
    for other, settings in others:
        with pytest.raises(Stopped):
            latency_table(other, settings)
    monkeypatch.setattr(module, "version", lambda name: "0.0")
    with pytest.raises(Stopped):
        latency_table(wide_model(), SETTINGS)
    assert len(list(own_cache.iterdir())) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", *(pytest.param(text, marks=pytest.mark.slow) for text in ("{}", '{"found": '))]
)
def test_a_broken_file_in_the_cache_is_replaced(text: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(steady, monkeypatch)
    model = wide_model(depth=2)
    first = latency_table(model, SETTINGS)
    (file,) = own_cache.iterdir()
    file.write_text(text)
    assert latency_table(model, SETTINGS) == first


def test_a_cache_that_cannot_be_written_is_no_error(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(steady, monkeypatch)
    own_cache.parent.write_text("a file")
    assert latency_table(wide_model(), SETTINGS).blocks
    assert "cannot write the measurement" in capsys.readouterr().err


@pytest.mark.parametrize("on", ["model", "cpu", pytest.param("onnxruntime", marks=pytest.mark.slow)])
def test_real_models_can_be_timed(on: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLE_ROUNDS", 2)
    monkeypatch.setattr(module, "MIN_TABLE_ROUNDS", 1)
    monkeypatch.setattr(module, "FRACTIONS", (0.5,))
    found = latency_table(wide_model(depth=2), LatencySettings(on=on))
    assert found.units.keys() == {"blocks heads", "blocks neurons"} and found.blocks.keys() == {"blocks"}
