"""The whole method, from top to bottom: score, rotate, prune width, recover, distil, prune depth, recover, distil.

Read this file first. In a run of `compress` or `fit`, every stage leaves its result in the run folder. A repeated
command reads finished results.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.compress_run import (
    Compressed,
    CompressRun,
    about_teachers,
    load_on_own_device,
    open_folder,
    save_with,
    warn_of_classes,
)
from vitrim.data.files.run_record import as_in_run
from vitrim.data.images import ImageData
from vitrim.ensembles import evaluate_ensemble
from vitrim.evaluation import Evaluation, evaluate, worse_than_before
from vitrim.forecast import Forecast, plan_steps, train_steps
from vitrim.head_width import choose_head_width, compare_head_widths
from vitrim.importance.blocks import rank_blocks_for_removal
from vitrim.importance.scores import Scores
from vitrim.measured_once import Shared, device_times_of
from vitrim.pace import measure_pace
from vitrim.planning import Planner, Proposal
from vitrim.recipe import Recipe, TrainRecipe, to_table
from vitrim.reports.stages import LARGER
from vitrim.reports.training import report_training
from vitrim.rotation import RotationStatistics
from vitrim.runs.files import SNAPSHOTS
from vitrim.runs.folder import RunFolder, in_stages
from vitrim.runs.locks import locking
from vitrim.runs.processes import is_main_process, wait_for_all
from vitrim.runs.progress import log
from vitrim.sizes.max_drop import check_images, find_smallest
from vitrim.sizes.several import compress_to_sizes
from vitrim.source import Source, check, check_use_of_teachers, narrows_heads
from vitrim.tracking.trackers import tracking
from vitrim.training.distillation import Teachers
from vitrim.training.job import check_training
from vitrim.training.metrics import add_note, notes_on_events
from vitrim.training.snapshots import Cycle, cycles_of
from vitrim.training.train import train
from vitrim.training.validation import KeptEpoch


@locking("run_dir")
def compress(
    model: nn.Module,
    data: ImageData,
    recipe: Recipe,
    run_dir: str | Path,
    *,
    scores: Scores | None = None,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    trackers: Sequence[str] = (),
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
        trackers: `tensorboard`, `wandb`, `trackio` or `mlflow`, to which the epochs and the result are also sent. They
            change no result.

    Raises:
        UnsupportedModel, SaveMismatch, SettingError, BudgetError, DataError: see `vitrim.source`.
        FolderInUse: `run_dir` holds something else, or a run with another recipe, model, data or teacher; lists what
            differs.
        NonFiniteLoss: a loss became infinite or not a number.
    """
    with tracking(trackers) as opened:
        data = as_in_run(data.with_num_workers(recipe.width_training.num_workers), run_dir)
        source = Source.of(model, data, teacher)
        check(source, recipe, scores)
        result = _compress(source, recipe, run_dir, scores)
        opened.finish(result.report)
        return result


def _compress(source: Source, recipe: Recipe, run_dir: str | Path, scores: Scores | None) -> Compressed:
    """Compress to one size, to several, or to the smallest within a drop."""
    if recipe.search.max_drop:
        check_images(recipe.search.max_drop, len(source.data.validation))
        folder = open_folder(run_dir, source, "compress", recipe, scores)
        return find_smallest(folder, source, recipe, compress_once, scores=scores)
    if recipe.sizes.are_several:
        folder = open_folder(run_dir, source, "compress", recipe, scores)
        return compress_to_sizes(folder, source, recipe, compress_once, scores=scores)
    return compress_once(source, recipe, run_dir, scores=scores)


