"""Curves over student epochs: their rows, and the command `python -m benchmarks.curves`."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.curves import app, curve_rows, merge_curves
from benchmarks.measurements import read_measurements
from benchmarks.run import app as run_app
from benchmarks.run import status_of
from builders.cells import cell_file
from builders.records import evaluation, write_arm
from vitrim.training.loop import TrainingLoop

OTHER = "torch-pruning-head-widths"


def points(rows: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in names) for row in rows]


@pytest.fixture
def cell(tmp_path: Path) -> Path:
    """A cell of 3 epochs with three arms and two seeds, and two arms with 1 and 10 epochs, of which seed 0 was run."""
    for seed in (0, 1):
        for arm in ("vitrim", OTHER, "paper"):
            steps = {"planning": 100.0, "distillation": 500.0}
            write_arm(tmp_path, arm, 0.5, seed, student_epochs=3, step_seconds=steps)
    for number, top1 in ((1, 40.0), (10, 70.0)):
        for arm, seconds in (("vitrim", 200.0 * number), (OTHER, 300.0 * number)):
            found = evaluation(top1 - 2 * (arm == OTHER), 0)
            folder = tmp_path / f"epochs-{number}"
            write_arm(folder, arm, 0.5, 0, student_epochs=number, seconds=seconds, evaluation=found)
    return tmp_path


def test_a_curve_begins_before_the_training_and_has_the_same_seeds_at_all_points(cell: Path) -> None:
    rows = curve_rows(cell)
    assert points(rows, "arm", "student_epochs", "top1") == [
        *[("vitrim", 0, 59), ("vitrim", 1, 40), ("vitrim", 3, 61), ("vitrim", 10, 70)],
        *[(OTHER, 0, 35), (OTHER, 1, 38), (OTHER, 3, 57.5), (OTHER, 10, 68)],
    ]
    assert all(row["seeds"] == [0] and row["low"] < row["top1"] < row["high"] for row in rows)
    assert points(rows[4:], "vitrim_delta") == [(24,), (2,), (3.5,), (2,)]
    assert rows[5]["vitrim_low"] <= 2 <= rows[5]["vitrim_high"] and rows[0]["vitrim_delta"] is None
    assert points(rows[:4], "seconds", "kl", "agreement") == [
        *[(100, 0.2, 75), (200, 0.1, 81)],
        *[(600, 0.1, 81), (2000, 0.1, 81)],
    ]
    assert points(rows[4:5], "seconds", "kl", "agreement") == [(100, None, None)]


def test_the_cell_itself_has_no_records_of_other_epochs(cell: Path) -> None:
    assert {item.values["student_epochs"] for item in read_measurements([cell])[0]} == {3}


def test_without_other_epochs_there_is_no_curve(tmp_path: Path) -> None:
    write_arm(tmp_path, "vitrim", 0.5, 0)
    assert curve_rows(tmp_path) == []


def test_earlier_points_are_kept_and_lose_their_comparison_with_a_replaced_vitrim(cell: Path) -> None:
    rows = curve_rows(cell)
    assert merge_curves(rows, rows) == rows == merge_curves([], rows)
    (ours,) = (row for row in rows if row["arm"] == "vitrim" and row["student_epochs"] == 1)
    merged = merge_curves(rows, [ours | {"top1": 41.0}])
    lost = [row["student_epochs"] for row in merged if row["arm"] == OTHER and row["vitrim_delta"] is None]
    assert lost == [1] and len(merged) == len(rows)


@pytest.mark.slow
def test_curves_are_run_with_the_dense_model_of_the_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"student_epochs": 1, "vitrim": {"depth": {"blocks": 0}, "importance": {"steps": 1}}, "dense_seed": 0}
    file, out = cell_file(tmp_path, **changes), tmp_path / "out"
    assert status_of(run_app, [file, "-o", str(out), "--seeds", "1", "--keeps", "0.5", "--arms", "random"]) == 0
    command = [file, "-o", str(out), "--epochs", "1,2", "--arms", "random,vitrim", "--keeps", "0.5", "--seeds", "1"]
    trained: list[str] = []
    run = TrainingLoop.run

    def noted(loop: TrainingLoop) -> Any:
        trained.append(f"{loop.job.stage} {loop.job.settings.epochs}")
        return run(loop)

    monkeypatch.setattr(TrainingLoop, "run", noted)
    assert status_of(app, command) == 0
    assert trained == ["width 1", "width 2", "distil 2"]
    rows = json.loads((out / "curves.json").read_text())
    assert points(rows, "arm", "student_epochs") == [
        (arm, number) for arm in ("vitrim", "random") for number in (0, 1, 2)
    ]
    assert rows[2]["command"].endswith("-o runs/tiny --epochs 1,2 --arms random,vitrim --keeps 0.5 --seeds 1")
    assert rows[1]["command"].endswith("benchmarks.run cell.toml -o runs/tiny")
    assert status_of(app, command) == 0 and len(trained) == 3


def test_wrong_numbers_of_epochs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = cell_file(tmp_path)
    for epochs, expected in (("1,two", "--epochs is '1,two'"), ("3", "at most half of the dense model's 4")):
        assert status_of(app, [file, "-o", str(tmp_path / "out"), "--epochs", epochs, "--arms", "vitrim"]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
