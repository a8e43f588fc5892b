"""What the sizes of one run have in common: the dense model is evaluated, scored and timed once."""

from dataclasses import dataclass

from vitrim.costs.device import DeviceTimes
from vitrim.depth import ROTATION, SCORES
from vitrim.evaluation import Evaluation, evaluate
from vitrim.importance.scores import Scores
from vitrim.planning import Planner
from vitrim.precision import computes_in_bf16
from vitrim.recipe import Recipe
from vitrim.rotation import Rotation, RotationStatistics
from vitrim.runs.folder import RunFolder, in_stages
from vitrim.source import Source, narrows_heads


@dataclass(frozen=True, kw_only=True, eq=False)
class Shared:
    """What was measured once for all sizes of a run.

    Attributes:
        dense: evaluation of the dense model.
        timings: what the budgets need to know about the device.
        scores: of the dense model.
        rotation: of the dense model's heads; None if heads keep their width.
    """

    dense: Evaluation
    timings: DeviceTimes
    scores: Scores
    rotation: Rotation | None = None


def device_times_of(source: Source, recipe: Recipe) -> DeviceTimes:
    """Measure what the budget of a recipe needs to know about the device."""
    in_bf16 = computes_in_bf16(source.device, recipe.width_training.precision)
    return DeviceTimes.measure(source.model, recipe.budget, recipe.latency, in_bf16=in_bf16)


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
    timings: DeviceTimes = folder.once_json(
        in_stages("device.json"), lambda: device_times_of(source, recipe).to_dict(), DeviceTimes.from_dict
    )
    planner, statistics = Planner(source=source, recipe=recipe, timings=timings), RotationStatistics()
    found = folder.once(SCORES, lambda: scores or planner.score_start(statistics), Scores.save, Scores.load)
    rotation = None
    if narrows_heads(source.structure, recipe):
        rotation = folder.once(ROTATION, lambda: planner.measure_rotation(statistics), Rotation.save, Rotation.load)
    return Shared(dense=evaluation, timings=timings, scores=found, rotation=rotation)
