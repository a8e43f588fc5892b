"""The smallest model whose accuracy is within a drop: bisection over sizes with short distillations, then a full one.

A size is within the drop if the lower end of the 95 % interval of its paired difference from the dense model is. The
short distillations choose a size, and the model of this size that is distilled in full must be within the drop, too.
So the images are looked at several times. A simulation in `tests/sizes/test_max_drop.py` shows how often a model is
returned whose true drop is larger: in less than 5 % of runs, also if all sizes are just outside the drop.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

from vitrim.compress_run import Compressed, load_on_own_device, stored_result
from vitrim.costs.budget import Budget
from vitrim.costs.sizes import SearchSettings, folder_name, with_keep
from vitrim.errors import BudgetError, SettingError, counted
from vitrim.importance.scores import Scores
from vitrim.measured_once import Shared, measure_once
from vitrim.paired_bound import CONFIDENCE, fewest_images, images_needed, lower_end
from vitrim.recipe import Recipe, to_table
from vitrim.reports import report as reports
from vitrim.reports.details import total_seconds
from vitrim.reports.writing import write_pages_of_sizes
from vitrim.runs.digests import digest_of_data, write_text_noted
from vitrim.runs.files import STAGES
from vitrim.runs.folder import RunFolder, in_stages
from vitrim.runs.processes import is_main_process, wait_for_all
from vitrim.runs.progress import log
from vitrim.sizes.several import CompressOnce
from vitrim.source import Source

TRIES = "tries"  # subfolder of a run, for the models of short distillations
LARGER_BY = 2  # how many sizes larger the second model is that is distilled in full


@dataclass(frozen=True, kw_only=True)
class Try:
    """One model that was compared with the dense model.

    Attributes:
        name: its size, such as `60 %`.
        kind: of its distillation: `short` or `full`.
        fraction: of the dense model's cost, or milliseconds, that its budget allows.
        passes: whether its accuracy is within the drop, with 95 % confidence.
        difference: its top-1 minus that of the dense model, in points; None if no model can be so small.
        low: lower end of the 95 % interval of `difference`.
        gained: number of images that only this model classifies rightly.
        lost: number of images that only the dense model classifies rightly.
        latency_ratio: its latency as a fraction of the dense model's.
    """

    name: str
    kind: str
    fraction: float
    passes: bool
    difference: float | None = None
    low: float | None = None
    gained: int = 0
    lost: int = 0
    latency_ratio: float | None = None


def check_images(max_drop: float, num_images: int) -> None:
    """Refuse a drop that so few images cannot show.

    Raises:
        SettingError: the interval is wider than the drop even for two models that agree on every image.
    """
    if lower_end(0, 0, num_images) >= -max_drop:
        return
    raise SettingError(
        f"search.max_drop is {max_drop:g} points, but {counted(num_images, 'validation image')} cannot show that the "
        f"accuracy drops by less than {-lower_end(0, 0, num_images):.2f} points, even if both models agree on every "
        f"image. Use at least {fewest_images(max_drop):,} validation images, or a larger drop."
    )


def find_smallest(
    folder: RunFolder, source: Source, recipe: Recipe, compress_once: CompressOnce, *, scores: Scores | None = None
) -> Compressed:
    """Find the smallest model within the drop of a recipe.

    Args:
        folder: of the run. The model is in its subfolder `model`.
        source: the dense model and the data.
        recipe: with `search.max_drop`.
        compress_once: makes one model.
        scores: of the dense model; measured by default.

    Raises:
        BudgetError: no size could be shown to be within the drop; says how many images would do.
    """
    if (result := _finished(folder, recipe)) is not None:
        return result
    settings = recipe.search
    first = with_keep(recipe.budget, settings.largest)
    if settings.objective == "latency":
        first = replace(first, params=1.0, macs=1.0, latency_ms=recipe.budget.latency_ms or 1.0)
    shared = measure_once(folder, source, replace(recipe, budget=first), scores)
    budgets = _sizes(folder, recipe, shared)
    search = Search(folder, source, recipe, compress_once, shared)
    log(
        f"max drop of {settings.max_drop:g} points: {counted(len(budgets), 'size')} from {budgets[0][1].label} to "
        f"{budgets[-1][1].label}, judged on {counted(len(source.data.validation), 'validation image')}"
    )
    chosen = bisect(len(budgets), lambda index: search.short(*budgets[index]).passes)
    found = search.in_full(budgets, chosen) if chosen is not None else None
    if found is None:
        raise BudgetError(search.failure(budgets))
    return search.finish(found, budgets)


def _finished(folder: RunFolder, recipe: Recipe) -> Compressed | None:
    """The result of this search, if it has ended before. It needs no file of a stage."""
    found = stored_result(folder)
    if found is None or found.report.get("recipe", {}).get("search") != to_table(recipe.search):
        return None
    place = folder.path / str(found.report.get("search", {}).get("folder", ""))
    write_pages_of_sizes(folder.path, found.report, {row_of(found)["name"]: place})
    return found


def _sizes(folder: RunFolder, recipe: Recipe, shared: Shared) -> list[tuple[float, Budget]]:
    """The sizes that are compared. Those in milliseconds are noted: the dense model may be timed again."""
    if recipe.search.objective == "keep":
        return sizes_to_compare(recipe, 0.0)
    settings = recipe.search
    made_from = {"largest": settings.largest, "smallest": settings.smallest, "step": settings.step}
    found: list[tuple[float, float]] = folder.once_json(
        in_stages("search-sizes.json"),
        lambda: [(one, budget.latency_ms) for one, budget in sizes_to_compare(recipe, shared.timings.dense_ms)],
        lambda rows: [(float(fraction), float(milliseconds)) for fraction, milliseconds in rows],
        made_from=made_from,
    )
    only = replace(recipe.budget, params=1.0, macs=1.0)
    return [(fraction, replace(only, latency_ms=milliseconds)) for fraction, milliseconds in found]


def sizes_to_compare(recipe: Recipe, dense_ms: float) -> list[tuple[float, Budget]]:
    """The sizes of a search, the largest first, each with its fraction of the dense model.

    Args:
        recipe: with `search.max_drop`.
        dense_ms: milliseconds of the dense model; not used without the objective `latency`.
    """
    settings, budget = recipe.search, recipe.budget
    if settings.objective == "keep":
        return [(fraction, with_keep(budget, fraction)) for fraction in settings.fractions()]
    limit = budget.latency_ms
    fractions = settings.fractions()
    if limit and limit < fractions[0] * dense_ms:
        fractions = [limit / dense_ms, *(fraction for fraction in fractions if fraction * dense_ms < limit)]
    only = replace(budget, params=1.0, macs=1.0)
    times = [limit if fraction * dense_ms == limit else _rounded_down(fraction * dense_ms) for fraction in fractions]
    return [(fraction, replace(only, latency_ms=time)) for fraction, time in zip(fractions, times, strict=True)]


def _rounded_down(milliseconds: float) -> float:
    """The largest number of three digits that is not above another one."""
    unit = 10.0 ** (math.floor(math.log10(milliseconds)) - 2)
    return float(f"{math.floor(milliseconds / unit) * unit:.3g}")


def bisect(num_sizes: int, passes: Callable[[int], bool]) -> int | None:
    """The index of the smallest size that passes; None if none does.

    Args:
        num_sizes: number of sizes, the largest first.
        passes: judges a size by its index. A size passes if a smaller one does.
    """
    low, high, best = 0, num_sizes - 1, None
    while low <= high:
        middle = (low + high) // 2
        if passes(middle):
            best, low = middle, middle + 1
        else:
            high = middle - 1
    return best


def candidates(chosen: int) -> list[int]:
    """The indices of the sizes that are distilled in full, one after the other, until one is within the drop."""
    return list(dict.fromkeys((chosen, max(0, chosen - LARGER_BY))))


def row_of(result: Compressed) -> dict[str, Any]:
    """The numbers of a compressed model in its report."""
    row: dict[str, Any] = result.report["models"][-1]
    return row


class Search:
    """The models that one run has tried.

    Attributes:
        tries: in their order.
    """

    def __init__(
        self, folder: RunFolder, source: Source, recipe: Recipe, compress_once: CompressOnce, shared: Shared
    ) -> None:
        self.folder, self.source, self.recipe = folder, source, recipe
        self.compress_once, self.shared = compress_once, shared
        self.tries: list[Try] = []
        self.places: list[Path] = []  # folders of their runs

    def in_full(self, budgets: Sequence[tuple[float, Budget]], chosen: int) -> Compressed | None:
        """Distil the model of this size in full, and that of a larger size if it is not within the drop."""
        for index in candidates(chosen):
            result = self._full(*budgets[index])
            if self.tries[-1].passes:
                return result
        return None

    def short(self, fraction: float, budget: Budget) -> Try:
        """Make a model of this size with a short distillation."""
        place = self.folder.path / TRIES / self._name(budget)
        self.places.append(place)
        made = partial(self.compress_once, self.source, self._short_recipe(budget), place, shared=self.shared)
        found = self.judge("short", fraction, budget, made)[0]
        if is_main_process() and (place / "report.json").exists():
            rmtree(place / STAGES, ignore_errors=True)  # they would continue a run that is finished
        wait_for_all()
        return found

    def _full(self, fraction: float, budget: Budget) -> Compressed | None:
        recipe = replace(self.recipe, budget=budget, search=SearchSettings())
        place = self.folder.path / self._name(budget)
        self.places.append(place)
        made = partial(self.compress_once, self.source, recipe, place, shared=self.shared)
        return self.judge("full", fraction, budget, made)[1]

    def judge(
        self, kind: str, fraction: float, budget: Budget, make: Callable[[], Compressed]
    ) -> tuple[Try, Compressed | None]:
        """Make a model, and compare it with the dense one."""
        log(f"max drop: {budget.label}, {kind} distillation")
        try:
            result = make()
        except BudgetError as problem:
            log(f"max drop: {budget.label} is not possible: {problem}")
            found = Try(name=budget.label, kind=kind, fraction=fraction, passes=False)
            self.tries.append(found)
            return found, None
        row = row_of(result)
        gained, lost = row["difference_gained"], row["difference_lost"]
        low = lower_end(gained, lost, row["difference_num_images"])
        found = Try(
            name=budget.label,
            kind=kind,
            fraction=fraction,
            passes=low >= -self.recipe.search.max_drop,
            difference=row["difference"],
            low=low,
            gained=gained,
            lost=lost,
            latency_ratio=row["latency_ratio"],
        )
        log(
            f"max drop: {budget.label}, {kind} distillation: top-1 differs by {row['difference']:+.2f} points, at "
            f"least {low:+.2f}; {'within' if found.passes else 'not within'} the drop"
        )
        self.tries.append(found)
        return found, result

    def _short_recipe(self, budget: Budget) -> Recipe:
        """The recipe of a try: fewer epochs, and no search for the number of blocks."""
        recipe, fraction = self.recipe, self.recipe.search.short_epochs
        blocks = recipe.depth.blocks if isinstance(recipe.depth.blocks, int) else 0
        return replace(
            recipe,
            budget=budget,
            search=SearchSettings(),
            depth=replace(recipe.depth, blocks=blocks),
            width_training=recipe.width_training.shortened(fraction),
            depth_training=recipe.depth_training.shortened(fraction),
        )

    def _name(self, budget: Budget) -> str:
        return folder_name(budget, in_ms=self.recipe.search.objective == "latency")

    def failure(self, budgets: Sequence[tuple[float, Budget]]) -> str:
        """Say that no size is within the drop, and how many images would do."""
        drop, num = self.recipe.search.max_drop, len(self.source.data.validation)
        text = f"No size from {_range(budgets)} could be shown to lose at most {_points(drop)}."
        self._note(text)
        failed = [one for one in self.tries if not one.passes and one.difference is not None]
        if not failed:
            more = "a larger limit in milliseconds" if self.recipe.search.objective == "latency" else "larger sizes"
            return f"{text} The sizes that were tried cannot be made. Allow {more}."
        largest = max(failed, key=lambda one: (one.kind == "full", one.fraction))
        said = (
            f" {largest.name} differs by {largest.difference:+.2f} points after a {largest.kind} distillation, at "
            f"least {largest.low:+.2f}."
        )
        count = _needed(largest, num, drop)
        if count is None or count <= num:
            return f"{text}{said} Allow a larger drop, or more epochs."
        return f"{text}{said} About {count:,} validation images would do; there are {num:,}."

    def finish(self, result: Compressed, budgets: Sequence[tuple[float, Budget]]) -> Compressed:
        """Copy the model into the folder of the run, and report what was tried."""
        name = self._name(dict(budgets)[self.tries[-1].fraction])
        made_from = {name: digest_of_data(result.report)}
        place = self.folder.path / name / "model"
        model = self.folder.once(
            "model",
            lambda: result.model,
            lambda _, path: copytree(place, path, dirs_exist_ok=True),
            load_on_own_device,
            made_from=made_from,
        )
        plan = self.folder.once_plan("plan.json", lambda: result.plan, made_from=made_from)
        search = self._note(self._success(budgets), name)
        report: dict[str, Any] = self.folder.once_json(
            "report.json",
            lambda: {
                **result.report,
                "search": search,
                "recipe": to_table(self.recipe),
                "seconds": total_seconds(self.folder.path, self.places),
            },
            reports.parse,
            made_from={**made_from, "search": search},
        )
        write_pages_of_sizes(self.folder.path, report, {report["models"][-1]["name"]: self.folder.path / name})
        log(search["sentence"])
        return Compressed(model=model, plan=plan, report=report)

    def _success(self, budgets: Sequence[tuple[float, Budget]]) -> str:
        found, drop = self.tries[-1], self.recipe.search.max_drop
        num = counted(len(self.source.data.validation), "validation image")
        made = [one for one in self.tries if one.difference is not None]
        shorts = [one for one in made if one.kind == "short"]
        num_impossible = len(self.tries) - len(made)
        impossible = f"; {counted(num_impossible, 'size')} cannot be made" if num_impossible else ""
        sentences = [
            f"{found.name} is the smallest size from {_range(budgets)} that was shown to lose at most {_points(drop)}, "
            f"with 95 % confidence: on {num} the difference is {found.difference:+.2f} points, at least "
            f"{found.low:+.2f}. {counted(len(shorts), 'size')} had a short distillation, and "
            f"{counted(len(made) - len(shorts), 'size')} a full one"
            f"{impossible}."
        ]
        failed = [one for one in made if not one.passes and one.fraction < found.fraction]
        near = max(failed, key=lambda one: (one.fraction, one.kind == "full"), default=None)
        count = _needed(near, len(self.source.data.validation), drop) if near else None
        if near and count and count > len(self.source.data.validation):
            sentences.append(
                f"{near.name} differs by {near.difference:+.2f} points after a {near.kind} distillation, which these "
                f"images cannot tell from a loss of more than {_points(drop)}. About {count:,} images could."
            )
        return " ".join(sentences)

    def _note(self, sentence: str, folder: str = "") -> dict[str, Any]:
        """The entry `search` of the report; it is also written to `search.json`.

        Args:
            sentence: the result in words.
            folder: of the model that was found; empty if none was.
        """
        settings = self.recipe.search
        found = {
            "max_drop": settings.max_drop,
            "objective": settings.objective,
            "confidence": CONFIDENCE,
            "num_looks": sum(one.difference is not None for one in self.tries),
            "num_images": len(self.source.data.validation),
            "found": self.tries[-1].name if folder else None,
            "folder": folder or None,
            "sentence": sentence,
            "tries": [asdict(one) for one in self.tries],
        }
        if is_main_process():
            write_text_noted(self.folder.path / "search.json", json.dumps(found, indent=2) + "\n")
        return found


def _needed(one: Try, num_images: int, max_drop: float) -> int | None:
    """About how many images would show that a model is within the drop; None if none would."""
    return images_needed(one.gained, one.lost, num_images, max_drop)


def _range(budgets: Sequence[tuple[float, Budget]]) -> str:
    return f"{budgets[0][1].label} down to {budgets[-1][1].label}"


def _points(drop: float) -> str:
    return f"{drop:g} point{'' if drop == 1 else 's'}"
