"""From scores to a plan: narrowing in steps, room for blocks that go later, budgets in milliseconds met as measured.

Nothing is trained here, and nothing decided that the recipe does not ask for.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from vitrim.allocation import allocate
from vitrim.costs.budget import Budget, check_reachable
from vitrim.costs.counting import Cost, PartCosts, count_cost
from vitrim.costs.device import DeviceTimes, settings_for_a_check
from vitrim.costs.latency import check_runtime, measure_latencies
from vitrim.data.matching import Calibration
from vitrim.errors import BudgetError, SettingError
from vitrim.importance.criteria import Scores, rank_blocks_for_removal, score
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.recipe import Recipe
from vitrim.recovery.recover import recover
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

MAX_ATTEMPTS = 5
SLOWER, FASTER = 0.01, 0.02  # what a cut model's time may differ from what its plan promises, as measured at once

Choose = Callable[[ViTStructure, Scores, Budget, PartCosts | None], PruningPlan]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan and the milliseconds that the model promises which it leaves; 0 where none were asked for."""

    plan: PruningPlan
    predicted_ms: float = 0.0


class Planner:
    """Makes plans for one dense model, with the budget of a recipe."""

    def __init__(self, dense: nn.Module, recipe: Recipe, calibration: Calibration, device: DeviceTimes) -> None:
        self.dense, self.recipe, self.calibration, self.device = dense, recipe, calibration, device
        self.structure = describe(dense)
        self.whole = count_cost(self.structure)
        self.budget = replace(recipe.budget, multiple_of=device.multiple_of)
        self.times = device.times(self.structure)

    def score(self, model: nn.Module) -> Scores:
        settings = self.recipe.importance
        found = score(model, self.calibration, settings.criterion, seed=self.recipe.seed)
        return replace(found, weights=fingerprint(model))

    def width(self, scores: Scores, num_blocks: int) -> Proposal:
        """Narrow the dense model so that `num_blocks` blocks can go afterwards."""

        def choose(structure: ViTStructure, found: Scores, budget: Budget, times: PartCosts | None) -> PruningPlan:
            dense_ms = self.device.dense_ms
            return width_plan(structure, found, budget, num_blocks, whole=self.whole, times=times, dense_ms=dense_ms)

        return self._iterative(scores, choose)

    def one_shot(self, scores: Scores, gone: tuple[int, ...]) -> Proposal:
        """Remove these blocks and narrow the others to the budget; nothing is trained between."""

        def choose(structure: ViTStructure, found: Scores, budget: Budget, times: PartCosts | None) -> PruningPlan:
            blocks = gone if len(structure.blocks) == len(self.structure.blocks) else ()  # they go at the first step
            return allocate(structure, found, budget, whole=self.whole, remove_blocks=blocks, times=times)

        return self._iterative(scores, choose)

    def depth(self, student: nn.Module, before: PruningPlan, num_blocks: int) -> Proposal:
        """Remove the least missed blocks of the student, which `before` cut, and narrow the others to the budget.

        The plan counts in the student.
        """
        gone = tuple(rank_blocks_for_removal(student, self.calibration, num_blocks))
        structure = describe(student)
        log(f"depth: removing blocks {sorted(gone)} of {len(structure.blocks)}")
        scores = self.score(student)

        def choose(times: PartCosts | None) -> PruningPlan:
            return allocate(structure, scores, self.budget, whole=self.whole, remove_blocks=gone, times=times)

        return self._corrected_by_measurement(before, choose)

    def check(self) -> None:
        """Raise `BudgetError` if no model with as few blocks as the recipe allows is fast enough."""
        self.check_without(_last_blocks(self.structure, self.recipe))

    def check_without(self, gone: tuple[int, ...]) -> None:
        """Raise `BudgetError` if no plan without these blocks fits the budget."""
        check_reachable(self.structure, self.budget, remove_blocks=gone, times=self.times)

    def _iterative(self, scores: Scores, choose: Choose) -> Proposal:
        """Narrow the model in steps down to the budget, scoring anew what each leaves; nothing is trained between.

        The budgets of the steps shrink by equal factors. What a step leaves is recovered first, if the recipe recovers.

        Args:
            scores: of the dense model. choose: gives the plan of one step, counted in what the steps before have left.
        """
        steps, budget = self.recipe.importance.steps, self.budget
        plan, student = PruningPlan.full(self.structure), self.dense
        for step in range(1, steps):
            wanted = budget.on_the_way(step / steps, self.device.dense_ms)
            plan = plan.then(choose(describe(student), scores, wanted, self._times_after(plan)))
            if plan.keeps_all(self.structure):
                continue
            log(f"narrowing: step {step} of {steps}")
            student = prune(self.dense, plan)
            if self.recipe.recovery.enabled:
                student = recover(student, self.dense, plan, self.calibration, ridge=self.recipe.recovery.ridge)
            scores = self.score(student)
        last, found = describe(student), scores
        proposal = self._corrected_by_measurement(plan, lambda times: choose(last, found, budget, times))
        return replace(proposal, plan=plan.then(proposal.plan))

    def _corrected_by_measurement(
        self, before: PruningPlan, choose: Callable[[PartCosts | None], PruningPlan]
    ) -> Proposal:
        """The plan that `choose` makes of what `before` left; made anew until it takes the time that it promises.

        A model is cut by it and timed in turns with the dense one. Where the table was wrong, all its times are
        corrected by one factor. If that does not settle, since odd widths are slow, say, the plan nearest to its
        promise is taken of those that are within the budget.
        """
        if self.times is None:
            return Proposal(plan=choose(None))
        tried: list[_Attempt] = []
        while len(tried) < MAX_ATTEMPTS:
            factor = _next_factor(tried)
            times = self.times.scaled(factor)
            try:
                step = choose(times.after(before))
            except BudgetError:
                if all(attempt.over for attempt in tried):
                    raise
                break  # the correction went too far
            promised, found = times.total(before.then(step)), self._measured_ms(before.then(step))
            log(f"latency: promised {promised:.4g} ms, the cut model takes {found:.4g} ms")
            over = found > (1 + SLOWER) * max(self.budget.latency_ms, promised)
            proposal = Proposal(plan=step, predicted_ms=promised)
            tried.append(_Attempt(over, abs(math.log(found / promised)), factor, found / promised, proposal))
            if -FASTER <= found / promised - 1 <= SLOWER:
                break
        return min(tried, key=lambda attempt: attempt[:2]).proposal

    def _times_after(self, plan: PruningPlan) -> PartCosts | None:
        return self.times.after(plan) if self.times else None

    def _measured_ms(self, plan: PruningPlan) -> float:
        """Of a model cut so, at the pace at which the dense one was timed."""
        settings = settings_for_a_check(self.recipe.latency, self.device.dense_ms)
        return self.device.dense_ms * measure_latencies([self.dense, prune(self.dense, plan)], settings)[1].ratio


