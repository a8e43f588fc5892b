"""One process and several processes train to the same weights, within rounding."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from builders.command_line import call
from builders.runs import read_lines, save_digits_model
from builders.torchrun import TORCHRUN, started
from vitrim.saving.checkpoint import load
from vitrim.training.state import updates_made

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
keep_epoch = "best"
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


def check_output(out: str, err: str) -> None:
    """Check that exactly one process printed."""
    assert out.count("report.json") == 1
    assert err.count("depth distil: top-1") == 1


@pytest.mark.parametrize("width", ["2", pytest.param("auto", marks=pytest.mark.slow)])
def test_two_processes_compress_to_the_weights_of_one(
    width: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense = save_digits_model(tmp_path / "dense", depth=4)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    command = (
        f"compress {dense} --recipe {recipe} --data digits --limit-per-class 6 --keep 0.6 --depth 1 "
        f"--head-width {width} -o".split()
    )
    one, two = tmp_path / "one", tmp_path / "two"
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 -m vitrim".split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*torchrun, *command, str(two)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        status, out, err = call(capsys, *command, one)
        assert status == 0, err
        check_output(out, err)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, err
    check_output(out, err)
    assert (one / "plan.json").read_bytes() == (two / "plan.json").read_bytes()
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    assert difference(one / "stages" / "width-distilled", two / "stages" / "width-distilled") < 1e-5
    assert difference(one / "model", two / "model") < 2e-3  # the refit after the depth cut amplifies rounding errors
    assert difference(one / "stages" / "width-recovered", one / "stages" / "width-distilled") > 1e-3
    for row, other in zip(read_lines(one / "metrics.jsonl"), read_lines(two / "metrics.jsonl"), strict=True):
        assert (row["stage"], row["epoch"], row["step"]) == (other["stage"], other["epoch"], other["step"])
        assert abs(row["loss"] - other["loss"]) < 1e-4
    models = [json.loads((folder / "report.json").read_text())["models"] for folder in (one, two)]
    assert models[0][0]["top1"] == models[1][0]["top1"]
    dense = [json.loads((folder / "stages" / "evaluation-dense.json").read_text()) for folder in (one, two)]
    assert dense[0]["predicted"] == dense[1]["predicted"] and len(dense[0]["predicted"]) == dense[0]["num_images"]


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [True, False], ids=["a batch system", "one process"])
def test_a_signal_stops_all_processes_after_the_same_update(to_all: bool, tmp_path: Path) -> None:
    dense, out = save_digits_model(tmp_path / "dense", depth=4), tmp_path / "out"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    command = f"compress {dense} --recipe {recipe} --data digits --limit-per-class 6 --keep 0.6 --depth 0 --epochs 4000"
    torchrun = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node 2 -m vitrim".split()
    process = subprocess.Popen(
        [*torchrun, *command.split(), "-o", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(3000):
            if (out / "metrics.jsonl").exists() or process.poll() is not None:
                break
            time.sleep(0.05)
        if to_all:
            os.killpg(process.pid, signal.SIGTERM)
        else:
            psutil.Process(process.pid).children()[-1].terminate()
        _, err = process.communicate(timeout=100)
    finally:
        process.kill()
    assert err.count("the checkpoint is saved") == 1, err
    assert err.count("vitrim: Ended by SIGTERM") == 1
    assert "bug in vitrim" not in err
    updates = int(re.findall(r"after ([0-9]+) updates", err)[0])
    assert updates_made(out, "width") == updates


def difference(one: Path, other: Path) -> float:
    """The largest difference between the weights of two models."""
    first, second = load(one).state_dict(), load(other).state_dict()
    assert list(first) == list(second)
    return max(float((value - second[name]).abs().max()) for name, value in first.items())


ONCE_ON_TWO = """
import sys
from pathlib import Path
from vitrim.errors import BudgetError
from vitrim.runs.folder import RunFolder
from vitrim.runs.processes import this_process
def fail():
    raise BudgetError("too small")
folder = RunFolder(Path(sys.argv[1]), {"command": "test"})
try:
    folder.once_json("one.json", fail)
except BudgetError as problem:
    two = folder.once_json("two.json", lambda: 7)
    sys.stdout.write(f"{this_process().process_index} {problem} {two}\\n")
"""
OPTIONS_OF_SIZES = [
    *("--data", "digits", "--limit-per-class", "6", "--recipe", "demo", "--epochs", "2", "--batch-size", "20"),
    *("--depth", "0", "--head-width", "full", "--set", "importance.steps=1", "--set", "importance.num_images=20"),
    *("--set", "latency.rounds=1"),
]


def run_on_two(*words: str) -> str:
    with started([*TORCHRUN, *words]) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_an_error_in_making_a_result_reaches_both_processes(tmp_path: Path) -> None:
    script = tmp_path / "once.py"
    script.write_text(ONCE_ON_TWO)
    out = run_on_two(str(script), str(tmp_path / "run"))
    assert sorted(out.splitlines()) == ["0 too small 7", "1 too small 7"]


@pytest.mark.slow
def test_two_processes_make_several_sizes(tmp_path: Path) -> None:
    dense, folder = save_digits_model(tmp_path / "dense"), tmp_path / "run"
    run_on_two("-m", "vitrim", "compress", str(dense), *OPTIONS_OF_SIZES, "--keep", "0.8,0.6", "-o", str(folder))
    models = json.loads((folder / "report.json").read_text())["models"]
    assert [row["name"] for row in models] == ["dense", "80 %", "60 %"]
    assert all(load(folder / f"keep-{keep}" / "model") for keep in (0.8, 0.6))


@pytest.mark.slow
def test_two_processes_find_the_smallest_size(tmp_path: Path) -> None:
    dense, folder = save_digits_model(tmp_path / "dense"), tmp_path / "run"
    search = ["--max-drop", "60", "--set", "search.smallest=0.6", "--set", "search.step=0.2"]
    run_on_two("-m", "vitrim", "compress", str(dense), *OPTIONS_OF_SIZES, *search, "-o", str(folder))
    found = json.loads((folder / "report.json").read_text())["search"]
    tried = [(one["name"], one["kind"]) for one in found["tries"]]
    assert tried == [("95 %", "short"), ("75 %", "short"), ("75 %", "full")]
