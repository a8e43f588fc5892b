"""The folder of a cell: paths, locks, working times and the dense model.

    OUT/run.json                        identity of the cell; the folder refuses another cell
    OUT/seed-S/dense/                   the dense model, as `vitrim train` writes it; with `dense_seed`, of that seed
    OUT/seed-S/teacher.json             how good the teacher of a configuration with [teacher] is
    OUT/seed-S/dense-control/           an arm without a fraction to keep; the other one is dense-distilled
    OUT/seed-S/keep-K/ARM/arm.json      record of one arm, written last
    OUT/seed-S/keep-K/ARM.times.jsonl   start and end of each time that the arm was worked on
    OUT/seed-S/keep-K/ARM.plans.json    seconds of scoring and recovery while the arm's plans were made
    FOLDER.lock                         lock of a folder that a process works in

Two processes may work in one cell at the same time. Each folder is locked by one process; other processes wait.
What an arm computes does not belong here.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor, nn

from benchmarks.architectures import model_to_train
from benchmarks.config import CONTROLS, CellConfig, TeacherSettings, dense_recipe, recipe_for, scratch_training
from benchmarks.divergence import logits_on
from benchmarks.teacher import load_named, load_teachers, named_folder, target_marks
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.data.matching import match_labels
from vitrim.errors import FolderInUse, SettingError
from vitrim.pipeline import fit
from vitrim.recipe import to_table
from vitrim.runs.files import read_json, write_text
from vitrim.runs.folder import RunFolder
from vitrim.runs.processes import is_main_process, this_process, wait_for_all
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint
from vitrim.source import Source, check
from vitrim.training.job import check_training

ROOT = Path(__file__).parent.parent
NAMED_DATA = ("cifar10", "cifar100", "tiny-imagenet")  # data sets with a separate setting for their folder
RECORD = "arm.json"
_TRAINING_BEFORE = {"keep_epoch": "last", "distillation": {"flip": False}}
_RECIPES_BEFORE = {  # what cells of earlier versions did, which had no such settings
    **{key: {"width_training": _TRAINING_BEFORE, "depth_training": _TRAINING_BEFORE} for key in ("vitrim", "paper")},
    "dense": {"training": _TRAINING_BEFORE, "snapshots": 1},
}
_CONFIG_BEFORE = {"dense_seed": None, "dense_from": "", "fixed_macs": 0.0, "teacher": to_table(TeacherSettings())}
COMMIT_FILE = ROOT / "COMMIT"  # in a copy of the code without git


@dataclass(frozen=True, kw_only=True)
class Job:
    """One arm of a cell, with one seed and one fraction to keep."""

    arm: str
    seed: int
    keep: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A cell with its images and its folder, open for work.

    Attributes:
        config: the settings of the cell, possibly only the selected part.
        data: the images.
        out: the folder of the cell.
        command: command that runs the whole cell, for the record.
        commit: commit of the code when the work began.
        dense_out: folder of another cell whose dense models are used. None for those of this cell.
        teachers: whose outputs the students learn; the dense model's if there are none.
    """

    config: CellConfig
    data: ImageData
    out: Path
    command: str
    commit: str
    dense_out: Path | None = None
    teachers: tuple[nn.Module, ...] = ()
    _models: dict[int, nn.Module] = field(default_factory=dict)
    _logits: dict[int, Tensor] = field(default_factory=dict)

    def folder(self, job: Job) -> Path:
        """Return the folder of one arm. A dense control has one folder for all fractions to keep."""
        seed = self.out / f"seed-{job.seed}"
        return seed / job.arm if job.arm in CONTROLS else seed / f"keep-{job.keep:g}" / job.arm

    def dense_seed(self, seed: int) -> int:
        """Return the seed of the dense model of a seed of the students."""
        return seed if self.config.dense_seed is None else self.config.dense_seed

    def dense_folder(self, seed: int) -> Path:
        """Return the folder of the dense model of a seed."""
        own = f"seed-{self.dense_seed(seed)}/dense"
        return named_folder(self.config.dense_from or own, self.dense_out or self.out)

    def dense(self, seed: int) -> nn.Module:
        """Return the dense model of a seed. It is trained if its folder has none. The last one stays in memory."""
        seed = self.dense_seed(seed)
        if seed not in self._models:
            model = model_to_train(self.config, len(self.data.classes), seed)
            self._check(model)
            self._models.clear()
            with lock_folder(self.dense_folder(seed)):
                log(f"seed {seed}: the dense model")
                recipe = dense_recipe(self.config, seed)
                self._models[seed] = fit(model, self.data, recipe, self.dense_folder(seed))
        return self._models[seed]

    def dense_logits(self, seed: int) -> Tensor:
        """Return the logits of the dense model on the test images, `(N, C)`. Those of the last seed stay in memory."""
        seed = self.dense_seed(seed)
        if seed not in self._logits:
            self._logits.clear()
            self._logits[seed] = logits_on(self.dense(seed), self.data.validation)
        return self._logits[seed]

    def target(self, seed: int) -> dict[str, Any]:
        """Return how good the teacher is alone, on the test images.

        Returns:
            `top1` and `top1_dense` in percent, and `correct`, 0 or 1 for each image. `teacher.json` keeps them.
        """
        file = self.out / f"seed-{self.dense_seed(seed)}" / "teacher.json"
        wait_for_all()
        kept = read_json(file) if file.is_file() else None
        wait_for_all()  # no process writes the file before all processes have looked for it
        if kept is not None:
            return dict(kept)
        dense = self.dense(seed)
        data = match_labels(self.data, dense)
        marks = target_marks(self.teachers, dense, data, flip=self.config.teacher.flip).tolist()
        right = self.dense_logits(seed).argmax(dim=1) == data.validation.labels.cpu()
        found = {"top1": 100 * sum(marks) / len(marks), "top1_dense": 100 * right.double().mean().item()}
        found["correct"] = "".join("01"[mark] for mark in marks)
        if is_main_process():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(found, indent=1) + "\n")
        wait_for_all()
        accuracies = f"top-1 {found['top1']:.2f} %, dense model {found['top1_dense']:.2f} %"
        log(f"teacher ({self.config.teacher.text}): {accuracies}")
        return found

    def _check(self, model: nn.Module) -> None:
        """Check the settings of all arms before the dense model is trained, which takes long."""
        source = Source.of(model, self.data)
        check_training(scratch_training(self.config), source.structure, source.data)
        for arm in self.config.arms:
            for keep in self.config.keeps:
                check(source, recipe_for(self.config, arm, keep=keep, seed=0))


