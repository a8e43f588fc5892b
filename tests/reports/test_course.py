"""Laws of the course of a run: curves are the rows of the metrics, and seconds have those before an interruption."""

import json
from pathlib import Path
from typing import Any

from vitrim.reports.course import MAX_ROWS, curve_rows, second_rows


def write_metrics(folder: Path, *rows: dict[str, Any]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": 1, **row}) + "\n" for row in rows) + "{no row\n")


def write_seconds(folder: Path, **seconds: float) -> None:
    (folder / "stages").mkdir()
    names = {name.replace("__", "/").replace("_", "-"): value for name, value in seconds.items()}
    (folder / "stages" / "seconds.json").write_text(json.dumps({"format": 1, "seconds": names}))


def test_curves_have_each_epoch_of_each_training_but_those_of_the_search(tmp_path: Path) -> None:
    write_metrics(
        tmp_path,
        {"stage": "depth-search-0", "epoch": 1, "loss": 9.0},
        {"stage": "width", "epoch": 1, "loss": 2.0},
        {"stage": "width", "event": "slower"},
        {"stage": "width", "epoch": 2, "loss": float("inf"), "top1": 50.0, "validation_loss": 1.5},
        {"stage": "depth", "epoch": 1, "loss": "x"},
    )
    nothing = {"validation_loss": None, "top1": None}
    assert curve_rows(tmp_path) == [
        {
            "stage": "width",
            "rows": [
                {"epoch": 1, "loss": 2.0, **nothing},
                {"epoch": 2, "loss": None, "validation_loss": 1.5, "top1": 50},
            ],
        },
        {"stage": "depth", "rows": [{"epoch": 1, "loss": None, **nothing}]},
    ]


def test_long_curves_are_thinned_out_and_keep_their_end(tmp_path: Path) -> None:
    write_metrics(tmp_path, *({"stage": "train", "epoch": epoch, "loss": 1.0} for epoch in range(1, 1002)))
    (curve,) = curve_rows(tmp_path)
    epochs = [row["epoch"] for row in curve["rows"]]
    assert len(epochs) <= MAX_ROWS and epochs[-1] == 1001 and epochs == sorted(epochs)


def test_seconds_of_a_training_are_those_of_its_epochs_and_those_of_other_steps_add_up(tmp_path: Path) -> None:
    write_metrics(tmp_path, *({"stage": "width", "epoch": epoch, "seconds": 5.0} for epoch in (1, 2, 3)))
    write_seconds(
        tmp_path,
        **{"stages__width_distilled": 5.0, "stages__depth_search_0.json": 2.0, "stages__depth_plan_0.json": 1.0},
        **{"scores.safetensors": 4.0, "model": 9.0, "stages__device.json": 0.001},
    )
    assert second_rows(tmp_path) == [
        {"name": "score heads and neurons", "seconds": 4.0},
        {"name": "search the number of blocks", "seconds": 3.0},
        {"name": "distil after the width cut", "seconds": 15.0},
    ]


def test_a_run_without_these_files_has_nothing(tmp_path: Path) -> None:
    assert curve_rows(tmp_path) == [] and second_rows(tmp_path) == []
