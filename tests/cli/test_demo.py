"""The demo: it compresses twice with the same scores, and a second call trains nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.runs import digits, short_recipe, short_training
from vitrim.cli import demo
from vitrim.importance.scores import Scores
from vitrim.recipe import TrainRecipe, load_recipe


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def training_logs(folder: Path) -> dict[Path, int]:
    """When each training log was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}


def test_the_demo_compresses_twice_and_continues_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {"demo-train": TrainRecipe(training=short_training()), "demo": short_recipe(blocks=1)}

    def shortened(name: str) -> Any:
        assert type(load_recipe(name)) is type(short[name])
        return short[name]

    monkeypatch.setattr(demo, "load_recipe", shortened)
    monkeypatch.setattr(demo, "SHAPE", {**demo.SHAPE, "patch_size": 4, "embed_dim": 16})
    monkeypatch.setattr(demo, "load_data", lambda name: digits(100))
    report = demo.run_demo(tmp_path / "demo")
    assert [row["keep"] for row in report["models"]] == [1.0, *demo.KEEPS]
    assert report == json.loads((tmp_path / "demo" / "report.json").read_text())
    for row in report["models"]:
        assert row["params"] <= row["keep"] * report["models"][0]["params"]
    whole, first = (Scores.load(tmp_path / "demo" / name / "scores.safetensors") for name in ("", "keep-0.7"))
    assert whole.digest() == first.digest()
    before, logs = files(tmp_path / "demo"), training_logs(tmp_path / "demo")
    assert len(logs) == 1 + len(demo.KEEPS)
    assert demo.run_demo(tmp_path / "demo") == report
    assert files(tmp_path / "demo") == before
    assert training_logs(tmp_path / "demo") == logs
