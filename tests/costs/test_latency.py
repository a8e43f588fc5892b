"""Laws of timing: one latency for each model, ratios to the first model, and the models are not changed."""

import copy
import os
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from builders.models import build, random_plan, same_tensors
from vitrim.costs.latency import (
    LatencySettings,
    busy_note,
    difference_text,
    interval_of_median,
    measure_latencies,
    measure_latency,
    time_in_rounds,
)
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


@pytest.mark.parametrize("rounds", [6, 10, 50])
def test_the_interval_of_a_median_covers_that_of_all_rounds_in_95_of_100_measurements(rounds: int) -> None:
    random, num = np.random.default_rng(0), 400
    covered = 0
    for _ in range(num):
        ratios = random.lognormal(mean=0.0, sigma=0.3, size=rounds)  # the median of all rounds is 1
        low, high = interval_of_median(ratios)
        assert low is not None and high is not None and low <= np.median(ratios) <= high
        covered += low <= 1 <= high
    assert covered >= 0.93 * num


def test_fewer_than_six_rounds_have_no_interval() -> None:
    assert [interval_of_median(np.ones(rounds)) for rounds in (1, 5, 6)] == [(None, None), (None, None), (1.0, 1.0)]
    for settings in (SETTINGS, LatencySettings(rounds=6, warmup=0)):
        dense, other = time_in_rounds([lambda: None] * 2, settings, torch.device("cpu"))
        assert (other.ratio_low is None) == (other.ratio_high is None) == (dense.ratio_low is None)
        assert (dense.ratio_low is None) == (settings.rounds < 6)


def test_a_difference_of_up_to_5_percent_is_not_mentioned() -> None:
    assert [difference_text(ms, 10.0) for ms in (10.4, 9.6, 11.2, 8.0)] == ["", "", "12 % above", "20 % below"]


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


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for load, is_busy in ((2.5, False), (6.0, True)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, load, load))
        assert bool(busy_note()) == is_busy
    assert busy_note().startswith("The machine was busy when latencies were measured (load 6.0 on 2 cores).")
