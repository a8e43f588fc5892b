"""Several sizes from one run: each smaller model starts from the larger one, which is distilled already.

Every size has a run folder of its own below that of the run. How one size is made is in `pipeline`. The dense model is
evaluated, scored and timed once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from vitrim.compress_run import Compressed
from vitrim.costs.budget import Budget
from vitrim.costs.latency import busy_note, measure_latencies
from vitrim.costs.sizes import SearchSettings, SizeSettings, folder_name
from vitrim.forecast import Forecast, Step, compress_steps
from vitrim.importance.scores import Scores
from vitrim.measured_once import Shared, measure_once
from vitrim.pace import measure_pace
from vitrim.planning import Planner
from vitrim.recipe import Recipe
from vitrim.reports import joined
from vitrim.reports import report as reports
from vitrim.reports.details import total_seconds
from vitrim.reports.writing import write_pages_of_sizes
from vitrim.runs.digests import digest_of_data
from vitrim.runs.folder import RunFolder
from vitrim.runs.progress import log
from vitrim.source import Source, max_removed_blocks


class CompressOnce(Protocol):
    """Compresses a model to one budget, in a run folder of its own; see `vitrim.pipeline.compress_once`."""

    def __call__(
        self, source: Source, recipe: Recipe, run_dir: str | Path, *, shared: Shared | None = None
    ) -> Compressed:
        """Compress to the budget of the recipe."""
        ...


def compress_to_sizes(
    folder: RunFolder,
    source: Source,
    recipe: Recipe,
    compress_once: CompressOnce,
    *,
    scores: Scores | None = None,
    title: str = "",
) -> Compressed:
    """Compress a model to all sizes of a recipe, from the largest to the smallest, and report them together.

    Args:
        folder: of the run. Each size has a folder in it, such as `keep-0.7`.
        source: the dense model and the data.
        recipe: with `sizes`.
        compress_once: makes one size.
        scores: of the dense model; measured by default.
        title: of the report; by default the names of the model, the data and the sizes.

    Returns:
        The smallest model and its plan, the report of all models, and all results in `sizes`.
    """
    budgets = recipe.sizes.budgets(recipe.budget)
    in_ms = bool(recipe.sizes.latencies_ms)
    names = [folder_name(budget, in_ms=in_ms) for budget in budgets]
    is_done = folder.stored("report.json", reports.read) is not None
    shared = None if is_done else _measure(folder, source, recipe, budgets, scores)
    forecast = Forecast([] if is_done else _steps(source, recipe, budgets, names), folder.path)
    if not is_done:
        forecast.announce(f"compress {source.structure.model} to {', '.join(budget.label for budget in budgets)}")
    results: list[Compressed] = []
    for index, (budget, name) in enumerate(zip(budgets, names, strict=True)):
        before = results[-1] if results else None
        start = source.starting_from(before.model, before.plan) if before else source
        one = recipe_of_size(recipe, budget, start, steps=num_steps(recipe, index))
        was_read = (folder.path / name / "report.json").exists()
        if not was_read:
            log(f"size {index + 1} of {len(budgets)}: {budget.label}, in {folder.path / name}")
        found = compress_once(start, one, folder.path / name, shared=shared)
        results.append(found)
        forecast.finish_step(was_read=was_read)
    report = _joined_report(folder, source, recipe, dict(zip(names, results, strict=True)), title)
    smallest = results[-1]
    return Compressed(model=smallest.model, plan=smallest.plan, report=report, sizes=tuple(results))


def recipe_of_size(recipe: Recipe, budget: Budget, start: Source, *, steps: int) -> Recipe:
    """The recipe of one size.

    Args:
        recipe: of the run.
        budget: of this size.
        start: has the larger model that is cut; the dense model for the largest size.
        steps: in which heads and neurons are chosen.
    """
    one = replace(
        recipe,
        budget=budget,
        importance=replace(recipe.importance, steps=steps),
        sizes=SizeSettings(),
        search=SearchSettings(),
    )
    if not start.larger:
        return one
    num_blocks = len(start.start.structure.blocks)
    num_removed = len(start.structure.blocks) - num_blocks
    num_left = max(0, max_removed_blocks(start.structure, recipe) - num_removed)
    if isinstance(recipe.depth.blocks, int):
        depth = replace(recipe.depth, blocks=num_left)
    else:
        depth = replace(recipe.depth, max_share=min(num_left, num_blocks - 1) / num_blocks + 1e-9)
    return replace(one, depth=depth, **_later_trainings(recipe))


def _later_trainings(recipe: Recipe) -> dict[str, Any]:
    """The trainings of a recipe for the sizes after the largest one."""
    return {
        name: getattr(recipe, name).shortened(recipe.sizes.later_epochs)
        for name in ("width_training", "depth_training")
    }


def _measure(
    folder: RunFolder, source: Source, recipe: Recipe, budgets: Sequence[Budget], scores: Scores | None
) -> Shared:
    """Measure what all sizes have in common. Raises BudgetError if one of the sizes is not possible."""
    shared = measure_once(folder, source, replace(recipe, budget=budgets[0]), scores)
    for budget in budgets:
        Planner(source=source, recipe=replace(recipe, budget=budget), timings=shared.timings).check()
    return shared


def num_steps(recipe: Recipe, index: int) -> int:
    """In how many steps the units of a size are chosen. All steps are of about one factor.

    The sizes together have about as many steps as the recipe says for the smallest size alone. How many milliseconds
    the dense model needs is not known exactly, so with milliseconds the largest size has as many as the recipe says,
    and so have the others together.
    """
    settings, most = recipe.sizes, recipe.importance.steps
    amounts = sorted(settings.latencies_ms or settings.keeps, reverse=True)
    if settings.latencies_ms and index == 0:
        return most
    before = [1.0, *amounts] if settings.keeps else [amounts[0], *amounts]
    whole, part = math.log(before[0] / amounts[-1]), math.log(before[index] / amounts[index])
    return max(1, math.ceil(most * part / whole - 1e-9)) if whole else 1


def _steps(source: Source, recipe: Recipe, budgets: Sequence[Budget], names: Sequence[str]) -> list[Step]:
    """One step for each size, with its time on this machine."""
    pace = measure_pace(source, recipe.width_training)
    steps = []
    for index, (budget, name) in enumerate(zip(budgets, names, strict=True)):
        later = _later_trainings(recipe) if index else {}
        one = replace(recipe, budget=budget, sizes=SizeSettings(), **later)
        seconds = sum(step.seconds for step in compress_steps(source, one, pace))
        steps.append(Step(text=budget.label, seconds=seconds, result=f"{name}/report.json"))
    return steps


def _joined_report(
    folder: RunFolder, source: Source, recipe: Recipe, results: Mapping[str, Compressed], title: str
) -> dict[str, Any]:
    """The report of all sizes. Their latencies are measured in the same rounds, so they can be compared.

    Args:
        results: by the name of the folder of a size.
    """
    found = [result.report for result in results.values()]

    def make() -> dict[str, Any]:
        busy = busy_note()
        latencies = measure_latencies([source.model, *(one.model for one in results.values())], recipe.latency)
        labels = ", ".join(report["models"][-1]["name"] for report in found)
        default = f"{reports.model_title(source)} on {source.data.name}: {labels}"
        report = joined.join(found, latencies, recipe=recipe, title=title or default, busy=busy)
        return {**report, "seconds": total_seconds(folder.path, [folder.path / name for name in results])}

    made_from = {name: digest_of_data(result.report) for name, result in results.items()}
    report: dict[str, Any] = folder.once_json("report.json", make, reports.parse, made_from=made_from)
    runs = {result.report["models"][-1]["name"]: folder.path / name for name, result in results.items()}
    write_pages_of_sizes(folder.path, report, runs)
    return report
