"""The arms: what each method does with the dense model.

An arm ends with a model, its evaluations and its record. Each step writes one file into the arm's folder. When the same
command runs again, finished steps are not repeated. What the record holds belongs to `record`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.architectures import fresh_model, narrow_model, uniform_plan
from benchmarks.cell import Cell, Job, is_finished, lock_folder, read_evaluation, record_times
from benchmarks.config import (
    CONTROL,
    DISTILLED,
    PUBLISHED,
    WHOLE_HEADS,
    WITHOUT_TEACHER,
    recipe_for,
    scratch_training,
    student_training,
)
from benchmarks.record import Outcome, write_record
from benchmarks.step_seconds import timing_plans
from vitrim.costs.counting import count_cost
from vitrim.data.images import ImageData
from vitrim.data.matching import Calibration, match_labels
from vitrim.earlier_versions import settings_before
from vitrim.evaluation import evaluate
from vitrim.pipeline import compress
from vitrim.plan import PruningPlan
from vitrim.recipe import Recipe
from vitrim.runs.files import STAGES, read_json
from vitrim.runs.folder import RunFolder, find_result, in_stages
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import load, save
from vitrim.source import Source
from vitrim.surgery import prune
from vitrim.training.distillation import Teachers
from vitrim.training.settings import TrainingSettings
from vitrim.training.train import train

SEED_OFFSET = 1000  # random weights of a student need another seed than those of the dense model


def run_job(cell: Cell, job: Job) -> None:
    """Run one arm and write its record. A finished arm is skipped."""
    folder = cell.folder(job)
    if is_finished(folder):
        return
    if job.arm == "scratch":  # it uses the architecture that the arm vitrim finds
        run_job(cell, replace(job, arm="vitrim"))
    dense = cell.dense(job.seed)
    if cell.config.teacher.text:
        cell.target(job.seed)  # first: it shows whether the teacher is better at all
    with lock_folder(folder):
        if is_finished(folder):  # another process finished it while this one waited for the lock
            return
        log(f"seed {job.seed}, keep {job.keep:g}: {job.arm}")
        with record_times(folder), timing_plans(folder):
            outcome = _RUNNERS[job.arm](_ArmRun(cell, job, dense))
        write_record(cell, job, dense, outcome)
    log(f"seed {job.seed}, keep {job.keep:g}: {job.arm} {outcome.evaluation['top1']:.2f} %")


@dataclass(frozen=True)
class _ArmRun:
    """One run of an arm: its cell, its job and its dense model."""

    cell: Cell
    job: Job
    dense: nn.Module

    @property
    def folder(self) -> Path:
        return self.cell.folder(self.job)

    @property
    def recipe(self) -> Recipe:
        return recipe_for(self.cell.config, self.job.arm, keep=self.job.keep, seed=self.job.seed)

    @cached_property
    def data(self) -> ImageData:
        """The cell's images, with labels in the model's order of classes."""
        return match_labels(self.cell.data, self.dense)

    @cached_property
    def source(self) -> Source:
        """Dense model, images and teachers, checked."""
        return Source.of(self.dense, self.data, self.teachers)

    @property
    def teachers(self) -> tuple[nn.Module, ...] | None:
        """The models whose outputs the student learns. None for the dense model, and for arms that learn labels."""
        return None if self.job.arm in WITHOUT_TEACHER else self.cell.teachers or None

    @property
    def calibration(self) -> Calibration:
        settings = self.recipe.importance
        images = self.cell.data.train.sample(settings.num_images, self.job.seed)
        return Calibration(images=images, model=self.dense, batch_size=settings.batch_size)

    @property
    def num_classes(self) -> int:
        return len(self.cell.data.classes)


def _compress(arm: _ArmRun) -> Outcome:
    """Run the arms of vitrim, `paper` and `hard-labels`: `vitrim.compress` with the recipe of the arm."""
    result = compress(arm.dense, arm.cell.data, arm.recipe, arm.folder, teacher=arm.teachers)
    stages = [
        {**{key: row[key] for key in ("top1", "params", "macs")}, "name": row["name"].removeprefix("width ")}
        for row in result.report["stages"]
        if row["name"] != "dense"
    ]
    stage = partial(_stage, arm)
    recovered = stage("width-recovered")  # the run keeps the model after its first recovery
    return Outcome(
        model=result.model,
        evaluation=read_json(stage("evaluation-final.json")),
        after_cut=read_evaluation(stage("evaluation-width-cut.json")),
        after_recover=read_evaluation(stage("evaluation-width-recover.json")),
        recovered=load(recovered, device=this_process().device) if recovered.is_dir() else None,
        stages=stages,
    )


def _stage(arm: _ArmRun, name: str) -> Path:
    return find_result(arm.folder, in_stages(name))


def _prune_once(find: Callable[[_ArmRun], PruningPlan], arm: _ArmRun) -> Outcome:
    """Run an arm that prunes once by the plan of `find`, and then distils with the settings of the arm `vitrim`."""
    settings = student_training(arm.cell.config)
    folder = _open(arm, settings)
    plan = folder.once_plan("plan.json", lambda: find(arm))
    student = prune(arm.dense, plan)
    after_cut = folder.once_json(
        "evaluation-cut.json", lambda: evaluate(student, arm.data).to_dict(), on_all_processes=True
    )
    return _train_and_evaluate(arm, folder, student, settings, plan=plan, after_cut=after_cut)


def _plan_by_torch_pruning(arm: _ArmRun) -> PruningPlan:
    from benchmarks.torch_pruning import plan_by_torch_pruning  # only two arms need the package

    return plan_by_torch_pruning(arm.dense, arm.calibration, arm.recipe.budget, seed=arm.job.seed)


def _narrow_heads(arm: _ArmRun) -> Outcome:
    """Distil the model that Torch-Pruning pruned, also in the dimensions of its heads."""
    from benchmarks.torch_pruning_head_widths import narrow_by_torch_pruning, read_narrow_model, write_narrow_model

    settings, files = (
        student_training(arm.cell.config),
        _Files(write_narrow_model, partial(read_narrow_model, arm.dense)),
    )
    folder = _open(arm, settings)

    def find() -> nn.Module:
        return narrow_by_torch_pruning(arm.dense, arm.calibration, arm.recipe.budget, seed=arm.job.seed)

    student = folder.once("pruned.safetensors", find, files.write, files.read)
    after_cut = folder.once_json(
        "evaluation-cut.json", lambda: evaluate(student, arm.data).to_dict(), on_all_processes=True
    )
    return _train_and_evaluate(arm, folder, student, settings, after_cut=after_cut, files=files)


def _uniform_plan(criterion: str, arm: _ArmRun) -> PruningPlan:
    return uniform_plan(arm.dense, arm.calibration, criterion, arm.recipe.budget, seed=arm.job.seed)


def _scratch(arm: _ArmRun) -> Outcome:
    """Distil the final architecture of the arm `vitrim` from random weights."""
    plan_file = arm.cell.folder(replace(arm.job, arm="vitrim")) / "plan.json"
    settings = scratch_training(arm.cell.config)
    folder = _open(arm, settings)
    plan = folder.once_plan("plan.json", lambda: PruningPlan.from_json(plan_file.read_text(encoding="utf-8")))
    student = prune(fresh_model(arm.cell.config, arm.num_classes, arm.job.seed + SEED_OFFSET), plan)
    return _train_and_evaluate(arm, folder, student, settings, plan=plan)


def _timm_small(arm: _ArmRun) -> Outcome:
    """Distil a narrow model from random weights.

    Its hidden states are narrower than the teacher's, so the loss on hidden states is left out.
    """
    settings = scratch_training(arm.cell.config)
    losses = settings.distillation
    if losses.hidden:
        soft = losses.soft if losses.soft or losses.relations or losses.hard else 1.0
        settings = replace(settings, distillation=replace(losses, hidden=0.0, soft=soft))
    student = narrow_model(arm.cell.config, arm.dense, arm.recipe.budget, arm.job.seed + SEED_OFFSET)
    return _train_and_evaluate(arm, _open(arm, settings), student, settings)


def _control(distil: bool, arm: _ArmRun) -> Outcome:
    """Train the dense model for the epochs of the students, on the labels or as the students of the arm `vitrim`."""
    settings = student_training(arm.cell.config)
    return _train_and_evaluate(arm, _open(arm, settings), arm.dense, settings, distil=distil)


def _open(arm: _ArmRun, settings: TrainingSettings) -> RunFolder:
    """Open the folder of an arm with one training stage."""
    recipe = replace(arm.recipe, width_training=settings)
    identity = arm.source.identity(f"benchmark {arm.job.arm}", recipe)
    folder = RunFolder(arm.folder, identity, settings_before(recipe))
    (arm.folder / STAGES).mkdir(exist_ok=True)  # for the seconds of the results
    return folder


@dataclass(frozen=True)
class _Files:
    """How the models of an arm are written to a path and read from it."""

    write: Callable[[nn.Module, Path], Any]
    read: Callable[[Path], nn.Module]


def _model_folders(arm: _ArmRun) -> _Files:
    def write(model: nn.Module, path: Path) -> None:
        save(model, path, classes=arm.data.classes, provenance={"arm": arm.job.arm, "data": arm.data.name})

    return _Files(write, partial(load, device=this_process().device))


def _train_and_evaluate(
    arm: _ArmRun,
    folder: RunFolder,
    student: nn.Module,
    settings: TrainingSettings,
    *,
    plan: PruningPlan | None = None,
    after_cut: dict[str, Any] | None = None,
    distil: bool = True,
    files: _Files | None = None,
) -> Outcome:
    """Train in one stage and evaluate. Without `distil`, only the labels are used.

    The dense model is the teacher. With a better teacher, only hidden states are those of the dense model.

    The model is written to the folder `model`, or by `files` to the file `model.safetensors`.
    """
    name = "distil" if distil else "train"

    def make() -> nn.Module:
        teacher: nn.Module | Teachers | None = arm.dense if distil else None
        if distil and arm.teachers:
            teacher = Teachers(compared=arm.dense, labels=arm.source.teachers)
        options = {"plan": plan, "run_dir": arm.folder, "stage": name, "seed": arm.job.seed}
        return train(student, arm.data, settings, teacher=teacher, **options)  # type: ignore[arg-type]

    path, files = ("model.safetensors", files) if files else ("model", _model_folders(arm))
    model = folder.once(path, make, files.write, files.read, on_all_processes=True)
    evaluation = folder.once_json(
        "evaluation-final.json", lambda: evaluate(model, arm.data).to_dict(), on_all_processes=True
    )
    folder.delete_checkpoints()
    cost = count_cost(model)
    rows = [("cut", after_cut["top1"])] if after_cut else []
    rows.append((name, evaluation["top1"]))
    stages = [{"name": stage, "top1": top1, "params": cost.params, "macs": cost.macs} for stage, top1 in rows]
    return Outcome(model=model, evaluation=evaluation, after_cut=after_cut, stages=stages, has_teacher=distil)


_RUNNERS: dict[str, Callable[[_ArmRun], Outcome]] = {
    **dict.fromkeys(("vitrim", WHOLE_HEADS, *PUBLISHED), _compress),
    "torch-pruning": partial(_prune_once, _plan_by_torch_pruning),
    "torch-pruning-head-widths": _narrow_heads,
    **{criterion: partial(_prune_once, partial(_uniform_plan, criterion)) for criterion in ("random", "magnitude")},
    "scratch": _scratch,
    "timm-small": _timm_small,
    CONTROL: partial(_control, False),
    DISTILLED: partial(_control, True),
}
