"""`vitrim watch`: any content of the files that it reads is shown, or left out."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, json_values, mutated, tried
from vitrim.cli.watch import lines_of
from vitrim.runs.files import FORECAST, METRICS, RUN
from vitrim.runs.steps import FORMAT, NotedStep, NotedSteps, read_steps
from vitrim.watching import watch

STEPS = (
    NotedStep(text="score", seconds=2.0, took=1.5, result="scores.safetensors"),
    NotedStep(text="distil", seconds=100.0, stage="width", num_updates=100, result="stages/width"),
)
FORECAST_OF_RUN = {"format": FORMAT, **asdict(NotedSteps(title="compress", steps=STEPS, began=1e9, command="vitrim"))}
ROW = {"stage": "width", "epoch": 1, "step": 10, "loss": 0.5, "seconds": 4.0, "images_per_second": 9.0, "top1": 60.0}


def assert_is_shown(folder: Path, forecast: str, row: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / RUN).write_text("{}")
    (folder / FORECAST).write_bytes(forecast.encode("utf-8", "surrogatepass"))
    (folder / METRICS).write_bytes(f"{row}\n".encode("utf-8", "surrogatepass"))
    found = watch(folder)
    assert list(lines_of(found)) and json.dumps(asdict(found))


@tried(60)
@given(document=st.one_of(mutated(FORECAST_OF_RUN), json_values), row=st.one_of(mutated(ROW), json_values))
def test_any_json_is_shown_or_left_out(document: object, row: object, tmp_path: Path) -> None:
    assert_is_shown(tmp_path / "run", json.dumps(document), json.dumps(ROW))
    assert_is_shown(tmp_path / "run", json.dumps(FORECAST_OF_RUN), json.dumps(row))


@tried(60)
@given(text=st.one_of(damaged(json.dumps(FORECAST_OF_RUN)), st.text()))
def test_any_text_is_shown_or_left_out(text: str, tmp_path: Path) -> None:
    assert_is_shown(tmp_path / "run", text, json.dumps(ROW))


@pytest.mark.parametrize(
    "changes",
    [{"correction": None}, {"began": "x"}, {"title": 1}, {"correction": float("nan")}, {"correction": True}],
)
def test_a_forecast_with_a_wrong_value_is_left_out(changes: dict[str, object], tmp_path: Path) -> None:
    assert_is_shown(tmp_path, json.dumps({**FORECAST_OF_RUN, **changes}), "")
    assert read_steps(tmp_path) is None


@pytest.mark.parametrize(
    "changes", [{"text": 3}, {"took": "b"}, {"seconds": -1.0}, {"num_updates": 10**400}, {"num_updates": 1.5}]
)
def test_a_step_with_a_wrong_value_is_left_out(changes: dict[str, object], tmp_path: Path) -> None:
    steps = [{**asdict(STEPS[0]), **changes}]
    assert_is_shown(tmp_path, json.dumps({**FORECAST_OF_RUN, "steps": steps}), "")
    assert read_steps(tmp_path) is None
