"""One run of `compress` in its folder: each method makes the result of one stage, or reads it.

The order of the stages is in `pipeline`. What a stage computes is in the modules that it calls.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.class_accuracy import classes_at_zero
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import busy_note, measure_latencies
from vitrim.data.files.run_record import explain_unreadable, keep_record
from vitrim.data.images import ImageData
from vitrim.depth import ROTATION, SCORES, choose_num_blocks, plan_sources, plan_width, read_proposal
from vitrim.earlier_versions import CHANGED_DEFAULTS, SETTINGS_OF_0_1, epoch_choices, settings_before
from vitrim.errors import FolderInUse, counted
from vitrim.evaluation import Evaluation, evaluate
from vitrim.forecast import Forecast, compress_steps, last_steps
from vitrim.head_width import choose_head_width, compare_head_widths
from vitrim.importance.scores import Scores
from vitrim.measured_once import Shared, device_times_of, target_of
from vitrim.pace import Pace, measure_pace
from vitrim.plan import PruningPlan
from vitrim.planning import Planner, Proposal
from vitrim.recipe import (
    Recipe,
    changeable_keys,
    to_table,
    to_toml,
)
from vitrim.recovery.recover import recover
from vitrim.reports import report as reports
from vitrim.reports.details import details_of_compress
from vitrim.reports.latency import missed_latency
from vitrim.reports.stages import LARGER, StageResults
from vitrim.reports.writing import write_pages
from vitrim.rotation import Rotation, RotationStatistics
from vitrim.runs.digests import write_text_noted
from vitrim.runs.files import read_json
from vitrim.runs.folder import RunFolder, in_stages, parsed, read_plan
from vitrim.runs.processes import is_main_process, this_process, wait_for_all
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint, load, save
from vitrim.source import Source, max_removed_blocks, narrows_heads
from vitrim.surgery import prune
from vitrim.tracking.trackers import active_trackers
from vitrim.training.distillation import Teachers
from vitrim.training.train import train

WIDTH_PLAN, DEPTH_STEP = in_stages("width-plan.json"), in_stages("depth-step.json")
FIRST_PREDICTION_FILE = "promise.json"  # where runs of version 0.1.0 keep the predicted latency of the last plan


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """The result of `compress`.

    Attributes:
        model: the smaller model, on the device of this process, in eval mode.
        plan: the heads, neurons and blocks that were kept; its indices refer to the dense model.
        report: the content of `report.json`.
        sizes: all results, the largest model first, if the recipe asks for several sizes. `model` is then the smallest.
    """

    model: nn.Module
    plan: PruningPlan
    report: dict[str, Any]
    sizes: "tuple[Compressed, ...]" = ()


def open_folder(
    run_dir: str | Path, source: Source, command: str, recipe: Any, scores: Scores | None = None
) -> RunFolder:
    """Open or create the folder of a run, and write the recipe into it.

    Args:
        scores: that were passed; None if the run measures them.

    Raises:
        FolderInUse: it holds something else, or a run made from something else.
    """
    before = settings_before(recipe)
    before["recipe"] |= SETTINGS_OF_0_1 if command == "compress" else {}
    identity = {**epoch_choices(recipe), **source.identity(command, recipe)}
    before["model"] = source.construction()  # earlier versions did not note it
    if command == "compress":
        identity |= {"searches": True} if recipe.search.max_drop else {}  # the drop itself may change
        identity["scores"] = scores.digest() if scores is not None else None
        before["scores"] = _scores_before(Path(run_dir), scores)
    try:
        folder = RunFolder(run_dir, identity, before, CHANGED_DEFAULTS, changeable_keys(recipe, "recipe."))
    except FolderInUse as problem:
        raise FolderInUse(f"{problem}{explain_unreadable(source.data, run_dir)}") from None
    keep_record(source.data, folder.path)
    if is_main_process():
        write_text_noted(folder.path / "recipe.toml", to_toml(recipe))
    active_trackers().start(folder.path, identity)
    return folder


def _scores_before(folder: Path, scores: Scores | None) -> str | None:
    """What an earlier version would have noted about the scores that were passed to a run: those in its folder."""
    file = folder / "scores.safetensors"
    if scores is None:
        return None
    return Scores.load(file).digest() if file.is_file() else scores.digest()


class CompressRun:
    """One run of `compress`: each method makes the result of one stage, or reads it from the run folder."""

    def __init__(
        self,
        run_dir: str | Path,
        source: Source,
        recipe: Recipe,
        scores: Scores | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.folder = open_folder(run_dir, source, "compress", recipe, scores)
        self.source, self.recipe, self.shared = source, recipe, shared
        self.of_dense = shared if shared and not source.larger else None  # what was measured on the model that is cut
        self.data = source.data
        self.stages = StageResults()
        self.target: dict[str, Any] = {}
        self.pace: Pace | None = None
        self.forecast = Forecast([])
        larger = source.larger and {"starts from": fingerprint(source.larger.model)}
        self.start_from: dict[str, Any] = larger or {}
        self.student_from: dict[str, Any] = {}  # digests of what the student was made from last
        self.num_made = 0  # results that this process has made and not read, when a step was finished last

    def finished(self) -> Compressed | None:
        """The result, if the run has ended before. It needs no file of a stage."""
        found = stored_result(self.folder)
        if found is None:
            return None
        self.folder.delete_checkpoints()
        details = details_of_compress(self.folder, self.source)
        write_pages(self.folder.path, found.report, {_name(found.report): details})
        return found

    def announce(self) -> None:
        """Log what will be done, and how long it takes."""
        self.pace = measure_pace(self.source, self.recipe.width_training)
        self.forecast = Forecast(compress_steps(self.source, self.recipe, self.pace), self.folder.path)
        budget = self.recipe.budget.label
        self.forecast.announce(f"compress {self.source.structure.model} on {self.data.name} to {budget}")

    def finish_step(self) -> None:
        """Log that a step is done, and how much time is left."""
        self.forecast.finish_step(was_read=self.folder.num_made == self.num_made)
        self.num_made = self.folder.num_made

    def num_blocks(self, planner: Planner, scores: Scores) -> int:
        """The number of blocks to remove."""
        found = choose_num_blocks(self.folder, planner, scores)
        if self.recipe.depth.blocks == "auto" and max_removed_blocks(self.source.start.structure, self.recipe):
            self.finish_step()
            if self.pace:
                why = f"{counted(found, 'block') if found else 'no block'} will be removed"
                self.forecast.replace_rest(last_steps(self.source, self.recipe, self.pace, found), why)
        return found

    def device_times(self) -> DeviceTimes:
        """What the budget needs to know about the device: latency table and fast multiple."""
        found: DeviceTimes = self.folder.once_json(
            in_stages("device.json"),
            lambda: (self.shared.timings if self.shared else device_times_of(self.source, self.recipe)).to_dict(),
            DeviceTimes.from_dict,
        )
        if self.recipe.budget.latency_ms:
            self.finish_step()
        return found

    def scores(self, make: Callable[[], Scores]) -> Scores:
        """The scores of the model that is cut."""
        made = self.of_dense.scores if self.of_dense else None
        return self.folder.once(
            SCORES, lambda: made or make(), Scores.save, Scores.load, made_from=self.start_from or None
        )

    def with_head_width(self, planner: Planner, scores: Scores, statistics: RotationStatistics) -> Planner:
        """The planner with the rotation of the heads and their width; unchanged if they keep it."""
        if not narrows_heads(self.source.start.structure, self.recipe):
            return planner
        made = self.of_dense.rotation if self.of_dense else None
        make = lambda: made or planner.measure_rotation(statistics)  # noqa: E731
        found = self.folder.once(ROTATION, make, Rotation.save, Rotation.load, made_from=self.start_from or None)
        planner = replace(planner, rotation=found)

        def divergences() -> dict[int, float]:
            found: dict[int, float] = self.folder.once_json(
                in_stages("head-widths.json"),
                lambda: compare_head_widths(planner, scores),
                lambda found: {int(width): float(divergence) for width, divergence in found.items()},
                made_from=self.folder.digests_of(SCORES, ROTATION),
            )
            return found

        return replace(planner, head_width=choose_head_width(planner, divergences))

    def width_plan(self, planner: Planner, scores: Scores, num_blocks: int) -> Proposal:
        """The plan of the width stage."""
        made_from = {**plan_sources(self.folder, planner), "blocks to remove": num_blocks}
        return self._plan(WIDTH_PLAN, lambda: plan_width(self.folder, planner, scores, num_blocks), made_from)

    def depth_step(self, planner: Planner, student: nn.Module, before: PruningPlan, num_blocks: int) -> Proposal:
        """The plan of the depth stage. Its indices refer to the student after the width stage."""
        made_from = {**self.student_from, "blocks to remove": num_blocks}
        return self._plan(DEPTH_STEP, lambda: planner.plan_depth(student, before, num_blocks), made_from)

    def _plan(self, file: str, make: Callable[[], Proposal], made_from: Mapping[str, Any]) -> Proposal:
        """The plan of a stage, with its predicted latency."""

        def write(proposal: Proposal, path: Path) -> None:
            path.write_text(proposal.to_json(), encoding="utf-8")

        def read(path: Path) -> Proposal:
            proposal = read_proposal(path)
            first = self.folder.path / FIRST_PREDICTION_FILE
            if self.recipe.budget.latency_ms and not proposal.predicted_ms and first.is_file():
                predicted_ms = parsed(first, lambda found: float(found["promised_ms"]), read_json(first))
                return replace(proposal, predicted_ms=predicted_ms)
            return proposal

        return self.folder.once(file, make, write, read, made_from=made_from)

    def evaluate(self, stage: str, model: nn.Module) -> Evaluation:
        """Evaluate the model after a stage, and note it for the report."""
        evaluation: Evaluation = self.folder.once_json(
            in_stages(f"evaluation-{stage.replace(' ', '-')}.json"),
            lambda: (self.shared.dense if self.shared and stage == "dense" else evaluate(model, self.data)).to_dict(),
            Evaluation.from_dict,
            on_all_processes=True,
            made_from=self.start_from if stage == LARGER else self.student_from,
        )
        self.stages.add(reports.stage_row(self.recipe.budget.label, stage, model, evaluation), evaluation)
        log(f"{stage}: top-1 {evaluation.top1:.2f} %")
        if stage == "dense":
            warn_of_classes(stage, evaluation, self.data)
            shared = self.shared
            self.target = shared.target if shared else target_of(self.folder, self.source, self.recipe, evaluation)
        return evaluation

    def cut_and_recover(self, stage: str, model: nn.Module, plan: PruningPlan, planner: Planner) -> nn.Module:
        """Cut `model` by `plan`, and refit the smaller model so that it follows `model`.

        Args:
            stage: `width` or `depth`.
            model: the model that is cut, with rotated heads, or the student of the width stage.
            plan: its indices refer to `model`.
            planner: has the calibration images.
        """
        cut = prune(model, plan)
        if stage == "width":
            self.student_from = {**self.folder.digests_of(WIDTH_PLAN, ROTATION), **self.start_from}
        else:
            self.student_from = {**self.student_from, **self.folder.digests_of(DEPTH_STEP)}
        self.evaluate(f"{stage} cut", cut)
        settings = self.recipe.recovery
        if not settings.enabled:
            return cut
        make = partial(recover, cut, model, plan, planner.calibration, ridge=settings.ridge)
        write = partial(save_with, classes=self.data.classes)
        name = in_stages(f"{stage}-recovered")
        recovered = self.folder.once(name, make, write, load_on_own_device, made_from=self.student_from)
        self.student_from = self.folder.digests_of(name)
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
        write = partial(save_with, classes=self.data.classes)
        name, made_from = in_stages(f"{stage}-distilled"), {**self.student_from, "epochs": settings.epochs}

        def trained() -> nn.Module:
            self.folder.begin_training(stage, made_from)
            return make()

        distilled = self.folder.once(
            name, trained, write, load_on_own_device, on_all_processes=True, made_from=made_from
        )
        self.student_from = self.folder.digests_of(name)
        self.evaluate(f"{stage} distil", distilled)
        if sentence := self.stages.is_worse(stage):
            log(f"warning: {stage}: {sentence}")
        return distilled

    def finish(self, student: nn.Module, plan: PruningPlan, timings: DeviceTimes, predicted_ms: float) -> Compressed:
        """Save the student, evaluate it, time both models, and write the report."""
        provenance = {
            "compressed_from": self.source.structure.model,
            "weights": self.source.fingerprint,
            "data": self.data.name,
            **about_teachers(self.source),
            "recipe": to_table(self.recipe),
        }
        write = partial(save_with, classes=self.data.classes, provenance=provenance)
        student = self.folder.once("model", lambda: student, write, load_on_own_device, made_from=self.student_from)
        self.student_from = self.folder.digests_of("model")
        self.folder.once_plan("plan.json", lambda: plan, made_from=self.folder.digests_of(WIDTH_PLAN, DEPTH_STEP))
        self.evaluate("final", student)
        made_from = self.folder.digests_of("model", "plan.json", in_stages("evaluation-*.json"))
        make = partial(self._report, student, timings, predicted_ms)
        report = self.folder.once_json("report.json", make, reports.parse, made_from=made_from)
        made_from |= self.folder.digests_of(SCORES)
        details = details_of_compress(self.folder, self.source, made_from)
        write_pages(self.folder.path, report, {_name(report): details})
        self.finish_step()
        for sentence in missed_latency(report["latency"]) if report["latency"] else ():
            log(f"latency: {sentence}")
        self.folder.delete_checkpoints()
        return Compressed(model=student, plan=plan, report=report)

    def _report(self, student: nn.Module, timings: DeviceTimes, predicted_ms: float) -> dict[str, Any]:
        busy = busy_note()
        dense_latency, latency = measure_latencies([self.source.model, student], self.recipe.latency)
        outcome = reports.Outcome(
            student=student,
            before=self.stages.evaluations[0],
            after=self.stages.evaluations[-1],
            latencies=(dense_latency, latency),
            stages=self.stages.rows[:-1],
            notes=self.stages.notes(self.folder.path),
            busy=busy,
            predicted_ms=predicted_ms,
            dense_ms=timings.dense_ms,
            target=self.target,
        )
        return reports.build(self.source, self.recipe, outcome)


def _name(report: dict[str, Any]) -> str:
    """The name of the smaller model in a report."""
    return str(report["models"][-1]["name"])


def stored_result(folder: RunFolder) -> Compressed | None:
    """Model, plan and report of a run that has ended before; None if one of them is missing or damaged."""
    if not all((folder.path / name).exists() for name in ("report.json", "plan.json", "model")):
        return None
    plan = folder.stored("plan.json", read_plan)
    report = folder.stored("report.json", reports.read)
    model = None if plan is None or report is None else folder.stored("model", load_on_own_device)
    wait_for_all()  # no process may write before all processes have looked
    if plan is None or report is None or model is None:
        return None
    return Compressed(model=model, plan=plan, report=report)


def warn_of_classes(name: str, evaluation: Evaluation, data: ImageData) -> None:
    """Log the classes that a model never recognises, after the name of the model or of the images."""
    if sentence := classes_at_zero(evaluation, data).sentence():
        log(f"{name}: {sentence}")


def about_teachers(source: Source) -> dict[str, Any]:
    """What model folders say about teachers from elsewhere; nothing if there are none."""
    return {"teachers": [teacher.to_dict() for teacher in source.teachers]} if source.teachers else {}


def save_with(model: nn.Module, path: Path, *, classes: tuple[str, ...], provenance: Any = None) -> None:
    """Save a model as the result of a stage."""
    save(model, path, classes=classes, provenance=provenance)


def load_on_own_device(path: Path) -> nn.Module:
    """Load a model on the device of this process."""
    return load(path, device=this_process().device)