@locking("run_dir")
def compress_once(
    source: Source,
    recipe: Recipe,
    run_dir: str | Path,
    *,
    scores: Scores | None = None,
    shared: Shared | None = None,
) -> Compressed:
    """Compress to one budget: the whole method.

    Args:
        source: the dense model, the model that is cut, and the data.
        recipe: all settings, without several sizes and without a search.
        run_dir: folder of the run.
        scores: of the model that is cut; measured by default.
        shared: what was measured for several sizes; measured here by default.
    """
    run = CompressRun(run_dir, source, recipe, scores, shared)
    if result := run.finished():
        return result
    run.announce()
    run.evaluate("dense", source.model)
    if source.larger:
        run.evaluate(LARGER, source.larger.model)
    run.finish_step()
    planner = Planner(source=source, recipe=recipe, timings=run.device_times())
    planner.check()
    statistics = RotationStatistics()
    scores = run.scores(lambda: scores or planner.score_start(statistics))
    planner = run.with_head_width(planner, scores, statistics)
    run.finish_step()
    num_blocks = run.num_blocks(planner, scores)

    proposal = run.width_plan(planner, scores, num_blocks)
    plan = proposal.plan
    student = run.cut_and_recover("width", planner.base, plan, planner)
    whole = source.start.plan.then(plan)
    student = run.distil("width", student, whole, with_depth_epochs=num_blocks == 0)
    run.finish_step()

    if num_blocks:
        proposal = run.depth_step(planner, student, plan, num_blocks)
        cut_student = run.cut_and_recover("depth", student, proposal.plan, planner)
        whole = whole.then(proposal.plan)
        student = run.distil("depth", cut_student, whole)
        run.finish_step()

    return run.finish(student, whole, planner.timings, proposal.predicted_ms)


def plan_only(model: nn.Module, data: ImageData, recipe: Recipe) -> Proposal:
    """A plan for the budget, made without training. The model is not changed.

    Blocks are removed as `recipe.depth.blocks` says. With `auto`, none is removed: `compress` finds their number by
    training.

    Raises:
        BudgetError: no plan meets the budget. DataError: the data has classes that the model lacks.
    """
    source = Source.of(model, data.with_num_workers(recipe.width_training.num_workers))
    forecast = Forecast(plan_steps(source, recipe, measure_pace(source, recipe.width_training)))
    forecast.announce(f"plan {source.structure.model} on {source.data.name} for {recipe.budget.label}")
    timings = device_times_of(source, recipe)
    if recipe.budget.latency_ms:
        forecast.finish_step()
    planner = Planner(source=source, recipe=recipe, timings=timings)
    blocks = recipe.depth.blocks
    planner.check(() if blocks == "auto" else None)
    removed = rank_blocks_for_removal(model, planner.calibration, blocks) if isinstance(blocks, int) else []
    statistics = RotationStatistics()
    scores = planner.score_start(statistics)
    if narrows_heads(source.structure, recipe):
        planner = replace(planner, rotation=planner.measure_rotation(statistics))
        planner = replace(planner, head_width=choose_head_width(planner, lambda: compare_head_widths(planner, scores)))
    forecast.finish_step()
    return planner.plan_one_shot(scores, tuple(removed))


@locking("run_dir")
def fit(
    model: nn.Module,
    data: ImageData,
    recipe: TrainRecipe,
    run_dir: str | Path,
    *,
    teacher: nn.Module | Sequence[nn.Module] | None = None,
    trackers: Sequence[str] = (),
) -> nn.Module:
    """Train a dense model in a run folder. After a crash, the same call continues from the last checkpoint.

    The folder then holds `metrics.jsonl`, `model/`, `evaluation.json` and the report. With `recipe.snapshots` above 1,
    the models of the first cycles are in `snapshots/1`, `snapshots/2` and so on, and that of the last in `model`.

    Args:
        teacher: the model learns from it, or from several, as `recipe.training.distillation` says; by default it learns
            the labels.
        trackers: as in `compress`.

    Returns:
        The trained model, in eval mode.

    Raises:
        SettingError, DataError: the training batch does not fit the data or the processes, or a teacher does not fit
            the model.
        SaveMismatch, UnsupportedModel: the trained model could not be saved; see `find_changes`.
        FolderInUse: `run_dir` holds something else, or a run with another recipe, model, data or teacher.
    """
    with tracking(trackers) as opened:
        data = as_in_run(data.with_num_workers(recipe.training.num_workers), run_dir)
        source = Source.of(model, data, teacher, learns=True)
        result, report = _fit(source, recipe, run_dir)
        opened.finish(report)
        return result