class _Attempt(NamedTuple):
    """A plan that was made with all times longer by `factor`, and how much longer yet its model took: `slower`."""

    over: bool
    distance: float
    factor: float
    slower: float
    proposal: Proposal


def _next_factor(tried: Sequence[_Attempt]) -> float:
    """By which factor to correct a table's times next: where the line through the two nearest attempts meets 1.

    The line is one of logarithms. How steep it is, is bounded, as both points are noisy.
    """
    if not tried:
        return 1.0
    near = sorted(tried, key=lambda attempt: attempt.distance)[:2]
    steepness = 1.0
    if len(near) == 2 and near[0].factor != near[1].factor:
        steepness = -math.log(near[0].slower / near[1].slower) / math.log(near[0].factor / near[1].factor)
    return near[0].factor * near[0].slower ** (1 / min(max(steepness, 0.5), 2.0))


def width_plan(
    structure: ViTStructure,
    scores: Scores,
    budget: Budget,
    num_blocks: int,
    *,
    whole: Cost | None = None,
    times: PartCosts | None = None,
    dense_ms: float = 0.0,
) -> PruningPlan:
    """The plan of the width stage: as little wider than the budget as lets `num_blocks` blocks go and still reach it.

    Which blocks will go is not known yet, so the room left is that of the largest ones; the depth stage trims what is
    then too much.

    Args:
        whole: the cost of which the budget is a share, by default that of `structure`.
        times: of the parts of `structure`, for a budget in milliseconds. dense_ms: of the dense model.
    """
    whole = whole or count_cost(structure)
    if num_blocks == 0:
        return allocate(structure, scores, budget, whole=whole, times=times)
    limits = budget.limits(structure, whole, times)

    def plan_at(extra: float) -> PruningPlan:
        return allocate(structure, scores, budget.widened(extra, dense_ms), whole=whole, times=times)

    def reaches(extra: float) -> bool:
        try:
            plan = plan_at(extra)
        except BudgetError:
            return False  # so small only without the blocks that are removed later
        return any(
            without_largest_blocks(structure, plan, num_blocks, limit.costs) >= limit.maximum for limit in limits
        )

    low, high = 0.0, 1.0
    if not reaches(high):
        return plan_at(high)  # the blocks alone are more than the budget asks for
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return plan_at(high)


def check_budget(structure: ViTStructure, recipe: Recipe) -> None:
    """Refuse what no plan can reach before anything is computed.

    Raises:
        SettingError: more blocks are to go than there are, or what is to be timed cannot run here.
        BudgetError: the smallest model is above the budget.
    """
    check_runtime(recipe.latency)
    depth, blocks = len(structure.blocks), recipe.depth.blocks
    if isinstance(blocks, int) and blocks >= depth:
        raise SettingError(f"{blocks} blocks are to be removed, but the model has {depth}; at least one must stay.")
    reasons = [block.not_prunable for block in structure.blocks if block.not_prunable]
    if isinstance(blocks, int) and blocks > depth - len(reasons):
        raise SettingError(
            f"{blocks} blocks are to be removed, but only {depth - len(reasons)} of {depth} can be: {reasons[0]}."
        )
    multiple = 1 if recipe.budget.multiple_of == "auto" else recipe.budget.multiple_of  # the smallest it can be
    check_reachable(
        structure,
        replace(recipe.budget, multiple_of=multiple, latency_ms=0.0),  # nothing has been timed yet
        remove_blocks=_last_blocks(structure, recipe),
    )


def most_blocks(structure: ViTStructure, recipe: Recipe) -> int:
    """How many blocks `auto` may remove."""
    removable = sum(not block.not_prunable for block in structure.blocks)
    return min(int(recipe.depth.max_share * len(structure.blocks)), removable, len(structure.blocks) - 1)


def _last_blocks(structure: ViTStructure, recipe: Recipe) -> tuple[int, ...]:
    """As many blocks as the recipe may remove, from the end."""
    blocks = recipe.depth.blocks
    most = blocks if isinstance(blocks, int) else most_blocks(structure, recipe)
    removable = [index for index, block in enumerate(structure.blocks) if not block.not_prunable]
    return tuple(removable[len(removable) - most :])


def without_largest_blocks(structure: ViTStructure, plan: PruningPlan, count: int, costs: PartCosts) -> float:
    """The cost of what `plan` leaves, without its `count` most expensive blocks that can be removed."""
    removable = [kept for kept in plan.blocks if not structure.blocks[kept.block].not_prunable]
    return costs.total(plan) - sum(sorted(costs.of_block(kept) for kept in removable)[-count:])
