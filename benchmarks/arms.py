"""What is done to the dense model in each arm. An arm leaves a model, its evaluations, and what the record needs.

Every step is one file of the arm's folder and is not repeated when the same command is given again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.architectures import fresh_model, narrow_model, uniform_plan
from benchmarks.cell import Cell, Job, alone_in, is_finished, read_evaluation, timed
from benchmarks.config import CONTROL, PUBLISHED, recipe_for, scratch_training, student_training
from benchmarks.record import Outcome, write_record
from vitrim.costs.counting import count_cost
from vitrim.data.images import ImageData
from vitrim.data.matching import Calibration, match_labels
from vitrim.evaluation import evaluate
from vitrim.importance import Criterion
from vitrim.pipeline import compress, identity
from vitrim.plan import PruningPlan
from vitrim.recipe import Recipe
from vitrim.runs.files import read_json
from vitrim.runs.folder import RunFolder
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import load, save
from vitrim.surgery import prune
from vitrim.training import TrainingSettings, train

OTHER_WEIGHTS = 1000  # added to the seed where weights begin at random a second time


def run_job(cell: Cell, job: Job) -> None:
    """Run one arm, unless it is finished, and write its record."""
    folder = cell.folder(job)
    if is_finished(folder):
        return
    if job.arm == "scratch":  # it has the architecture that vitrim ends with
        run_job(cell, replace(job, arm="vitrim"))
    dense = cell.dense(job.seed)
    with alone_in(folder):
        if is_finished(folder):  # by the process that was waited for
            return
        log(f"seed {job.seed}, keep {job.keep:g}: {job.arm}")
        with timed(folder):
            outcome = _RUNNERS[job.arm](_Work(cell, job, dense))
        write_record(cell, job, dense, outcome)
    log(f"seed {job.seed}, keep {job.keep:g}: {job.arm} {outcome.evaluation['top1']:.2f} %")


@dataclass(frozen=True)
class _Work:
    """An arm at work: where, and from which dense model."""

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
        """With validation images on the model's device, and labels as the model counts them."""
        data = match_labels(self.cell.data, self.dense)
        return replace(data, validation=data.validation.to(this_process().device))

    @property
    def calibration(self) -> Calibration:
        settings = self.recipe.importance
        images = self.cell.data.train.sample(settings.num_images, self.job.seed)
        return Calibration(images=images, model=self.dense, batch_size=settings.batch_size)

    @property
    def num_classes(self) -> int:
        return len(self.cell.data.classes)


def _compress(work: _Work) -> Outcome:
    """Arms `vitrim`, `paper` and `hard-labels`: the whole method, by their recipes."""
    result = compress(work.dense, work.cell.data, work.recipe, work.folder)
    stages = [
        {**{key: row[key] for key in ("top1", "params", "macs")}, "name": row["name"].removeprefix("width ")}
        for row in result.report["stages"]
        if row["name"] != "dense"
    ]
    return Outcome(
        model=result.model,
        evaluation=read_json(work.folder / "evaluation-final.json"),
        after_cut=read_evaluation(work.folder / "evaluation-width-cut.json"),
        after_recover=read_evaluation(work.folder / "evaluation-width-recover.json"),
        stages=stages,
    )


def _cut_at_once(find: Callable[[_Work], PruningPlan], work: _Work) -> Outcome:
    """Arms that cut by a plan of their own in one step, and then learn as ours do."""
    settings = student_training(work.cell.config)
    run = _open(work, settings)
    plan = run.once_plan("plan.json", lambda: find(work))
    student = prune(work.dense, plan)
    after_cut = run.once_json(
        "evaluation-cut.json", lambda: evaluate(student, work.data).to_dict(), on_all_processes=True
    )
    return _taught(work, run, student, settings, plan=plan, after_cut=after_cut)


def _plan_by_torch_pruning(work: _Work) -> PruningPlan:
    from benchmarks.torch_pruning import plan_by_torch_pruning  # needs a package of its own

    return plan_by_torch_pruning(work.dense, work.calibration, work.recipe.budget, seed=work.job.seed)


