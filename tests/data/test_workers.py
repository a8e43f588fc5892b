"""Laws of worker processes: how many there are, and that no script needs a guard for them."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.costs.cases import jpegs
from builders.images import preprocessing
from builders.runs import digits
from vitrim.data import workers
from vitrim.data.batches import eval_batches
from vitrim.data.files import decoding
from vitrim.data.workers import choose_num_workers, worker_context
from vitrim.errors import SettingError

SCRIPT = """
import multiprocessing, sys
import torch
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageSet
from vitrim.data.preprocessing import Preprocessing

print("the script runs as", __name__, flush=True)
multiprocessing.set_start_method("spawn")
images = ImageSet(labels=torch.zeros(3, dtype=torch.long), files=tuple(sys.argv[2:]))
model = Preprocessing.from_dict(eval(sys.argv[1]))
batches = list(eval_batches(images, model, batch_size=2, num_workers=1))
print([tuple(pixels.shape) for pixels, _ in batches], sys.modules["__main__"].__file__)
"""


def test_auto_is_a_worker_for_each_core_with_shared_memory_for_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def free_memory(free: int) -> None:
        monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))

    def num_workers(num_batches: int, num_parts: int) -> int:
        return choose_num_workers("auto", preprocessing(), 8, num_batches, num_parts)

    monkeypatch.setattr(decoding.os, "sched_getaffinity", lambda _: range(8), raising=False)
    free_memory(2**30)
    assert [num_workers(100, num_parts) for num_parts in (1, 2, 16)] == [8, 4, 1]
    assert num_workers(3, 1) == 3  # no more workers than batches
    monkeypatch.setattr(workers, "SHARED_MEMORY", Path(__file__).parent)
    batch_bytes = 8 * 3 * 8 * 8
    for num_batches, expected in ((1, 0), (3, 1), (8, 2)):
        free_memory(num_batches * batch_bytes)
        assert num_workers(100, 1) == expected
    assert choose_num_workers(5, preprocessing(), 8, 1, 2) == 5


def test_a_number_below_zero_is_refused() -> None:
    with pytest.raises(SettingError, match="num_workers is -1; expected a whole number from 0, or auto"):
        digits().with_num_workers(-1)


def test_workers_have_the_priority_of_the_process_that_uses_them(tmp_path: Path) -> None:
    """With a lower one they get no core while other programs run, and the training waits for them."""
    images = jpegs(tmp_path, 4, 2, side=16).train
    made = iter(eval_batches(images, preprocessing(), batch_size=2, num_workers=2))
    next(made)
    priorities = [os.getpriority(os.PRIO_PROCESS, child.pid) for child in multiprocessing.active_children()]
    assert priorities == [os.getpriority(os.PRIO_PROCESS, 0)] * 2
    assert len(list(made)) == 1


def test_workers_leave_an_interruption_to_the_process_that_uses_them(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal. Workers that ended by themselves would print tracebacks."""
    images = jpegs(tmp_path, 12, 2, side=16).train
    made = iter(eval_batches(images, preprocessing(), batch_size=2, num_workers=1))
    next(made)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGINT)
    assert len(list(made)) == 5


def test_the_number_of_workers_does_not_change_the_images() -> None:
    data = digits()
    assert data.with_num_workers("auto") is data
    changed = data.with_num_workers(3)
    assert changed.fingerprint() == data.fingerprint()
    for images in (changed.train, changed.validation, changed.train.sample(20, 0), changed.to("cpu").validation):
        assert images.num_workers == 3


@pytest.mark.slow
def test_a_script_without_a_guard_can_start_workers(tmp_path: Path) -> None:
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file in files:
        Image.new("RGB", (9, 8)).save(file)
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), repr(preprocessing().to_dict()), *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "the script runs as __main__",
        f"[(2, 3, 8, 8), (1, 3, 8, 8)] {script}",
    ]


def test_workers_are_copies_where_python_makes_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "fork")
    assert worker_context(2) is None
    monkeypatch.setattr("multiprocessing.get_start_method", lambda: "forkserver")
    context = worker_context(2)
    assert context is not None and context.get_start_method() == "spawn"
    assert worker_context(0) is None