def open_cell(config: CellConfig, out: Path, data_path: Path | None, command: str) -> Cell:
    """Load the images, and open or create the folder of a cell.

    Args:
        config: the cell, or the selected part of it.
        out: the folder of the cell.
        data_path: folder of the images. None uses the place that the configuration names.
        command: command that runs the whole cell, for the record.

    Raises:
        FolderInUse: the folder holds something else, or a cell with other settings or images.
        DataError: the images are not found.
    """
    return open_cell_with(load_images(config, data_path), config, out, command)


def open_cell_with(
    data: ImageData, config: CellConfig, out: Path, command: str, *, dense_out: Path | None = None
) -> Cell:
    """Open or create the folder of a cell, with images that are already loaded. The arguments are those of `open_cell`.

    Args:
        dense_out: folder of a cell with the same dense models, which are used. By default, the cell has its own.

    Raises:
        FolderInUse: the folder holds something else, or a cell with other settings or images.
    """
    base = dense_out or out
    teachers = load_teachers(config.teacher, base)
    with lock_folder(out):
        RunFolder(out, identity(config, data, base, teachers), {"config": _CONFIG_BEFORE, "recipes": _RECIPES_BEFORE})
    data = data.to(this_process().device)  # once for all arms
    return Cell(
        config=config,
        data=data,
        out=out,
        command=command,
        commit=commit(),
        dense_out=dense_out,
        teachers=tuple(teachers),
    )


def load_images(config: CellConfig, path: Path | None) -> ImageData:
    """Load the images of a cell.

    With `tuning_share` above 0, the validation images are split from the training images.

    Args:
        config: the cell.
        path: folder of the images. None uses the place that the configuration names.

    Raises:
        SettingError: a path was set for `digits`.
        DataError: the images are not found.
    """
    settings = config.data
    source, data_dir = settings.source, settings.data_dir or None
    if path is not None and source == "digits":
        raise SettingError("--data sets the folder of the images, but digits come with scikit-learn; leave it out.")
    if path is not None and source in NAMED_DATA:
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


def identity(config: CellConfig, data: ImageData, base: Path, teachers: Sequence[nn.Module]) -> dict[str, Any]:
    """Return the settings and images that define a cell, to compare with `run.json`.

    Seeds, keeps and arms are left out, so a cell can be extended. The paths of images, weights and models are left out,
    because their contents are compared.

    Args:
        config: the cell.
        data: the images.
        base: folder to which relative paths of models refer.
        teachers: the models that the configuration names as teachers.
    """
    table = to_table(config)
    for key in ("seeds", "keeps", "arms"):
        del table[key]
    for key in ("source", "data_dir"):
        del table["data"][key]
    table["model"]["weights"] = bool(config.model.weights)
    table["teacher"]["models"] = [fingerprint(model) for model in teachers]
    if config.dense_from:
        table["dense_from"] = fingerprint(load_named(named_folder(config.dense_from, base), "dense_from"))
    recipes = {arm: to_table(recipe_for(config, arm, keep=1.0, seed=0)) for arm in ("vitrim", "paper")}
    return {
        "command": "benchmark",
        "config": table,
        "recipes": {**recipes, "dense": to_table(dense_recipe(config, 0))},
        "data": {"name": data.name, "fingerprint": data.fingerprint()},
    }


def is_finished(folder: Path) -> bool:
    """Return whether an arm has its record. All processes of a group return the same."""
    wait_for_all()
    found = (folder / RECORD).is_file()
    wait_for_all()  # no process writes the record before all processes have looked for it
    return found


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Create `folder` and lock it within the context. If another process has the lock, wait for it.

    Raises:
        FolderInUse: `folder` is a file.
    """
    if not is_main_process():  # the first process of a group holds the lock for all
        yield
        return
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder} is a file; expected a folder for the benchmark. Choose another one with -o.")
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
def record_times(folder: Path) -> Iterator[None]:
    """Write the start and the end of the context to `FOLDER.times.jsonl`. A killed process leaves a start only."""
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
    """Return the seconds of work in a folder. A killed run counts until its last change of a file."""
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
    """Read an evaluation that `vitrim.evaluation` wrote. None if the file does not exist."""
    return read_json(file) if file.is_file() else None


def commit() -> str:
    """Return the short name of the commit, with `+` if the working tree differs from it.

    Outside git, the file COMMIT tells it, which a copy of the code may have. Without this file it is `unknown`.
    """
    if COMMIT_FILE.is_file():
        return COMMIT_FILE.read_text(encoding="utf-8").strip()
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return name + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
