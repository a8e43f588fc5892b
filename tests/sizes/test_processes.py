"""Several sizes and the search with two processes: both decide alike, and errors of the first one reach the other."""

import json
from pathlib import Path

import pytest

from builders.runs import save_digits_model
from builders.torchrun import TORCHRUN, started
from vitrim.saving.checkpoint import load

ONCE = """
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
OPTIONS = [
    *("--data", "digits", "--limit-per-class", "6", "--recipe", "demo", "--epochs", "2", "--batch-size", "20"),
    *("--depth", "0", "--head-width", "full", "--set", "importance.steps=1", "--set", "importance.num_images=20"),
    *("--set", "latency.rounds=1"),
]


def run(*words: str) -> str:
    with started([*TORCHRUN, *words]) as process:
        out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_an_error_in_making_a_result_reaches_both_processes(tmp_path: Path) -> None:
    script = tmp_path / "once.py"
    script.write_text(ONCE)
    out = run(str(script), str(tmp_path / "run"))
    assert sorted(out.splitlines()) == ["0 too small 7", "1 too small 7"]


@pytest.mark.slow
def test_two_processes_make_several_sizes(tmp_path: Path) -> None:
    dense, folder = save_digits_model(tmp_path / "dense"), tmp_path / "run"
    run("-m", "vitrim", "compress", str(dense), *OPTIONS, "--keep", "0.8,0.6", "-o", str(folder))
    models = json.loads((folder / "report.json").read_text())["models"]
    assert [row["name"] for row in models] == ["dense", "80 %", "60 %"]
    assert all(load(folder / f"keep-{keep}" / "model") for keep in (0.8, 0.6))


@pytest.mark.slow
def test_two_processes_find_the_smallest_size(tmp_path: Path) -> None:
    dense, folder = save_digits_model(tmp_path / "dense"), tmp_path / "run"
    search = ["--max-drop", "60", "--set", "search.smallest=0.6", "--set", "search.step=0.2"]
    run("-m", "vitrim", "compress", str(dense), *OPTIONS, *search, "-o", str(folder))
    found = json.loads((folder / "report.json").read_text())["search"]
    tried = [(one["name"], one["kind"]) for one in found["tries"]]
    assert tried == [("95 %", "short"), ("75 %", "short"), ("75 %", "full")]
