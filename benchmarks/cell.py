"""A cell on disk: which folder belongs to what, who works in it, and how long that took.

    OUT/run.json                        what the cell is made from; another cell is refused
    OUT/seed-S/dense/                   what `vitrim train` would write
    OUT/seed-S/dense-control/           the arm that has no share to keep
    OUT/seed-S/keep-K/ARM/arm.json      one arm, written last
    OUT/seed-S/keep-K/ARM.times.jsonl   when it was worked on

Two processes may work in one cell at once: each folder belongs to one of them at a time, and the other waits.
"""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import nn

from benchmarks.architectures import model_to_train
from benchmarks.config import CONTROL, CellConfig, dense_recipe, recipe_for, scratch_training
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.data.matching import match_labels
from vitrim.errors import FolderInUse, SettingError
from vitrim.models import describe
from vitrim.pipeline import fit
from vitrim.planning import check_budget
from vitrim.recipe import to_table
from vitrim.runs.files import read_json
from vitrim.runs.folder import RunFolder
from vitrim.runs.processes import is_main_process, wait_for_all
from vitrim.runs.progress import log
from vitrim.training import check_training

ROOT = Path(__file__).parent.parent
NAMED = ("cifar10", "cifar100", "tiny-imagenet")  # data sets whose place is a setting of its own
RECORD = "arm.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm of a cell, at one seed and one share kept."""

    arm: str
    seed: int
    keep: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A cell that is being worked on.

    Attributes:
        config: the whole cell, or the part of it that was selected.
        command: how a reader would run the whole of it.
        commit: of the code as it was when the work began.
    """

    config: CellConfig
    data: ImageData
    out: Path
    command: str
    commit: str
    _models: dict[int, nn.Module] = field(default_factory=dict)

    def folder(self, job: Job) -> Path:
        seed = self.out / f"seed-{job.seed}"
        return seed / job.arm if job.arm == CONTROL else seed / f"keep-{job.keep:g}" / job.arm

    def dense_folder(self, seed: int) -> Path:
        return self.out / f"seed-{seed}" / "dense"

    def dense(self, seed: int) -> nn.Module:
        """The dense model of a seed, trained if it is not there; the last one asked for stays in memory."""
        if seed not in self._models:
            model = model_to_train(self.config, len(self.data.classes), seed)
            self._check(model)
            self._models.clear()
            with alone_in(self.dense_folder(seed)):
                log(f"seed {seed}: the dense model")
                recipe = dense_recipe(self.config, seed)
                self._models[seed] = fit(model, self.data, recipe, self.dense_folder(seed))
        return self._models[seed]

    def _check(self, model: nn.Module) -> None:
        """Refuse before the long training what an arm could not do after it."""
        structure, data = describe(model), match_labels(self.data, model)
        check_training(scratch_training(self.config), structure, data)
        for arm in self.config.arms:
            for keep in self.config.keeps:
                recipe = recipe_for(self.config, arm, keep=keep, seed=0)
                check_budget(structure, recipe)
                check_training(recipe.width_training, structure, data)
                check_training(recipe.depth_training, structure, data)


def open_cell(config: CellConfig, out: Path, data_path: Path | None, command: str) -> Cell:
    """Load the images and open or create the folder of a cell.

    Raises:
        FolderInUse: the folder holds something else, or a cell with other settings or images; lists what differs.
        DataError: the images cannot be found.
    """
    data = load_images(config, data_path)
    with alone_in(out):
        RunFolder(out, identity(config, data))
    return Cell(config=config, data=data, out=out, command=command, commit=commit())


def load_images(config: CellConfig, path: Path | None) -> ImageData:
    """The images of a cell, from `path` if given; with a tuning share, the official validation images are left out."""
    settings = config.data
    source, data_dir = settings.source, settings.data_dir or None
    if path is not None and source == "digits":
        raise SettingError("--data says where images are, but digits come with scikit-learn; leave it out.")
    if path is not None and source in NAMED:
        data_dir = str(path)
    elif path is not None:
        source = str(path.absolute())
    found = load_data(
        source,
        data_dir=data_dir,
        limit_per_class=settings.limit_per_class,
        holdout=config.tuning_share,
        strict=settings.strict,
    )
    found = replace(found, name=Path(settings.source).name)
    for line in found.summary():
        log(line)
    return found


def identity(config: CellConfig, data: ImageData) -> dict[str, Any]:
    """What a cell is made from: not which part of it runs, nor where images and weights lie; those are compared by
    their content, weights by each run.
    """
    table = to_table(config)
    for key in ("seeds", "keeps", "arms"):
        del table[key]
    for key in ("source", "data_dir"):
        del table["data"][key]
    table["model"]["weights"] = bool(config.model.weights)
    recipes = {arm: to_table(recipe_for(config, arm, keep=1.0, seed=0)) for arm in ("vitrim", "paper")}
    return {
        "command": "benchmark",
        "config": table,
        "recipes": {**recipes, "dense": to_table(dense_recipe(config, 0))},
        "data": {"name": data.name, "fingerprint": data.fingerprint()},
    }


def is_finished(folder: Path) -> bool:
    wait_for_all()
    found = (folder / RECORD).is_file()
    wait_for_all()  # nobody goes on, and finishes it, before everybody has looked
    return found


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within the context no other run works in `folder`, which is made if need be; one that does is waited for."""
    if not is_main_process():  # the first process of a group holds the folder for all
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder} is a file; expected a folder for the benchmark; choose another one with -o.")
    folder.mkdir(parents=True, exist_ok=True)
    absolute = folder.resolve()
    lock = FileLock(absolute.with_name(f"{absolute.name}.lock"))  # the system frees it when the process is killed
    try:
        lock.acquire(blocking=False)
    except Timeout:
        log(f"waiting for the process that works in {folder}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Note beside `folder` when it was worked on; a start without an end was killed."""
    file = folder.with_name(f"{folder.name}.times.jsonl")

    def note(event: str) -> None:
        if is_main_process():
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps({event: time.time(), "last": _last_change(folder)}) + "\n")

    note("began")
    try:
        yield
    finally:
        note("ended")


def seconds_in(folder: Path) -> float:
    """For how long a folder was worked on; of a run that was killed, until it last wrote something."""
    file = folder.with_name(f"{folder.name}.times.jsonl")
    total, began = 0.0, None
    for row in (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()):
        if began is not None:
            total += max(0.0, row.get("ended", row["last"]) - began)
        began = row.get("began")
    return total


def _last_change(folder: Path) -> float:
    return max((path.stat().st_mtime for path in (folder, *folder.rglob("*")) if path.exists()), default=0.0)


def read_evaluation(file: Path) -> dict[str, Any] | None:
    """What `vitrim.evaluation` left in a file, if there is one."""
    return read_json(file) if file.is_file() else None


def commit() -> str:
    """The commit that this file is of, with `+` where something differs from it; `unknown` outside git."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return name + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
