"""Law 11: one process and N processes train to the same weights within rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

from builders.runs import read_lines, save_digits_model
from vitrim.saving.checkpoint import load

RECIPE = """
[importance]
num_images = 40
batch_size = 20
[latency]
rounds = 1
warmup = 0
[width_training]
epochs = 1
batch_size = 20
warmup_epochs = 0
evaluate_every = 1
learning_rate = 3e-3
[width_training.distillation]
hidden = 0.5
hard = 0.5
[depth_training]
epochs = 1
batch_size = 20
warmup_epochs = 0
ema_decay = 0.0
"""


def test_two_processes_compress_to_the_weights_of_one(tmp_path: Path) -> None:
    dense = save_digits_model(tmp_path / "dense", depth=4)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    command = f"-m vitrim compress {dense} --recipe {recipe} --limit-per-class 6 --keep 0.6 --depth 1 -o".split()
    two = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for start, folder in (([sys.executable], "one"), (two, "two")):
        done = subprocess.run(
            [*start, *command, str(tmp_path / folder)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("report.json") == 1  # one process speaks
        assert done.stderr.count("depth distil: top-1") == 1
    one, two_ = tmp_path / "one", tmp_path / "two"
    assert (one / "plan.json").read_bytes() == (two_ / "plan.json").read_bytes()
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two_.iterdir())
    assert difference(one / "width-distilled", two_ / "width-distilled") < 1e-5
    assert difference(one / "model", two_ / "model") < 2e-3  # the refit of the layers after it enlarges rounding errors
    assert difference(one / "width-recovered", one / "width-distilled") > 1e-3
    for row, other in zip(read_lines(one / "metrics.jsonl"), read_lines(two_ / "metrics.jsonl"), strict=True):
        assert (row["stage"], row["epoch"], row["step"]) == (other["stage"], other["epoch"], other["step"])
        assert abs(row["loss"] - other["loss"]) < 1e-4
    models = [json.loads((folder / "report.json").read_text())["models"] for folder in (one, two_)]
    assert models[0][0]["top1"] == models[1][0]["top1"]


def difference(one: Path, other: Path) -> float:
    """The largest difference between the weights of two models of the same sizes."""
    first, second = load(one).state_dict(), load(other).state_dict()
    assert list(first) == list(second)
    return max(float((value - second[name]).abs().max()) for name, value in first.items())
