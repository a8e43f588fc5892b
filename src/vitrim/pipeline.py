"""The whole method, from top to bottom: score, rotate, prune width, recover, distil, prune depth, recover, distil.

Read this file first. In a run of `compress` or `fit`, every stage leaves its result in the run folder. A repeated
command reads finished results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitrim import report as reports
from vitrim.class_accuracy import classes_at_zero
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import measure_latencies
from vitrim.data.files.run_record import as_in_run, explain_unreadable, keep_record
from vitrim.data.images import ImageData
from vitrim.depth import choose_num_blocks, plan_width
from vitrim.errors import FolderInUse
from vitrim.evaluation import Evaluation, evaluate
from vitrim.forecast import Forecast, Pace, compress_steps, last_steps, measure_pace, train_steps
from vitrim.head_width import choose_head_width, compare_head_widths
from vitrim.importance.blocks import rank_blocks_for_removal
from vitrim.importance.scores import Scores
from vitrim.plan import PruningPlan
from vitrim.planning import Planner, Proposal
from vitrim.precision import computes_in_bf16
from vitrim.recipe import (
    CHANGED_DEFAULTS,
    SETTINGS_OF_0_1,
    Recipe,
    TrainRecipe,
    changeable_keys,
    epoch_choices,
    to_table,
    to_toml,
)
from vitrim.recovery.recover import recover
from vitrim.rotation import Rotation, RotationStatistics
from vitrim.runs.files import read_json, write_text
from vitrim.runs.folder import RunFolder, in_stages
from vitrim.runs.processes import is_main_process, this_process
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import load, save
from vitrim.source import Source, check, check_use_of_teachers, max_removed_blocks, narrows_heads
from vitrim.surgery import prune
from vitrim.training.distillation import Teachers
from vitrim.training.job import check_training
from vitrim.training.loop import train
from vitrim.training.validation import KeptEpoch

FIRST_PREDICTION_FILE = "promise.json"  # where runs of version 0.1.0 keep the predicted latency of the last plan


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The result of `compress`.

    Attributes:
        model: the smaller model, on the device of this process, in eval mode.
        plan: the heads, neurons and blocks that were kept; its indices refer to the dense model.
        report: the content of `report.json`.
    """

    model: nn.Module
    plan: PruningPlan
    report: dict[str, Any]


def compress(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    run_dir: str | Path,
    *,
    scores: Scores | None = None,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
) -> Compressed:
    """Compress `model` to `recipe.budget` and distil it. After a crash, the same call continues from the last result.

    Args:
        model: the dense model. It becomes the teacher and is not changed.
        data: images for calibration, distillation and evaluation.
        recipe: all settings.
        run_dir: folder of the run. The result is in its subfolder `model`.
        scores: of this model, from an earlier run with the same importance settings; measured by default.
        teacher: one model or several of the same classes. The mean of their softmax outputs is learned in the width and
            depth stages, instead of the dense model's. Scores, recovery, the search for the number of blocks and the
            loss on hidden states use the dense model. They are not changed.

    Raises:
        UnsupportedModel, SaveMismatch, SettingError, BudgetError, DataError: see `vitrim.source`.
        FolderInUse: `run_dir` holds something else, or a run with another recipe, model, data or teacher; lists what
            differs.
        NonFiniteLoss: a loss became infinite or not a number.
    """
    data = as_in_run(data.with_num_workers(recipe.width_training.num_workers), run_dir)
    source = Source.of(model, data, teacher)
    check(source, recipe, scores)
    run = CompressRun(run_dir, source, recipe)
    run.announce()
    run.evaluate("dense", source.model)
    run.finish_step()
    planner = Planner(source=source, recipe=recipe, timings=run.device_times())
    planner.check()
    statistics = RotationStatistics()
    scores = run.scores(lambda: scores or planner.score_dense(statistics))
    planner = run.with_head_width(planner, scores, statistics)
    run.finish_step()
    num_blocks = run.num_blocks(planner, scores)

    proposal = run.plan(in_stages("width-plan.json"), lambda: plan_width(run.folder, planner, scores, num_blocks))
    plan = proposal.plan
    student = run.cut_and_recover("width", planner.base, plan, planner)
    student = run.distil("width", student, plan, with_depth_epochs=num_blocks == 0)
    run.finish_step()

    if num_blocks:
        proposal = run.plan(in_stages("depth-step.json"), lambda: planner.plan_depth(student, plan, num_blocks))
        cut_student = run.cut_and_recover("depth", student, proposal.plan, planner)
        plan = plan.then(proposal.plan)
        student = run.distil("depth", cut_student, plan)
        run.finish_step()

    return run.finish(student, plan, planner.timings, proposal.predicted_ms)


