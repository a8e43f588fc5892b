"""The calls on a rented machine: files appear whole, processes outlive a call, and the last call brings the results."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.timebox.machine import Machine
from benchmarks.timebox.work import set_deadline

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "timebox" / "machine.py"


def test_the_script_needs_the_standard_library_only(tmp_path):
    script = tmp_path / "machine.py"
    shutil.copy(SCRIPT, script)
    command = [sys.executable, "-I", "-S", str(script), "--help"]  # without installed packages
    assert "start" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_files_that_were_carried_are_received(tmp_path):
    for kind in ("parts", "weights"):
        (tmp_path / "call" / kind).mkdir(parents=True)
        (tmp_path / "call" / kind / f"{kind}0").write_bytes(b"content")
    machine = Machine(tmp_path / "root")
    machine.receive(tmp_path / "call")
    assert (machine.root / "parts" / "parts0").read_bytes() == b"content"
    assert [path.name for path in (machine.root / "weights").iterdir()] == ["weights0"]


def test_the_deadline_is_written_once_and_is_that_of_the_run(tmp_path):
    machine = Machine(tmp_path)
    machine.out.mkdir()
    machine.set_deadline(100)
    before = (machine.out / "deadline.json").read_text()
    machine.set_deadline(500)
    set_deadline(machine.out, 500)
    assert (machine.out / "deadline.json").read_text() == before
    assert 90 < json.loads(before)["deadline"] - time.time() <= 100


def test_a_process_is_alive_until_it_ends_or_is_stopped(tmp_path):
    machine = Machine(tmp_path)
    assert not machine.is_alive("work")
    machine.start("work", "feed", str(tmp_path / "never"), "-o", str(tmp_path / "arrays"))
    assert machine.is_alive("work")
    machine.stop("work")
    assert not machine.is_alive("work")


def test_calls_without_their_folder_are_refused(capsys):
    command = [sys.executable, str(SCRIPT), "start"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and "start needs the folder" in found.stderr


def digits_archive(folder: Path) -> list[Path]:
    """An archive of digits in two parts."""
    digits = load_digits()
    for index, (image, label) in enumerate(zip(digits.images[:300], digits.target[:300], strict=True)):
        path = folder / "digits" / ("val" if index % 5 == 0 else "train") / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8")).convert("RGB").save(path)
    with tarfile.open(folder / "digits.tar.xz", "w:xz") as archive:
        archive.add(folder / "digits", arcname="digits")
    content = (folder / "digits.tar.xz").read_bytes()
    parts = [folder / f"digits.tar.xz.part{index}" for index in range(2)]
    for part, piece in zip(parts, (content[:20_000], content[20_000:]), strict=True):
        part.write_bytes(piece)
    return parts


@pytest.mark.slow
def test_the_calls_one_after_another_bring_the_results_back(tmp_path):
    parts = digits_archive(tmp_path)
    for index, part in enumerate(parts):
        folder = tmp_path / f"call{index}" / "parts"
        folder.mkdir(parents=True)
        part.rename(folder / part.name)
    for name in ("src", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / "call0" / "repo" / name)
    (tmp_path / "call0" / "repo" / "COMMIT").write_text("abc1234\n")
    root = tmp_path / "root"

    def call(*arguments: str) -> str:
        command = [sys.executable, str(SCRIPT), *arguments, "--root", str(root)]
        if arguments[0] == "start":
            names = [part.name for part in parts]
            options = ["--model", "smoke", "--data", "digits", "--dense-only", "--max-epochs", "1"]
            command += ["--parts", *names, "--", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    call("start", str(tmp_path / "call0"))
    shown = call("run", str(tmp_path / "call1"), "--seconds", "300", "--wait", "0", "--to", str(tmp_path / "early"))
    assert "The run goes on" in shown and (tmp_path / "early" / "summary.json").is_file()
    shown = call("wait", "--wait", "200", "--to", str(tmp_path / "back"))
    assert "The run has finished" in shown
    names = {path.name for path in (tmp_path / "back").iterdir()}
    assert names == {"results.tgz", "summary.json", "dense.fp16.safetensors.piece-0-of-1"}
    assert (root / "arrays" / "train.npy").is_file()