def _plan_alike(criterion: Criterion, work: _Work) -> PruningPlan:
    return uniform_plan(work.dense, work.calibration, criterion, work.recipe.budget, seed=work.job.seed)


def _scratch(work: _Work) -> Outcome:
    """The architecture that vitrim ended with, from random weights."""
    plan_file = work.cell.folder(replace(work.job, arm="vitrim")) / "plan.json"
    settings = scratch_training(work.cell.config)
    run = _open(work, settings)
    plan = run.once_plan("plan.json", lambda: PruningPlan.from_json(plan_file.read_text(encoding="utf-8")))
    student = prune(fresh_model(work.cell.config, work.num_classes, work.job.seed + OTHER_WEIGHTS), plan)
    return _taught(work, run, student, settings, plan=plan)


def _timm_small(work: _Work) -> Outcome:
    """A plain narrow model from random weights; its hidden states are too narrow to compare with the teacher's."""
    settings = scratch_training(work.cell.config)
    losses = settings.distillation
    if losses.hidden:
        soft = losses.soft if losses.soft or losses.relations or losses.hard else 1.0
        settings = replace(settings, distillation=replace(losses, hidden=0.0, soft=soft))
    student = narrow_model(work.cell.config, work.dense, work.recipe.budget, work.job.seed + OTHER_WEIGHTS)
    return _taught(work, _open(work, settings), student, settings)


def _control(work: _Work) -> Outcome:
    """The dense model, trained on by labels for as long as the students learn."""
    settings = student_training(work.cell.config)
    return _taught(work, _open(work, settings), work.dense, settings, distil=False)


def _open(work: _Work, settings: TrainingSettings) -> RunFolder:
    """The arm's folder, for a training with these settings."""
    recipe = replace(work.recipe, width_training=settings)
    return RunFolder(work.folder, identity(f"benchmark {work.job.arm}", recipe, work.dense, work.data))


def _taught(
    work: _Work,
    run: RunFolder,
    student: nn.Module,
    settings: TrainingSettings,
    *,
    plan: PruningPlan | None = None,
    after_cut: dict[str, Any] | None = None,
    distil: bool = True,
) -> Outcome:
    """Train in one stage, from the dense model or (`distil` unset) from the labels alone, and measure."""
    name = "distil" if distil else "train"

    def make() -> nn.Module:
        teacher = work.dense if distil else None
        options = {"plan": plan, "run_dir": work.folder, "stage": name, "seed": work.job.seed}
        return train(student, work.data, settings, teacher=teacher, **options)  # type: ignore[arg-type]

    def write(model: nn.Module, path: Path) -> None:
        save(model, path, classes=work.data.classes, provenance={"arm": work.job.arm, "data": work.data.name})

    def read(path: Path) -> nn.Module:
        return load(path, device=this_process().device)

    model = run.once("model", make, write, read, on_all_processes=True)
    evaluation = run.once_json(
        "evaluation-final.json", lambda: evaluate(model, work.data).to_dict(), on_all_processes=True
    )
    run.delete_checkpoints()
    cost, cut = count_cost(model), after_cut
    rows = [("cut", cut["top1"])] if cut else []
    rows.append((name, evaluation["top1"]))
    stages = [{"name": stage, "top1": top1, "params": cost.params, "macs": cost.macs} for stage, top1 in rows]
    return Outcome(model=model, evaluation=evaluation, after_cut=after_cut, stages=stages, has_teacher=distil)


_RUNNERS: dict[str, Callable[[_Work], Outcome]] = {
    **dict.fromkeys(("vitrim", *PUBLISHED), _compress),
    "torch-pruning": partial(_cut_at_once, _plan_by_torch_pruning),
    **{criterion: partial(_cut_at_once, partial(_plan_alike, criterion)) for criterion in ("random", "magnitude")},
    "scratch": _scratch,
    "timm-small": _timm_small,
    CONTROL: _control,
}
