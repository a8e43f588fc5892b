"""Laws of timing: one latency for each model, ratios to the first model, and the models are not changed."""

import copy
import sys
from functools import partial
from typing import Any

import pytest
import torch

from builders.models import build, random_plan, same_tensors
from vitrim.costs.latency import LatencySettings, measure_latencies, measure_latency, time_in_rounds
from vitrim.errors import SettingError
from vitrim.models import describe
from vitrim.surgery import prune

SETTINGS = LatencySettings(batch_size=2, rounds=3, warmup=1)


def test_each_model_has_a_latency_with_its_ratio_to_the_first_model() -> None:
    dense = build(dtype=torch.float32)
    models = [dense, prune(dense, random_plan(describe(dense), blocks=(0, 2))), build("registers", img_size=48)]
    latencies = measure_latencies(models, SETTINGS)
    assert len(latencies) == 3
    assert latencies[0].ratio == 1
    for latency in latencies:
        assert 0 < latency.median_ms <= latency.p90_ms
        assert latency.ratio > 0
        assert (latency.batch_size, latency.device, latency.threads) == (2, "cpu", torch.get_num_threads())


def test_the_ratio_of_a_single_model_is_one() -> None:
    assert measure_latency(build(dtype=torch.bfloat16), SETTINGS).ratio == 1


@pytest.mark.parametrize("training", [False, True])
def test_models_are_not_changed(training: bool) -> None:
    model = build().train(training)
    before = copy.deepcopy(model)
    random_state = torch.get_rng_state()
    measure_latency(model, SETTINGS)
    assert model.training == training and same_tensors(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_missing_runtime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match="PyTorch finds no CUDA device here"):
        measure_latency(build(), LatencySettings(on="cuda"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingError, match="ONNX needs the package onnxruntime"):
        measure_latency(build(), LatencySettings(on="onnxruntime"))


@pytest.mark.parametrize("changes", [{"on": "tpu"}, {"batch_size": 0}, {"rounds": 0}, {"warmup": -1}], ids=str)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(changes))):
        LatencySettings(**changes)


def test_in_each_round_every_pass_runs_once_and_warmup_does_not_count() -> None:
    order: list[int] = []
    passes = [partial(order.append, index) for index in range(3)]
    found = time_in_rounds(passes, LatencySettings(rounds=2, warmup=1), torch.device("cpu"))
    assert order == [0, 1, 2] * 3
    assert len(found) == 3 and found[0].ratio == 1