def plan_only(model: nn.Module, data: ImageData, recipe: Recipe) -> Proposal:
    """A plan for the budget, made without training. The model is not changed.

    Blocks are removed as `recipe.depth.blocks` says. With `auto`, none is removed: `compress` finds their number by
    training.

    Raises:
        BudgetError: no plan meets the budget. DataError: the data has classes that the model lacks.
    """
    source = Source.of(model, data.with_num_workers(recipe.width_training.num_workers))
    timings = _device_times(source, recipe)
    planner = Planner(source=source, recipe=recipe, timings=timings)
    blocks = recipe.depth.blocks
    planner.check(() if blocks == "auto" else None)
    removed = rank_blocks_for_removal(model, planner.calibration, blocks) if isinstance(blocks, int) else []
    statistics = RotationStatistics()
    scores = planner.score_dense(statistics)
    if narrows_heads(source.structure, recipe):
        planner = replace(planner, rotation=planner.measure_rotation(statistics))
        planner = replace(planner, head_width=choose_head_width(planner, lambda: compare_head_widths(planner, scores)))
    return planner.plan_one_shot(scores, tuple(removed))


def fit(
    model: nn.Module,
    data: ImageData,
    recipe: TrainRecipe,
    run_dir: str | Path,
    *,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
) -> nn.Module:
    """Train a dense model in a run folder. After a crash, the same call continues from the last checkpoint.

    The folder then holds `metrics.jsonl`, `model/` and `evaluation.json`.

    Args:
        teacher: the model learns from it, or from several, as `recipe.training.distillation` says; by default it learns
            the labels.

    Returns:
        The trained model, in eval mode.

    Raises:
        SettingError, DataError: the training batch does not fit the data or the processes, or a teacher does not fit
            the model.
        SaveMismatch, UnsupportedModel: the trained model could not be saved; see `find_changes`.
        FolderInUse: `run_dir` holds something else, or a run with another recipe, model, data or teacher.
    """
    data = as_in_run(data.with_num_workers(recipe.training.num_workers), run_dir)
    source = Source.of(model, data, teacher, learns=True)
    check_training(recipe.training, source.structure, source.data)
    check_use_of_teachers(source, [recipe.training])
    _ = source.changes  # refuses a model that could not be saved
    folder = open_folder(run_dir, source, "train", recipe)
    if not (folder.path / "model").exists():
        steps = train_steps(source, recipe.training, measure_pace(source, recipe.training))
        Forecast(steps).announce(f"train {source.structure.model} on {source.data.name}")
    provenance = {"trained_on": source.data.name, **_teachers_of(source), "recipe": to_table(recipe)}

    def trained() -> nn.Module:
        teachers = Teachers(labels=source.teachers) if source.teachers else None
        options: dict[str, Any] = {"run_dir": folder.path, "stage": "train", "seed": recipe.seed}
        return train(source.model, source.data, recipe.training, teacher=teachers, **options)

    write = partial(_save_with, classes=source.data.classes, provenance=provenance)
    result = folder.once("model", trained, write, _load_on_own_device, on_all_processes=True)
    found = folder.once_json("evaluation.json", lambda: evaluate(result, source.data).to_dict(), on_all_processes=True)
    folder.delete_checkpoints()
    evaluation = Evaluation.from_dict(found)
    kept = KeptEpoch.read(folder.path, "train")
    chosen = f" of epoch {kept.best.epoch}, which was chosen on these {kept.num_images} images" if kept else ""
    log(
        f"top-1 {evaluation.top1:.2f} % [{evaluation.low:.2f}, {evaluation.high:.2f}]{chosen}; model in "
        f"{folder.path / 'model'}"
    )
    _warn_of_classes("validation", evaluation, source.data)
    return result


def open_folder(run_dir: str | Path, source: Source, command: str, recipe: Any) -> RunFolder:
    """Open or create the folder of a run, and write the recipe into it.

    Raises:
        FolderInUse: it holds something else, or a run made from something else.
    """
    choices = epoch_choices(recipe)
    before = {**choices, "recipe": {**(SETTINGS_OF_0_1 if command == "compress" else {}), **choices["recipe"]}}
    identity = {**choices, **source.identity(command, recipe)}
    try:
        folder = RunFolder(run_dir, identity, before, CHANGED_DEFAULTS, changeable_keys(recipe, "recipe."))
    except FolderInUse as problem:
        raise FolderInUse(f"{problem}{explain_unreadable(source.data, run_dir)}") from None
    keep_record(source.data, folder.path)
    if is_main_process():
        write_text(folder.path / "recipe.toml", to_toml(recipe))
    return folder


