"""The command `python -m benchmarks.latencies`: it times the final models of a cell, and continues where it stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.latencies import app
from benchmarks.run import status_of
from builders.models import build
from builders.records import write_arm
from vitrim.costs.latency import measure_latencies
from vitrim.saving.checkpoint import save

MEASURE = "vitrim.costs.latency.measure_latencies"


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """The folder of a cell with a dense model and two seeds of two arms. The models of all are small."""
    for place in ("seed-0/dense", *(f"seed-{seed}/keep-0.5/{arm}" for seed in (0, 1) for arm in ("vitrim", "paper"))):
        save(build(dtype=torch.float32), tmp_path / place / "model")
    for arm in ("vitrim", "paper"):
        for seed in (0, 1):
            write_arm(tmp_path, arm, 0.5, seed, dense_seed=0)
    return tmp_path


def measure(cell: Path, *options: str) -> list[dict[str, Any]]:
    assert status_of(app, [str(cell), "--rounds", "6", "--warmup", "0", *options]) == 0
    found: list[dict[str, Any]] = json.loads((cell / "latency.json").read_text())
    return found


def test_the_lowest_seed_of_each_arm_is_timed_once_for_each_batch_size(
    cell: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = measure(cell, "--batch-size", "2")
    assert [(row["arm"], row["keep"], row["seed"], row["batch_size"]) for row in rows] == [
        ("paper", 0.5, 0, 2),
        ("vitrim", 0.5, 0, 2),
    ]
    assert all(0 < row["low"] <= row["ratio"] <= row["high"] and row["on"].startswith("PyTorch, ") for row in rows)
    both = measure(cell, "--batch-size", "1")
    assert both[:2] == rows and [row["batch_size"] for row in both[2:]] == [1, 1]
    with monkeypatch.context() as patched:
        patched.setattr(MEASURE, lambda *_: pytest.fail("it was timed before"))
        assert measure(cell, "--batch-size", "2") == both


def test_only_a_model_that_was_made_again_is_timed_again(cell: Path) -> None:
    paper, vitrim = measure(cell, "--batch-size", "1")
    save(build(dtype=torch.float32, seed=1), cell / "seed-0" / "keep-0.5" / "paper" / "model")
    same, again = measure(cell, "--batch-size", "1")
    assert same == vitrim and again["arm"] == "paper"
    assert again["weights"][0] != paper["weights"][0] and again["weights"][1] == paper["weights"][1]


def test_a_stopped_command_keeps_what_it_has_timed(cell: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def stopped(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return measure_latencies(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(MEASURE, stopped)
        assert status_of(app, [str(cell), "--rounds", "6"]) == 2
    first = json.loads((cell / "latency.json").read_text())
    assert len(first) == 1
    assert measure(cell)[:1] == first


def test_a_missing_model_is_named(cell: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cell / "seed-0" / "keep-0.5" / "paper" / "model" / "model.safetensors").unlink()
    assert status_of(app, [str(cell), "--rounds", "1"]) == 2
    assert "seed-0/keep-0.5/paper has no model" in capsys.readouterr().err.replace("\\", "/")
