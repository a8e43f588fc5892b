"""Laws of the timing: a row for each model, ratios to the first, models left as they were. Speed is no law."""

import copy
import sys
from typing import Any

import pytest
import torch

from builders.models import build, random_plan, same_tensors
from vitrim.costs.latency import LatencySettings, measure_latencies, measure_latency
from vitrim.errors import SettingError
from vitrim.models import describe
from vitrim.surgery import prune

SETTINGS = LatencySettings(batch_size=2, rounds=3, warmup=1)


def test_one_row_for_each_model_with_ratios_to_the_first() -> None:
    dense = build(dtype=torch.float32)
    models = [dense, prune(dense, random_plan(describe(dense), blocks=(0, 2))), build("registers", img_size=48)]
    rows = measure_latencies(models, SETTINGS)
    assert len(rows) == 3
    assert rows[0].ratio == 1
    for row in rows:
        assert 0 < row.median_ms <= row.p90_ms
        assert row.ratio > 0
        assert (row.batch_size, row.device, row.threads) == (2, "cpu", torch.get_num_threads())


def test_one_model_alone() -> None:
    assert measure_latency(build(dtype=torch.bfloat16), SETTINGS).ratio == 1


@pytest.mark.parametrize("training", [False, True])
def test_models_are_left_as_they_were(training: bool) -> None:
    model = build().train(training)
    before = copy.deepcopy(model)
    random_state = torch.get_rng_state()
    measure_latency(model, SETTINGS)
    assert model.training == training and same_tensors(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_what_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="PyTorch finds no CUDA device here"):
        measure_latency(build(), LatencySettings(on="cuda"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match="ONNX needs the package onnxruntime"):
        measure_latency(build(), LatencySettings(on="onnxruntime"))


@pytest.mark.parametrize("changes", [{"on": "tpu"}, {"batch_size": 0}, {"rounds": 0}, {"warmup": -1}], ids=str)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="latency"):
        LatencySettings(**changes)
