"""The work of a time box: images, deadline, speeds, plan, and then one arm after the other.

    OUT/settings.json     model and data; the folder refuses others
    OUT/deadline.json     when the time ends; written once
    OUT/speeds.json       measured speeds
    OUT/plan.json         the schedule; written once
    OUT/NAME.toml         configuration of the cell, which `benchmarks.run` can run, too
    OUT/state.json        measured seconds of finished steps, and what was left out and why
    OUT/cell/             the cell, as `benchmarks.run` writes it
    OUT/pack/             results in small files

The same command continues after it was killed: finished steps are not repeated, and trainings continue from their last
checkpoint.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import run_job
from benchmarks.cell import Cell, Job, is_finished, lock_folder, open_cell_with, seconds_in
from benchmarks.config import load_config
from benchmarks.timebox.configuration import (
    SEED,
    DataSet,
    ModelName,
    Start,
    cell_table,
    data_set_of,
    to_text,
    work_for,
)
from benchmarks.timebox.feed import read_arrays, wait_for
from benchmarks.timebox.pack import CELL, PACK, PLAN, STATE, PackLimits, pack, read_weights
from benchmarks.timebox.schedule import (
    DENSE,
    MAIN_KEEP,
    MAX_STUDENT_EPOCHS,
    Schedule,
    Step,
    make_dense_schedule,
    make_schedule,
    needed_seconds,
)
from benchmarks.timebox.speeds import SPEEDS, Probe, has_speeds, measure_speeds, read_speeds
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.errors import FolderInUse, SettingError
from vitrim.runs.files import read_json, write_tensors, write_text
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log

SETTINGS, DEADLINE, WEIGHTS = "settings.json", "deadline.json", "weights.safetensors"
MIN_SECONDS_TO_COMPILE = 300.0  # with less time, compiled training is not measured
WAIT_SECONDS = 900.0  # for arrays and for the deadline


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is run, on what.

    Attributes:
        model: one of `MODELS`.
        data: name of a data set, or folder of the images.
        data_dir: folder of a named data set; None for its usual place.
        arrays: folder that `feed` writes; None to load the images from their files.
        weights: of the dense model, from an earlier run; None to train it.
        dense_only: train the dense model only, for a later run with `weights`.
        keeps: fractions to keep whose arms must fit the time.
        max_epochs: max student epochs.
        pack_models: models whose weights are packed.
        limits: on the packed files.
    """

    model: ModelName
    data: str
    data_dir: Path | None = None
    arrays: Path | None = None
    weights: Path | None = None
    dense_only: bool = False
    keeps: tuple[float, ...] = (MAIN_KEEP,)
    max_epochs: int = MAX_STUDENT_EPOCHS
    pack_models: tuple[str, ...] = (DENSE,)
    limits: PackLimits = field(default_factory=PackLimits)

    def __post_init__(self) -> None:
        if MAIN_KEEP not in self.keeps or not set(self.keeps) <= {MAIN_KEEP, 0.5, 0.3}:
            raise SettingError(f"--keeps is {self.keeps}; expected {MAIN_KEEP}, and 0.5 or 0.3 besides.")
        if self.weights and self.dense_only:
            raise SettingError("--weights and --dense-only are both set; with weights, there is nothing left to train.")

    def identity(self) -> dict[str, Any]:
        """Return what a folder must have in common with the command."""
        about = {"model": self.model, "data": Path(self.data).name, "weights": self.weights is not None}
        return {**about, "dense_only": self.dense_only, "keeps": list(self.keeps)}


