"""Record what vitrim computes on digits, and compare two records file by file.

    python -m tools.same_results record FOLDER
    python -m tools.same_results compare FOLDER OTHER

`record` trains a small ViT, compresses it twice, and compresses it once more with a kill in the middle of the
distillation. `compare` reads scores, plans, recovered weights, losses and final weights of both records. A change that
should not affect results is right when every line says "equal". Record both on one machine with one number of threads.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

COMMAND = [sys.executable, "-m", "vitrim"]
MODEL = ["vit_tiny_patch16_224", "--img-size", "8", "--patch-size", "2"]
MODEL += [f"--model-arg={pair}" for pair in ("embed_dim=32", "depth=4", "num_heads=4", "weight_init=reset")]
TRAIN = {"epochs": 20, "batch_size": 64, "learning_rate": 3e-3, "warmup_epochs": 1, "augmentation.crop": "none"}
TRAIN |= {"evaluate_every": 0}  # so the last epoch is kept
DISTIL = {"epochs": 2, "batch_size": 64, "checkpoint_minutes": 0, "evaluate_every": 0, "augmentation.crop": "none"}
IMPORTANCE = {"importance.num_images": 256, "importance.batch_size": 64}
RUNS: dict[str, dict[str, Any]] = {
    "default": {"budget.params": 0.5, "budget.macs": 0.5, "depth.search_images": 200, "depth.search_epochs": 1},
    "every-term": {
        "budget.params": 0.4,
        "budget.macs": 0.6,
        "depth.blocks": 1,
        "importance.criterion": "taylor",
        "heads.width": "full",  # the relations compare heads of equal width
        "width_training.distillation.relations": 1.0,
        "width_training.distillation.hard": 0.5,
        "depth_training.distillation.temperature": 2.0,
    },
}
MACHINE = ("images_per_second", "seconds")  # of a row of metrics.jsonl: they depend on the machine


def main() -> None:
    """Read the command line and exit with 1 where two records differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("folder", type=Path)
    comparing = commands.add_parser("compare")
    comparing.add_argument("folder", type=Path)
    comparing.add_argument("other", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "record":
        record(chosen.folder)
    else:
        sys.exit(compare(chosen.folder, chosen.other))


def record(folder: Path) -> None:
    """Fill `folder` with one training, two compressions, and one that was killed and repeated."""
    dense = folder / "dense"
    run(train_command(dense))
    for name in RUNS:
        run(compress_command(dense, name, folder / name))
    killed = folder / "default-resumed"
    run_and_kill(compress_command(dense, "default", killed), killed / "width.checkpoint.safetensors")
    run(compress_command(dense, "default", killed))


def train_command(output: Path) -> list[str]:
    """`vitrim train` with settings that are the same in every version."""
    changes = [f"--set=training.{name}={value}" for name, value in TRAIN.items()]
    return [*COMMAND, "train", *MODEL, "--data", "digits", "-o", str(output), *changes]


def compress_command(dense: Path, name: str, output: Path) -> list[str]:
    """`vitrim compress` with the settings of one of `RUNS`."""
    settings = {
        f"{stage}.{key}": value for stage in ("width_training", "depth_training") for key, value in DISTIL.items()
    }
    settings |= IMPORTANCE | RUNS[name] | {"latency.rounds": 2, "budget.min_neurons": 4}
    changes = [f"--set={key}={value}" for key, value in settings.items()]
    return [*COMMAND, "compress", str(dense), "--data", "digits", "-o", str(output), *changes]


def run(command: list[str]) -> None:
    """Run a command to its end."""
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def run_and_kill(command: list[str], file: Path) -> None:
    """Run a command and kill it as soon as `file` exists."""
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while not file.exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, f"the command ended before {file} was written"
    process.send_signal(signal.SIGKILL)
    process.wait()


def compare(folder: Path, other: Path) -> int:
    """Print one line for each file of two records; 1 where any differs, else 0."""
    names = sorted(found_in(folder) | found_in(other))
    differ = False
    for name in names:
        result = difference(path_of(folder, name), path_of(other, name))
        differ = differ or result != "equal"
        print(f"{name}: {result}")
    # a row of metrics.jsonl after a kill holds the mean of the rest of its epoch
    resumed = [name for name in names if name.startswith("default-resumed/") and "metrics" not in name]
    for name in resumed:
        result = difference(path_of(other, name), path_of(other, name.replace("default-resumed", "default", 1)))
        differ = differ or result != "equal"
        print(f"{name} against the run without a kill: {result}")
    return int(differ)


def found_in(folder: Path) -> set[str]:
    """The files of a record that hold what was computed, without the folder `stages`, which runs of 0.1.0 lack."""
    kinds = ("*.safetensors", "*plan.json", "*step.json", "metrics.jsonl", "depth-*.json", "evaluation*.json")
    files = {file.relative_to(folder).as_posix() for kind in kinds for file in folder.rglob(kind)}
    return {name.replace("/stages/", "/") for name in files if "checkpoint" not in name}


def path_of(folder: Path, name: str) -> Path:
    """The path of a file that `found_in` has found."""
    run, _, rest = name.partition("/")
    return path if (path := folder / run / "stages" / rest).exists() else folder / name


def difference(one: Path, two: Path) -> str:
    """`equal`, or how far two files are apart."""
    if not (one.exists() and two.exists()):
        return f"only in {(one if one.exists() else two).parent}"
    first, second = numbers(one), numbers(two)
    if first.keys() != second.keys():
        return f"other entries: {sorted(first.keys() ^ second.keys())[:3]}"
    if any(first[key].shape != second[key].shape for key in first):
        return "other sizes"
    if all(np.array_equal(first[key], second[key], equal_nan=True) for key in first):
        return "equal"
    gaps = {key: float(np.max(np.abs(first[key] - second[key]), initial=0)) for key in first if first[key].size}
    worst = max(gaps, key=lambda key: gaps[key])
    return f"largest difference {gaps[worst]:.3g} in {worst}"


def numbers(file: Path) -> dict[str, np.ndarray]:
    """Everything in a file that was computed, by name, in float64."""
    if file.suffix == ".safetensors":
        return {name: values.astype(np.float64) for name, values in load_file(file).items()}
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        rows = [{key: value for key, value in row.items() if key not in MACHINE} for row in rows]
        return flat(rows)
    return flat(json.loads(file.read_text(encoding="utf-8")))


def flat(value: Any, name: str = "") -> dict[str, np.ndarray]:
    """Nested lists and tables as arrays by path; a text counts by its characters."""
    if isinstance(value, dict):
        return {path: array for key, item in value.items() for path, array in flat(item, f"{name}.{key}").items()}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return {path: array for key, item in enumerate(value) for path, array in flat(item, f"{name}.{key}").items()}
    if isinstance(value, str):
        return {name: np.frombuffer(value.encode(), dtype=np.uint8).astype(np.float64)}
    return {name: np.asarray(np.nan if value is None else value, dtype=np.float64)}


if __name__ == "__main__":
    main()
