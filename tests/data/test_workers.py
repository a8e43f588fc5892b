"""Laws of worker processes: they do not need the main module, so no script needs a guard."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from builders.images import preprocessing
from vitrim.data.workers import worker_context

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