def _fit(source: Source, recipe: TrainRecipe, run_dir: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The trained model and its report."""
    check_training(recipe.training, source.structure, source.data)
    check_use_of_teachers(source, [recipe.training])
    _ = source.changes  # refuses a model that could not be saved
    folder = open_folder(run_dir, source, "train", recipe)
    cycles = cycles_of(recipe.training, recipe.snapshots, recipe.seed)
    forecast = Forecast([])
    if not (folder.path / "model").exists():
        forecast = Forecast(train_steps(source, cycles, measure_pace(source, recipe.training)), folder.path)
        forecast.announce(f"train {source.structure.model} on {source.data.name}")
    result = source.model
    for cycle in cycles:
        num_made = folder.num_made
        result = _trained(folder, source, recipe, cycle, result)
        if cycle is not cycles[-1]:
            forecast.finish_step(was_read=folder.num_made == num_made)
    evaluation: Evaluation = folder.once_json(
        "evaluation.json",
        lambda: evaluate(result, source.data).to_dict(),
        Evaluation.from_dict,
        on_all_processes=True,
        made_from=folder.digests_of("model"),
    )
    mean = _evaluate_snapshots(folder, source, cycles, result)
    forecast.finish_step()
    folder.delete_checkpoints()
    _say_result(folder, evaluation)
    warn_of_classes("validation", evaluation, source.data)
    _say_what_went_wrong(source, folder, evaluation)
    return result, report_training(folder, source, recipe, result, evaluation, mean)


def _trained(folder: RunFolder, source: Source, recipe: TrainRecipe, cycle: Cycle, start: nn.Module) -> nn.Module:
    """The model at the end of a cycle, trained or read.

    Args:
        start: the model at the end of the cycle before, or the model of the run.
    """
    provenance = {"trained_on": source.data.name, **about_teachers(source), "recipe": to_table(recipe)}
    made_from = folder.digests_of(f"{SNAPSHOTS}/{cycle.number - 1}")  # nothing for the first cycle

    def trained() -> nn.Module:
        if made_from:
            folder.begin_training(cycle.stage, made_from)
        teachers = Teachers(labels=source.teachers) if source.teachers else None
        options: dict[str, Any] = {"run_dir": folder.path, "stage": cycle.stage, "seed": cycle.seed}
        return train(start, source.data, cycle.settings, teacher=teachers, **options)

    write = partial(save_with, classes=source.data.classes, provenance=provenance)
    return folder.once(
        cycle.result, trained, write, load_on_own_device, on_all_processes=True, made_from=made_from or None
    )


def _evaluate_snapshots(
    folder: RunFolder, source: Source, cycles: Sequence[Cycle], last: nn.Module
) -> Evaluation | None:
    """Evaluate the mean of the softmax outputs of all snapshots; None if there is only one."""
    if len(cycles) == 1:
        return None

    def mean() -> dict[str, Any]:
        models = [load_on_own_device(folder.path / cycle.result) for cycle in cycles[:-1]]
        return evaluate_ensemble([*models, last], source.data, description="evaluating the snapshots").to_dict()

    found: Evaluation = folder.once_json(
        in_stages("evaluation-snapshots.json"),
        mean,
        Evaluation.from_dict,
        on_all_processes=True,
        made_from=folder.digests_of("model", f"{SNAPSHOTS}/*"),
    )
    return found


def _say_result(folder: RunFolder, found: Evaluation) -> None:
    """Log the accuracy of a trained model, and where the model is."""
    kept = KeptEpoch.read(folder.path, "train")
    chosen = f" of epoch {kept.best.epoch}, which was chosen on these {kept.num_images} images" if kept else ""
    interval = f"[{found.low:.2f}, {found.high:.2f}]"
    log(f"top-1 {found.top1:.2f} % {interval}{chosen}; model in {folder.path / 'model'}")


def _say_what_went_wrong(source: Source, folder: RunFolder, after: Evaluation) -> None:
    """Log what went wrong in a training that has ended. Note it, if the model is worse than before the training."""
    if folder.num_made:
        before = evaluate(source.model, source.data, description="evaluating the model before its training")
        if (sentence := worse_than_before(before, after, "training")) and is_main_process():
            add_note(folder.path, "train", "below start", sentence)
    wait_for_all()
    for note in notes_on_events(folder.path):
        log(f"warning: {note}")