def run_timebox(settings: Settings, out: Path, seconds: float | None) -> None:
    """Run as many arms as the time allows. The same call continues after it was killed, with the same plan.

    Args:
        settings: what is run.
        out: folder of the run.
        seconds: until the deadline. It is ignored if the folder has a deadline. None waits for `set_deadline`.

    Raises:
        SettingError: the seconds are not above 0, or not even the shortest schedule fits.
        FolderInUse: the folder has a run with other settings.
        DataError: the images are not found.
    """
    if seconds is not None and not seconds > 0:
        raise SettingError(f"--seconds is {seconds:g}; expected a number above 0.")
    with lock_folder(out):
        _check_settings(settings, out)
        if seconds is not None:
            set_deadline(out, seconds)
        this_process()  # opens the device, which takes seconds
        data = load(settings)
        wait_for((out / DEADLINE).is_file, WAIT_SECONDS, "the deadline")
        try:
            schedule = _schedule(settings, out, data)
        except SettingError:
            if seconds is not None:  # the next command may allow more time
                (out / DEADLINE).unlink()
            raise
        name = read_json(out / PLAN)["name"]
        command = f"python -m benchmarks.run benchmarks/configs/{name}.toml -o runs/{name}"
        cell = open_cell_with(data, load_config(out / f"{name}.toml"), out / CELL, command)
        _Run(cell, schedule, out, settings).run_all()


def set_deadline(out: Path, seconds: float) -> None:
    """Write when the time ends. A deadline that is already written stays.

    Args:
        out: folder of the run.
        seconds: from now.
    """
    file = out / DEADLINE
    if not file.is_file():
        write_text(file, json.dumps({"deadline": time.time() + seconds, "seconds": seconds}) + "\n")


def load(settings: Settings) -> ImageData:
    """Load the images: arrays, if there is a folder of them, or files."""
    name = Path(settings.data).name
    if settings.arrays:
        return read_arrays(settings.arrays, name, timeout=WAIT_SECONDS)
    data = load_data(settings.data, data_dir=settings.data_dir)
    for line in data.summary():
        log(line)
    return replace(data, name=name)


def sizes_of(settings: Settings, data: ImageData | None = None) -> DataSet:
    """Return the sizes of the images. A folder of images needs `data`."""
    shape = data.train.pixels.shape if data is not None and data.train.pixels is not None else (0, 0, 0, 1)
    return data_set_of(settings.data, shape[-1] if shape[-1] == shape[-2] else None)


def _check_settings(settings: Settings, out: Path) -> None:
    file, identity = out / SETTINGS, settings.identity()
    found = read_json(file) if file.is_file() else identity
    other = [f"{key} {found.get(key)!r}" for key in identity if found.get(key) != identity[key]]
    if other:
        raise FolderInUse(f"{out} has a run with other settings: {', '.join(other)}. Choose another folder with -o.")
    write_text(file, json.dumps(identity) + "\n")


# The plan


def _schedule(settings: Settings, out: Path, data: ImageData) -> Schedule:
    """Return the schedule of the folder. It is made from measured speeds if there is none."""
    if (out / PLAN).is_file():
        return Schedule.from_dict(read_json(out / PLAN)["schedule"])
    deadline, sizes, start = _deadline(out), sizes_of(settings, data), _start(settings, out)
    if not has_speeds(out / SPEEDS):
        compiled = torch.cuda.is_available() and deadline - time.time() > MIN_SECONDS_TO_COMPILE
        probe = Probe(model=settings.model, data=sizes, num_classes=len(data.classes))
        measure_speeds(probe, out / SPEEDS, compiled=compiled)
    work = work_for(
        settings.model,
        num_images=len(data.train),
        num_validation=len(data.validation),
        keeps=settings.keeps,
        max_epochs=settings.max_epochs,
        with_torch_pruning=find_spec("torch_pruning") is not None,
        **({"dense_ratio": 0.0} if start else {}),
    )
    make = make_dense_schedule if settings.dense_only else make_schedule
    schedule = make(deadline - time.time(), read_speeds(out / SPEEDS), work)
    table = cell_table(settings.model, settings.data, sizes, schedule, start)
    write_text(out / f"{table['name']}.toml", to_text(table, schedule, read_json(out / SPEEDS)["device"]))
    about = {"name": table["name"], "model": settings.model, "data": table["data"]["source"]}
    epochs = start.epochs if start else schedule.dense_epochs
    plan = {**about, "dense_epochs": epochs, "schedule": schedule.to_dict()}
    write_text(out / PLAN, json.dumps(plan, indent=1) + "\n")
    log(
        f"plan: {schedule.dense_epochs} dense and {schedule.student_epochs} student epochs, "
        f"{schedule.required_seconds:.0f} of {schedule.seconds:.0f} s"
    )
    return schedule


