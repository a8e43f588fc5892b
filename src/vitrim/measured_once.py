"""What the sizes of one run have in common: the dense model is evaluated, scored and timed once."""

from dataclasses import dataclass, field, replace
from typing import Any

from vitrim.costs.device import DeviceTimes
from vitrim.depth import ROTATION, SCORES
from vitrim.evaluation import Evaluation, evaluate
from vitrim.importance.scores import Scores
from vitrim.planning import Planner
from vitrim.precision import computes_in_bf16
from vitrim.recipe import Recipe
from vitrim.reports.target import target_row
from vitrim.rotation import Rotation, RotationStatistics
from vitrim.runs.folder import RunFolder, in_stages
from vitrim.runs.progress import log
from vitrim.source import Source, narrows_heads
from vitrim.training.distillation import Teachers
from vitrim.training.target import evaluate_target


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """What was measured once for all sizes of a run.

    Attributes:
        dense: evaluation of the dense model.
        timings: what the budgets need to know about the device.
        scores: of the dense model.
        rotation: of the dense model's heads; None if heads keep their width.
        target: what the report says about the output that is learned, see `target_of`.
    """

    dense: Evaluation
    timings: DeviceTimes
    scores: Scores
    rotation: Rotation | None = None
    target: dict[str, Any] = field(default_factory=dict)


def device_times_of(source: Source, recipe: Recipe) -> DeviceTimes:
    """Measure what the budget of a recipe needs to know about the device."""
    in_bf16 = computes_in_bf16(source.device, recipe.width_training.precision)
    return DeviceTimes.measure(source.model, recipe.budget, recipe.latency, in_bf16=in_bf16)


def target_of(folder: RunFolder, source: Source, recipe: Recipe, dense: Evaluation) -> dict[str, Any]:
    """Evaluate what the students will learn, log it, and make the entry `target` of the report.

    Args:
        folder: of the run.
        source: the dense model, the data and the teachers.
        recipe: of the run.
        dense: evaluation of the dense model.

    Returns:
        Plain data; empty if the output of the dense model for the images themselves is learned, or nothing is.
    """
    trainings = [one for one in (recipe.width_training, recipe.depth_training) if one.epochs]
    flips = any(one.distillation.flip for one in trainings)
    if not trainings or not (source.teachers or flips):
        return {}
    settings = next((one for one in trainings if one.distillation.flip), trainings[0])
    teachers = Teachers(compared=source.model, labels=source.teachers)
    found: Evaluation = folder.once_json(
        in_stages("evaluation-target.json"),
        lambda: evaluate_target(source.model, source.data, teachers, settings).to_dict(),
        Evaluation.from_dict,
        on_all_processes=True,
    )
    settings = replace(settings, epochs=sum(one.epochs for one in trainings))
    row = target_row(dense, found, settings, num_teachers=len(source.teachers), seed=recipe.seed)
    log(f"{row['sentence']} {row['control']}")
    return row


def measure_once(folder: RunFolder, source: Source, recipe: Recipe, scores: Scores | None = None) -> Shared:
    """Evaluate, time and score the dense model for all sizes, or read what an interrupted run has measured.

    Args:
        folder: of the run.
        source: the dense model and the data.
        recipe: with the budget of the largest size.
        scores: of the dense model; measured by default.
    """
    evaluation: Evaluation = folder.once_json(
        in_stages("evaluation-dense.json"),
        lambda: evaluate(source.model, source.data).to_dict(),
        Evaluation.from_dict,
        on_all_processes=True,
    )
    target = target_of(folder, source, recipe, evaluation)
    timings: DeviceTimes = folder.once_json(
        in_stages("device.json"), lambda: device_times_of(source, recipe).to_dict(), DeviceTimes.from_dict
    )
    planner, statistics = Planner(source=source, recipe=recipe, timings=timings), RotationStatistics()
    found = folder.once(SCORES, lambda: scores or planner.score_start(statistics), Scores.save, Scores.load)
    rotation = None
    if narrows_heads(source.structure, recipe):
        rotation = folder.once(ROTATION, lambda: planner.measure_rotation(statistics), Rotation.save, Rotation.load)
    return Shared(dense=evaluation, timings=timings, scores=found, rotation=rotation, target=target)
