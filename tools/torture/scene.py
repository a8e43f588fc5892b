"""What all cases start from: a dense model, a finished run, an interrupted run, and the result that is right."""

import hashlib
import json
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.torture.runner import Ended, Running, count_writes, run

MODEL = ["vit_tiny_patch16_224", "--img-size", "8", "--patch-size", "2"]
MODEL += [f"--model-arg={pair}" for pair in ("embed_dim=16", "depth=3", "num_heads=2", "weight_init=reset")]
TRAIN = ["train", *MODEL, "--data", "digits", "--epochs", "6"]
TRAIN += [f"--set=training.{pair}" for pair in ("batch_size=64", "learning_rate=3e-3", "augmentation.crop=none")]
SETTINGS = ["importance.num_images=64", "importance.steps=2", "depth.search_images=64", "depth.search_epochs=1"]
for _stage in ("width_training", "depth_training"):
    SETTINGS += [f"{_stage}.{pair}" for pair in ("batch_size=128", "checkpoint_minutes=0", "augmentation.crop=none")]
SETTINGS += ["latency.rounds=2", "latency.warmup=1"]
RUN = "run"  # of a case: folder of its run, relative to its own folder


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Folders that were made once.

    Attributes:
        root: of everything.
        result: digest of the right result.
        other: the same for another budget, `--keep 0.6`.
        num_writes: of an undisturbed run.
        seconds: of an undisturbed run.
    """

    root: Path
    result: str
    other: str
    num_writes: int
    seconds: float

    @property
    def dense(self) -> Path:
        """The run that trained the dense model."""
        return self.root / "dense"

    @property
    def finished(self) -> Path:
        """A finished run of `compress`."""
        return self.root / "finished" / RUN

    @property
    def interrupted(self) -> Path:
        """A run of `compress` that was killed in its last distillation."""
        return self.root / "interrupted" / RUN

    def command(self, *, keep: str = "0.5") -> list[str]:
        """The command line of all runs."""
        words = ["compress", str(self.dense), "--data", "digits", "--keep", keep, "--epochs", "2", "--depth", "1"]
        return [*words, *(f"--set={pair}" for pair in SETTINGS), "-o", RUN]

    def case(self, name: str, copied: Path | None = None) -> Path:
        """An empty folder for a case, with a copy of a run if one is given."""
        folder = self.root / "cases" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if copied:
            shutil.copytree(copied, folder / RUN, symlinks=True)
        return folder


def make(root: Path) -> Scene:
    """Make the folders, or read what an earlier call has made."""
    file = root / "scene.json"
    if not file.is_file():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        _expect_success(run([*TRAIN, "-o", str(root / "dense")], root))
        scene = Scene(root=root, result="", other="", num_writes=0, seconds=0.0)
        note, folder = root / "writes", root / "finished"
        began = time.monotonic()
        _expect_success(run(scene.command(), folder, count_writes(note, folder)))
        about: dict[str, Any] = {"result": result_of(folder / RUN), "num_writes": note.stat().st_size}
        about["seconds"] = time.monotonic() - began
        _expect_success(run(scene.command(keep="0.6"), root / "other"))
        about["other"] = result_of(root / "other" / RUN)
        _interrupt(scene)
        file.write_text(json.dumps(about))
    return Scene(root=root, **json.loads(file.read_text()))


def _interrupt(scene: Scene) -> None:
    """Kill a run when it has written a checkpoint of its last distillation."""
    folder = scene.root / "interrupted"
    running = Running(scene.command(), folder)
    while not running.has_ended() and not list((folder / RUN).glob("depth.checkpoint*")):
        time.sleep(0.002)
    running.kill(signal.SIGKILL)
    running.wait()


def result_of(folder: Path) -> str:
    """The digest of what a run has computed: weights, plan and accuracies. Empty if a file is missing or broken."""
    digest = hashlib.sha256()
    try:
        digest.update((folder / "model" / "model.safetensors").read_bytes())
        digest.update((folder / "plan.json").read_bytes())
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        rows = [[row[key] for key in ("name", "top1", "params", "macs")] for row in report["models"]]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    digest.update(json.dumps(rows).encode())
    return digest.hexdigest()


def _expect_success(ended: Ended) -> None:
    if ended.status:
        raise SystemExit(f"The undisturbed command ended with {ended.status}:\n{ended.errors}")