class CompressRun:
    """One run of `compress`: each method makes the result of one stage, or reads it from the run folder."""

    def __init__(self, run_dir: str | Path, source: Source, recipe: Recipe) -> None:
        self.folder = open_folder(run_dir, source, "compress", recipe)
        self.source, self.recipe = source, recipe
        self.data = source.data
        self.stages: list[dict[str, Any]] = []  # rows of the report
        self.evaluations: list[Evaluation] = []
        self.pace: Pace | None = None
        self.forecast = Forecast([])
        self.num_made = 0  # results that this process has made and not read, when a step was finished last

    def announce(self) -> None:
        """Log what will be done, and how long it takes, unless the run is finished."""
        if not (self.folder.path / "report.json").is_file():
            self.pace = measure_pace(self.source, self.recipe.width_training)
            self.forecast = Forecast(compress_steps(self.source, self.recipe, self.pace))
            budget = self.recipe.budget.label
            self.forecast.announce(f"compress {self.source.structure.model} on {self.data.name} to {budget}")

    def finish_step(self) -> None:
        """Log that a step is done, and how much time is left."""
        self.forecast.finish_step(was_read=self.folder.num_made == self.num_made)
        self.num_made = self.folder.num_made

    def num_blocks(self, planner: Planner, scores: Scores) -> int:
        """The number of blocks to remove."""
        found = choose_num_blocks(self.folder, planner, scores)
        if self.recipe.depth.blocks == "auto" and max_removed_blocks(self.source.structure, self.recipe):
            self.finish_step()
            if self.pace:
                self.forecast.replace_rest(last_steps(self.source, self.recipe, self.pace, found))
        return found

    def device_times(self) -> DeviceTimes:
        """What the budget needs to know about the device: latency table and fast multiple."""
        file = in_stages("device.json")
        found = self.folder.once_json(file, lambda: _device_times(self.source, self.recipe).to_dict())
        if self.recipe.budget.latency_ms:
            self.finish_step()
        return DeviceTimes.from_dict(found)

    def scores(self, make: Callable[[], Scores]) -> Scores:
        """The scores of the dense model."""
        return self.folder.once("scores.safetensors", make, Scores.save, Scores.load)

    def with_head_width(self, planner: Planner, scores: Scores, statistics: RotationStatistics) -> Planner:
        """The planner with the rotation of the dense model's heads and their width; unchanged if they keep it."""
        if not narrows_heads(self.source.structure, self.recipe):
            return planner
        make = partial(planner.measure_rotation, statistics)
        planner = replace(
            planner, rotation=self.folder.once(in_stages("rotation.safetensors"), make, Rotation.save, Rotation.load)
        )

        def divergences() -> dict[int, float]:
            found = self.folder.once_json(in_stages("head-widths.json"), lambda: compare_head_widths(planner, scores))
            return {int(width): divergence for width, divergence in found.items()}

        return replace(planner, head_width=choose_head_width(planner, divergences))

    def plan(self, file: str, make: Callable[[], Proposal]) -> Proposal:
        """The plan of a stage, with its predicted latency."""

        def write(proposal: Proposal, path: Path) -> None:
            path.write_text(proposal.to_json(), encoding="utf-8")

        def read(path: Path) -> Proposal:
            proposal = Proposal.from_json(path.read_text(encoding="utf-8"))
            first = self.folder.path / FIRST_PREDICTION_FILE
            if self.recipe.budget.latency_ms and not proposal.predicted_ms and first.is_file():
                return replace(proposal, predicted_ms=read_json(first)["promised_ms"])
            return proposal

        return self.folder.once(file, make, write, read)

    def evaluate(self, stage: str, model: nn.Module) -> Evaluation:
        """Evaluate the model after a stage, and note it for the report."""
        file = in_stages(f"evaluation-{stage.replace(' ', '-')}.json")
        found = self.folder.once_json(file, lambda: evaluate(model, self.data).to_dict(), on_all_processes=True)
        evaluation = Evaluation.from_dict(found)
        self.stages.append(reports.stage_row(self.recipe.budget.label, stage, model, evaluation))
        self.evaluations.append(evaluation)
        log(f"{stage}: top-1 {evaluation.top1:.2f} %")
        if stage == "dense":
            _warn_of_classes(stage, evaluation, self.data)
        return evaluation

    def cut_and_recover(self, stage: str, model: nn.Module, plan: PruningPlan, planner: Planner) -> nn.Module:
        """Cut `model` by `plan`, and refit the smaller model so that it follows `model`.

        Args:
            stage: `width` or `depth`.
            model: the dense model with rotated heads, or the student of the width stage.
            plan: its indices refer to `model`.
            planner: has the calibration images.
        """
        cut = prune(model, plan)
        self.evaluate(f"{stage} cut", cut)
        settings = self.recipe.recovery
        if not settings.enabled:
            return cut
        make = partial(recover, cut, model, plan, planner.calibration, ridge=settings.ridge)
        write = partial(_save_with, classes=self.data.classes)
        recovered = self.folder.once(in_stages(f"{stage}-recovered"), make, write, _load_on_own_device)
        self.evaluate(f"{stage} recover", recovered)
        return recovered

    def distil(
        self, stage: str, student: nn.Module, plan: PruningPlan, *, with_depth_epochs: bool = False
    ) -> nn.Module:
        """Distil the student. The indices of `plan` refer to the dense model.

        Args:
            with_depth_epochs: also train for the epochs of the depth stage. True if no depth stage follows.
        """
        settings = self.recipe.width_training if stage == "width" else self.recipe.depth_training
        if plan.keeps_all(self.source.structure):
            return student  # nothing was cut, so there is nothing to learn
        if with_depth_epochs:
            settings = replace(settings, epochs=settings.epochs + self.recipe.depth_training.epochs)
        make = partial(
            train,
            student,
            self.data,
            settings,
            teacher=Teachers(compared=self.source.model, labels=self.source.teachers),
            plan=plan,
            run_dir=self.folder.path,
            stage=stage,
            seed=self.recipe.seed,
        )
        write = partial(_save_with, classes=self.data.classes)
        name = in_stages(f"{stage}-distilled")
        distilled = self.folder.once(name, make, write, _load_on_own_device, on_all_processes=True)
        self.evaluate(f"{stage} distil", distilled)
        return distilled

    def finish(self, student: nn.Module, plan: PruningPlan, timings: DeviceTimes, predicted_ms: float) -> Compressed:
        """Save the student, evaluate it, time both models, and write the report."""
        provenance = {
            "compressed_from": self.source.structure.model,
            "weights": self.source.fingerprint,
            "data": self.data.name,
            **_teachers_of(self.source),
            "recipe": to_table(self.recipe),
        }
        write = partial(_save_with, classes=self.data.classes, provenance=provenance)
        student = self.folder.once("model", lambda: student, write, _load_on_own_device)
        self.folder.once_plan("plan.json", lambda: plan)
        self.evaluate("final", student)
        report = self.folder.once_json("report.json", lambda: self._report(student, timings, predicted_ms))
        if is_main_process():
            write_text(self.folder.path / "report.md", reports.to_markdown(report))
        for sentence in reports.missed_latency(report["latency"]) if report["latency"] else ():
            log(f"latency: {sentence}")
        self.folder.delete_checkpoints()
        return Compressed(model=student, plan=plan, report=report)

    def _report(self, student: nn.Module, timings: DeviceTimes, predicted_ms: float) -> dict[str, Any]:
        dense_latency, latency = measure_latencies([self.source.model, student], self.recipe.latency)
        kept = [(stage, KeptEpoch.read(self.folder.path, stage)) for stage in ("width", "depth")]
        outcome = reports.Outcome(
            student=student,
            before=self.evaluations[0],
            after=self.evaluations[-1],
            latencies=(dense_latency, latency),
            stages=self.stages[:-1],
            notes=[f"{stage}: {found.sentence()}" for stage, found in kept if found],
            predicted_ms=predicted_ms,
            dense_ms=timings.dense_ms,
        )
        return reports.build(self.source, self.recipe, outcome)


def _device_times(source: Source, recipe: Recipe) -> DeviceTimes:
    in_bf16 = computes_in_bf16(source.device, recipe.width_training.precision)
    return DeviceTimes.measure(source.model, recipe.budget, recipe.latency, in_bf16=in_bf16)


def _warn_of_classes(name: str, evaluation: Evaluation, data: ImageData) -> None:
    if sentence := classes_at_zero(evaluation, data).sentence():
        log(f"{name}: {sentence}")


def _teachers_of(source: Source) -> dict[str, Any]:
    """What model folders say about teachers from elsewhere; nothing if there are none."""
    return {"teachers": [teacher.to_dict() for teacher in source.teachers]} if source.teachers else {}


def _save_with(model: nn.Module, path: Path, *, classes: tuple[str, ...], provenance: Any = None) -> None:
    save(model, path, classes=classes, provenance=provenance)


def _load_on_own_device(path: Path) -> nn.Module:
    return load(path, device=this_process().device)
