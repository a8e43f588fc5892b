"""What a run says before it begins, and what it costs to say it."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from builders.runs import digits, digits_model, short_recipe, short_training
from vitrim import depth
from vitrim.costs.latency import LatencySettings
from vitrim.forecast import Forecast, Step, last_steps, train_steps
from vitrim.pace import Pace, measure_pace
from vitrim.pipeline import compress
from vitrim.planning import Planner
from vitrim.source import Source
from vitrim.training.snapshots import cycles_of

PACE = Pace(forward=1.0, training=3.0, teachers=1.0)


def source() -> Source:
    return Source.of(digits_model(depth=4), digits())


def test_measuring_the_pace_changes_neither_model_nor_random_state() -> None:
    found = source()
    before = {name: tensor.clone() for name, tensor in found.model.state_dict().items()}
    state = torch.random.get_rng_state()
    pace = measure_pace(found, short_training())
    assert 0 < pace.forward < 10 and 0 < pace.training < 10 and pace.decoding == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in found.model.parameters())


def test_the_epochs_that_are_said_are_those_of_the_recipe_whatever_the_number_of_blocks() -> None:
    recipe = short_recipe(width_training=short_training(epochs=3), depth_training=short_training(epochs=5))
    for num_blocks, epochs in ((None, [8]), (0, [8]), (2, [3, 5])):
        steps = last_steps(source(), recipe, PACE, num_blocks)
        said = [int(found[1]) for step in steps if (found := re.search(r"distil (\d+) epoch", step.text))]
        assert said == epochs


def test_twice_the_images_take_twice_the_time() -> None:
    recipe = short_recipe(latency=LatencySettings(rounds=1, warmup=0))
    times = [
        sum(step.seconds for step in last_steps(Source.of(digits_model(), digits(count, count)), recipe, PACE, 0))
        for count in (200, 400)
    ]
    assert times[1] == pytest.approx(2 * times[0], rel=0.2)


def test_reading_files_takes_time_beside_a_cpu_and_none_beside_a_gpu() -> None:
    slow = replace(PACE, decoding=2.0)
    assert (slow.seconds(10, 3.0), replace(slow, overlaps=True).seconds(10, 3.0)) == (50.0, 30.0)


def test_the_rest_is_corrected_by_the_steps_that_are_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    forecast = Forecast([Step(text="score", seconds=60), Step(text="distil", seconds=600), Step(text="end", seconds=0)])
    forecast.announce("compress")
    now = 120.0
    forecast.finish_step()
    assert "step 1 of 3 done; about 20 min left in all" in capsys.readouterr().err


def test_a_step_that_is_read_corrects_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    forecast = Forecast([Step(text="score", seconds=60), Step(text="distil", seconds=600)])
    forecast.finish_step(was_read=True)
    assert "step 1 of 2 read from the run folder; about 10 min left in all" in capsys.readouterr().err


@pytest.mark.parametrize(
    "latency_ms",
    [pytest.param(0.0, id="fractions"), pytest.param(1000.0, id="milliseconds", marks=pytest.mark.slow)],
)
def test_a_run_says_its_steps_and_plans_once_if_no_block_is_removed(
    latency_ms: float, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    plan_one_shot, plan_width = Planner.plan_one_shot, Planner.plan_width
    monkeypatch.setattr(Planner, "plan_one_shot", lambda *args: calls.append("search") or plan_one_shot(*args))
    monkeypatch.setattr(Planner, "plan_width", lambda *args: calls.append("width") or plan_width(*args))
    monkeypatch.setattr(depth, "mean_divergence", lambda *args: float(len(calls)))  # fewer blocks are always better
    recipe = short_recipe(blocks="auto", budget={"latency_ms": latency_ms})
    model = digits_model(depth=4)
    compress(model, digits(), recipe, tmp_path / "run")
    lines = capsys.readouterr().err
    num_steps = 6 if latency_ms else 5
    assert f"to 60 %{', 1000 ms' if latency_ms else ''}, in {num_steps} steps:" in lines
    assert f"step {num_steps - 1} of {num_steps} done; about 1 s left in all" in lines
    assert "choosing heads and neurons: step 2 of 2" in lines
    assert calls == ["search"] * calls.count("search") and calls
    compress(model, digits(), recipe, tmp_path / "run")
    assert "in all" not in capsys.readouterr().err  # nothing is left to do


def test_a_training_says_its_epochs_and_its_time_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    steps = train_steps(source(), cycles_of(short_training(epochs=20, evaluate_every=5), 1, 0), PACE)
    assert steps[0].seconds == 20 * 60 * 3.0 + 5 * 50 * 1.0  # 60 training and 50 validation images
    Forecast(steps).announce("train vit on digits")
    assert "train vit on digits: 20 epochs of 60 images, about 1 h 4 min on this machine" in capsys.readouterr().err


def test_a_continued_run_says_what_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "scores").touch()
    save_file({"weight": torch.zeros(1)}, tmp_path / "width.checkpoint.safetensors", metadata={"step": "30"})
    steps = [
        Step(text="score", seconds=600, result="stages/scores"),
        Step(text="distil", seconds=600, result="stages/distilled", stage="width", num_updates=40),
        Step(text="end", seconds=60, result="report.json"),
    ]
    Forecast(steps, tmp_path).announce("compress")
    lines = [line[20:] for line in capsys.readouterr().err.splitlines()]
    assert lines[1:] == [
        "  1. score: done before",
        "  2. distil: about 2 min",
        "  3. end: about 1 min",
        "  about 4 min in all on this machine",
    ]


def test_new_steps_are_numbered_after_those_that_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    forecast = Forecast([Step(text="search", seconds=60), Step(text="distil", seconds=600)])
    forecast.finish_step()
    capsys.readouterr()
    forecast.replace_rest([Step(text="width", seconds=60), Step(text="depth", seconds=120)], "1 block will be removed")
    lines = [line[20:] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["1 block will be removed; steps 2 to 3 are:", "  2. width: about 1 min", "  3. depth: about 2 min"]