def _start(settings: Settings, out: Path) -> Start | None:
    """Write the weights of the earlier run in float32, and return where they are."""
    if settings.weights is None:
        return None
    tensors, about = read_weights(settings.weights)
    if about and (about["model"] != settings.model or Path(about["data"]).name != Path(settings.data).name):
        raise SettingError(
            f"{settings.weights} has weights of {about['model']} on {about['data']}, but this run is "
            f"{settings.model} on {settings.data}."
        )
    write_tensors(out / WEIGHTS, tensors, {"format": "pt"})
    return Start(weights=(out / WEIGHTS).absolute(), epochs=about.get("dense_epochs"))


def _deadline(out: Path) -> float:
    return float(read_json(out / DEADLINE)["deadline"])


# The steps


@dataclass(frozen=True)
class _Run:
    """The steps of a schedule, in their order, with what is known of their times."""

    cell: Cell
    schedule: Schedule
    out: Path
    settings: Settings
    took: dict[str, float] = field(default_factory=dict)

    def run_all(self) -> None:
        """Run each step that fits the time that is left. Record the others with the reason."""
        state = read_json(self.out / STATE) if (self.out / STATE).is_file() else {}
        self.took.update(state.get("took", {}))
        omitted: list[dict[str, Any]] = []
        for step in self.schedule.steps:
            reason = self._run(step, dense_missing=bool(omitted and omitted[0]["arm"] == DENSE))
            if reason:
                omitted.append({"arm": step.arm, "keep": step.keep, "required": step.required, "reason": reason})
                log(f"{step.name} is left out: {reason}")
            self._write(omitted, finished=False)
        self._write(omitted, finished=True)
        log(f"finished; {max(0.0, _deadline(self.out) - time.time()):.0f} s of the time are left")

    def _run(self, step: Step, *, dense_missing: bool) -> str:
        """Run a step. Return the reason if it is left out."""
        if dense_missing:
            return "there is no dense model"
        folder = self._folder(step)
        finished = (folder / "evaluation.json").is_file() if step.arm == DENSE else is_finished(folder)
        left = _deadline(self.out) - time.time()
        needed = 0.0 if step.arm == DENSE else self._needed(step, folder)
        if not finished and left <= needed:
            return f"{max(0.0, left):.0f} s are left, and about {needed:.0f} are needed"
        start = time.time()
        if step.arm == DENSE:
            self.cell.dense(SEED)
        elif not finished:
            run_job(self.cell, Job(arm=step.arm, seed=SEED, keep=step.keep))
        if not finished:
            self.took[step.name] = time.time() - start if step.arm == DENSE else seconds_in(folder)
            pack(self.out, self.out / PACK, self.settings.limits, models=self.settings.pack_models)
        return ""

    def _needed(self, step: Step, folder: Path) -> float:
        """Return the seconds that a step still needs. Those of an earlier start are subtracted."""
        estimates = {other.name: other.seconds for other in self.schedule.steps}
        begun = folder.with_name(f"{folder.name}.times.jsonl").is_file()
        return max(0.0, needed_seconds(step, self.took, estimates) - (seconds_in(folder) if begun else 0.0))

    def _folder(self, step: Step) -> Path:
        if step.arm == DENSE:
            return self.cell.dense_folder(SEED)
        return self.cell.folder(Job(arm=step.arm, seed=SEED, keep=step.keep))

    def _write(self, omitted: Sequence[dict[str, Any]], *, finished: bool) -> None:
        seconds = {name: round(value, 1) for name, value in self.took.items()}
        state = {"took": seconds, "omitted": list(omitted), "finished": finished}
        write_text(self.out / STATE, json.dumps(state, indent=1) + "\n")
