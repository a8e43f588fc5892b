"""The cost of an arm by steps."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.step_seconds import parts_file, step_seconds, timing_plans
from vitrim.planning import Planner

CLOCK = "benchmarks.step_seconds.time.monotonic"


def note(folder: Path, results: dict[str, float], *epochs: dict[str, Any]) -> None:
    """Write what a run notes: seconds of its results, and rows of its epochs."""
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / "seconds.json").write_text(json.dumps({"format": 1, "seconds": results}))
    rows = [{"step": 1, "epoch": 1, **row} for row in epochs]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an arm whose plan was made twice: each took 2 s for two recoveries, 3 s for a score, 5 s else."""
    now = [0.0]

    def take(seconds: float) -> None:
        now[0] += seconds

    def plan_width(planner: Planner, scores: None, num_blocks: int) -> str:
        take(5)
        for _ in range(2):
            planner.cut(None, None)  # type: ignore[arg-type]
        planner.score(None)  # type: ignore[arg-type]
        return "plan"

    monkeypatch.setattr(CLOCK, lambda: now[0])
    monkeypatch.setattr(Planner, "cut", lambda *_: take(1))
    monkeypatch.setattr(Planner, "score", lambda *_: take(3))
    monkeypatch.setattr(Planner, "plan_width", plan_width)
    planner = object.__new__(Planner)
    for _ in range(2):
        with timing_plans(tmp_path / "vitrim"):
            planner.score(None)  # type: ignore[arg-type]  # not part of a plan
            assert planner.plan_width(None, 0) == "plan"  # type: ignore[arg-type, comparison-overlap]
    assert Planner.plan_width is plan_width
    return tmp_path / "vitrim"


def test_scores_and_recoveries_in_a_plan_are_told_apart(planned: Path) -> None:
    assert json.loads(parts_file(planned).read_text()) == {"plan_width 0": {"recovery": 2, "scoring": 3}}
    results = {"stages/scores.safetensors": 3.0, "stages/rotation.safetensors": 1.0, "stages/head-widths.json": 0.5}
    results |= {"stages/width-plan.json": 10.0, "stages/width-recovered": 4.0, "stages/evaluation-final.json": 7.0}
    epochs = [{"stage": "depth-search-0", "seconds": 9.0}, *[{"stage": "width", "seconds": 20.0}] * 2]
    note(planned, {**results, "stages/width-distilled": 30.0, "model": 1.0}, *epochs)
    assert step_seconds(planned, 100.0) == {
        **{"scoring": 6.0, "rotation": 1.5, "planning": 5.0, "recovery": 6.0, "distillation": 40.0, "other": 41.5}
    }


def test_an_arm_that_prunes_once_has_planning_and_distillation(tmp_path: Path) -> None:
    note(tmp_path, {"pruned.safetensors": 8.0, "evaluation-cut.json": 2.0}, {"stage": "distil", "seconds": 20.0})
    assert step_seconds(tmp_path, 31.0) == {"planning": 8.0, "distillation": 20.0, "other": 3.0}


def test_the_depth_search_is_planning(tmp_path: Path) -> None:
    results = {"stages/depth-order.json": 1.0, "stages/depth-search-0.json": 2.0, "stages/depth-plan-1.json": 3.0}
    results |= {"stages/depth-step.json": 4.0, "stages/depth-recovered": 5.0, "stages/evaluation-depth-cut.json": 6.0}
    note(tmp_path, results, {"stage": "depth-search-0", "seconds": 2.0})
    assert step_seconds(tmp_path, 21.0) == {"planning": 10.0, "recovery": 5.0, "other": 6.0}


def test_a_run_that_noted_no_seconds_has_no_steps(tmp_path: Path) -> None:
    assert step_seconds(tmp_path, 10.0) is None
