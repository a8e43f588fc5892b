"""Records of arms (`arm.json`) and rows of the tables, made up, as the benchmark's tables read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.measurements import ARMS, CONTROL, CONTROLS, DISTILLED, group, read_measurements
from benchmarks.results import to_rows

NUM_IMAGES = 200
MADE_UP = tuple(arm for arm in ARMS if arm != DISTILLED)  # tests that need this control add it
DENSE_TOP1 = 60.0
TOP1 = {
    **{"vitrim": 61.0, "vitrim-whole-heads": 60.5, "paper": 58.0, "hard-labels": 55.0, "torch-pruning": 57.0},
    **{
        "torch-pruning-head-widths": 57.5,
        "random": 50.0,
        "magnitude": 52.0,
        "scratch": 45.0,
        "timm-small": 48.0,
        CONTROL: 62.0,
        DISTILLED: 61.5,
    },
}
AFTER_CUT = {
    "vitrim": 50.0,
    "vitrim-whole-heads": 45.0,
    "paper": 40.0,
    "hard-labels": 40.0,
    "torch-pruning": 30.0,
    "torch-pruning-head-widths": 35.0,
    "random": 10.0,
    "magnitude": 5.0,
}


def evaluation(top1: float, seed: int, num_images: int = NUM_IMAGES) -> dict[str, Any]:
    """An evaluation that is right on exactly `top1` percent of the images, the first ones, shifted by the seed."""
    right = np.roll(np.arange(num_images) < round(top1 * num_images / 100), 2 * seed)
    return {"top1": 100 * float(right.mean()), "correct": "".join("01"[int(mark)] for mark in right)}


def against_dense(kl: float, same: float, seed: int, num_images: int = NUM_IMAGES) -> dict[str, Any]:
    """A comparison with the dense model: a divergence of `kl` on average, and `same` percent of equal classes."""
    divergence = kl * (0.5 + np.roll(np.linspace(0, 1, num_images), 2 * seed))
    equal = evaluation(same, seed, num_images)
    kl_images = " ".join(f"{value:.6g}" for value in divergence)
    return {"kl": kl, "agreement": equal["top1"], "kl_images": kl_images, "same": equal["correct"]}


def arm_values(arm: str, keep: float, seed: int, **changes: Any) -> dict[str, Any]:
    """The content of one `arm.json`."""
    cost = {"params": 1_000_000 * keep, "macs": 20_000_000 * keep}
    names = ["cut", "recover", "distil", "depth cut", "depth distil"] if arm == "vitrim" else ["cut", "distil"]
    stages = [{"name": name, "top1": 40.0 + i, **cost} for i, name in enumerate(names)]
    return {
        **{"cell": "tiny", "model": "small ViT", "dataset": "toys", "keep": keep, "arm": arm, "seed": seed},
        **{"student_epochs": 15, "search_epochs": 2, "dense_epochs": 30, "tuning": False},
        "stages": [] if arm in (*CONTROLS, "scratch", "timm-small") else stages,
        "evaluation": evaluation(TOP1[arm], seed),
        "after_cut": evaluation(AFTER_CUT[arm], seed) if arm in AFTER_CUT else None,
        "after_recover": evaluation(59.0, seed) if arm == "vitrim" else None,
        "dense": evaluation(DENSE_TOP1, 0),
        "against_dense": against_dense(0.1 if arm == "vitrim" else 0.25, TOP1[arm] + 20, seed),
        "recovered_against_dense": against_dense(0.2, 75.0, seed) if arm == "vitrim" else None,
        **{"params_ratio": keep, "macs_ratio": keep - 0.01, "seconds": 600.0, "images_per_second": 800.0},
        **{"train_macs_per_image": 6e7, "threads": 1, "commit": "abc1234"},
        "environment": {
            **{"device": "cpu", "cpu": "AMD EPYC", "cores": 2, "threads": 1, "dtype": "float32"},
            "versions": {"torch": "2.14.1"},
        },
        "command": "/home/me/.venv/bin/python -m benchmarks.run benchmarks/configs/tiny.toml -o /tmp/runs/tiny",
        **changes,
    }


def write_arm(output: Path, arm: str, keep: float, seed: int, **changes: Any) -> None:
    """Write one `arm.json` where `benchmarks.run` would write it."""
    folder = output / f"seed-{seed}" / (arm if arm in CONTROLS else f"keep-{keep}/{arm}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "arm.json").write_text(json.dumps(arm_values(arm, keep, seed, **changes)))


def write_cell(
    output: Path, arms: tuple[str, ...] = MADE_UP, keeps: tuple[float, ...] = (0.7, 0.5), **changes: Any
) -> Path:
    """Write the records of a cell with two seeds."""
    for seed in (0, 1):
        for arm in arms:
            for keep in (1.0,) if arm in CONTROLS else keeps:
                write_arm(output, arm, keep, seed, **changes)
    return output


def rows_of(*outputs: Path) -> list[dict[str, Any]]:
    """The rows of the tables for these folders."""
    return to_rows(group(read_measurements(outputs)[0]))


def pick(rows: list[dict[str, Any]], arm: str, keep: float) -> dict[str, Any]:
    """The row of an arm at a fraction to keep."""
    return next(row for row in rows if row["arm"] == arm and row["keep"] == keep)


def exit_status(main: Callable[[list[str]], None], *arguments: str | Path) -> int:
    """Call a command of the benchmark and return its exit status."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code
