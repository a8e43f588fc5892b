"""From scores to plans for the width and the depth stage: iterative pruning, corrected by measured latency.

Nothing is trained here. How many blocks are removed is decided in `depth`.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import nn

from vitrim.allocation import allocate
from vitrim.costs.budget import Budget, check_reachable
from vitrim.costs.counting import Cost, PartCosts, count_cost
from vitrim.costs.device import DeviceTimes, settings_for_comparison
from vitrim.costs.latency import difference_text, measure_latencies
from vitrim.data.matching import Calibration
from vitrim.errors import BudgetError, counted
from vitrim.importance.blocks import rank_blocks_for_removal
from vitrim.importance.criteria import score
from vitrim.importance.joint import choose_jointly
from vitrim.importance.scores import Scores
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.recipe import Recipe
from vitrim.recovery.recover import recover
from vitrim.rotation import Rotation, RotationStatistics, measure_rotation, rotate
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint
from vitrim.source import Source, last_blocks, min_head_width, narrows_heads
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

MAX_ATTEMPTS = 5  # at a plan whose predicted latency is right
MAX_ATTEMPTS_ABOVE_BUDGET = 10  # while every plan so far was above the budget
MIN_SLOPE, MAX_SLOPE = 0.5, 2.0  # of the logarithm of the measured time, by that of the factor
MAX_SLOWER, MAX_FASTER = 0.01, 0.02  # accepted relative error of the predicted latency

ChoosePlan = Callable[[ViTStructure, Scores, Budget, PartCosts | None], PruningPlan]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A plan, and the milliseconds of the model that it leaves; 0 without a budget in milliseconds.

    Attributes:
        plan: which units are kept.
        predicted_ms: from the latency table.
        measured_ms: right after planning. Files do not keep it.
    """

    plan: PruningPlan
    predicted_ms: float = 0.0
    measured_ms: float = 0.0

    def latency_text(self) -> str:
        """The predicted latency, and the measured one where it differs by more than 5 %."""
        text = f"predicted latency: {self.predicted_ms:.4g} ms for one forward pass"
        difference = difference_text(self.measured_ms, self.predicted_ms) if self.measured_ms else ""
        return f"{text}, measured {self.measured_ms:.4g} ms, {difference} the prediction" if difference else text

    def to_json(self) -> str:
        """`plan.json`, with the key `predicted_ms` where there is a prediction."""
        if not self.predicted_ms:
            return self.plan.to_json()
        return json.dumps({**self.plan.to_dict(), "predicted_ms": self.predicted_ms}) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Proposal":
        """Read what `to_json` wrote.

        Raises:
            PlanMismatch: this is not a plan.
        """
        plan = PruningPlan.from_json(text)
        return cls(plan=plan, predicted_ms=json.loads(text).get("predicted_ms", 0.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class Planner:
    """Makes plans within the budget of a recipe. The indices of its plans refer to the model that is cut.

    Attributes:
        source: the dense model, the model that is cut (`source.start`), and the images.
        recipe: all settings.
        timings: what was timed for the budget.
        rotation: of the heads of the model that is cut; None if heads keep their width.
        head_width: width of the heads in every attention that can be narrowed; 0 if heads keep their width.
    """

    source: Source
    recipe: Recipe
    timings: DeviceTimes
    rotation: Rotation | None = None
    head_width: int = 0

    @cached_property
    def base(self) -> nn.Module:
        """The model that plans are applied to: the model that is cut, with rotated heads if heads are narrowed."""
        start = self.source.start.model
        return rotate(start, self.rotation) if self.rotation else start

    @cached_property
    def budget(self) -> Budget:
        """The budget of the recipe, with the multiple that was measured."""
        return replace(self.recipe.budget, multiple_of=self.timings.multiple_of)

    @cached_property
    def times(self) -> PartCosts | None:
        """Milliseconds of the parts of the model that is cut; None without a budget in milliseconds."""
        times = self.timings.times(self.source.structure)
        return times.after(self.source.start.plan) if times and self.source.larger else times

    @cached_property
    def start_fractions(self) -> tuple[float, float]:
        """The fractions of the dense model's parameters and multiply-adds that the model that is cut has."""
        return count_cost(self.source.start.structure).fraction_of(self.source.cost)

    @cached_property
    def calibration(self) -> Calibration:
        """The images for scoring and recovery."""
        return self.source.calibration(self.recipe.importance, self.recipe.seed)

    def score(self, model: nn.Module) -> Scores:
        """Score every head, neuron and block as the recipe says."""
        found = score(model, self.calibration, self.recipe.importance.criterion, seed=self.recipe.seed)
        return replace(found, weights=fingerprint(model))

    def score_start(self, statistics: RotationStatistics) -> Scores:
        """Score the model that is cut, and gather the statistics of a rotation in the same passes if one is needed."""
        start = self.source.start
        if not narrows_heads(start.structure, self.recipe):
            return self.score(start.model)
        with statistics.watching(start.model):
            return self.score(start.model)

    def measure_rotation(self, statistics: RotationStatistics) -> Rotation:
        """The rotation of the heads, from these statistics, or from passes of its own if they are empty.

        They are empty if the scores come from an earlier run.
        """
        if statistics.is_empty:
            return measure_rotation(self.source.start.model, self.calibration)
        return statistics.rotation(self.source.start.model)

    def check(self, remove_blocks: Sequence[int] | None = None) -> None:
        """Raise `BudgetError` if no plan without these blocks meets the budget, latency included.

        Args:
            remove_blocks: by default as many blocks as the recipe may remove.
        """
        structure, times = self.source.start.structure, self.times
        blocks = last_blocks(structure, self.recipe) if remove_blocks is None else remove_blocks
        width = self.head_width or min_head_width(structure, self.recipe)
        if width:
            plan = PruningPlan.full(structure).with_head_widths(structure, width)
            structure, times = structure.narrowed(width), times.after(plan) if times else None
        check_reachable(structure, self.budget, whole=self.source.cost, remove_blocks=blocks, times=times)

    def cut(self, plan: PruningPlan, batches: Calibration) -> nn.Module:
        """The model that `plan` leaves of the model that is cut, recovered on `batches` if the recipe says so."""
        student = prune(self.base, plan)
        if not self.recipe.recovery.enabled:
            return student
        return recover(student, self.source.start.model, plan, batches, ridge=self.recipe.recovery.ridge)

    def plan_width(self, scores: Scores, num_blocks: int) -> Proposal:
        """Plan the width stage: narrow the model so that `num_blocks` blocks can be removed afterwards."""

        def choose(structure: ViTStructure, found: Scores, budget: Budget, times: PartCosts | None) -> PruningPlan:
            return width_plan(
                structure,
                found,
                budget,
                num_blocks,
                whole=self.source.cost,
                times=times,
                dense_ms=self.timings.dense_ms,
            )

        return self._iterative(scores, choose)

    def plan_in_one_step(self, scores: Scores) -> PruningPlan:
        """Plan to narrow the model to the budget at once, with predicted latency only. All blocks are kept.

        Args:
            scores: of the model that is cut.
        """
        plan, student = self._before_first_step()
        structure, times = describe(student), self.times.after(plan) if self.times else None
        step = allocate(structure, scores, self.budget, whole=self.source.cost, times=times)
        return plan.then(self._jointly(student, step))

    def plan_one_shot(self, scores: Scores, remove_blocks: tuple[int, ...]) -> Proposal:
        """Plan to remove these blocks and to narrow the others to the budget, without a distillation in between."""

        def choose(structure: ViTStructure, found: Scores, budget: Budget, times: PartCosts | None) -> PruningPlan:
            is_first = len(structure.blocks) == len(self.source.start.structure.blocks)
            blocks = remove_blocks if is_first else ()
            return allocate(structure, found, budget, whole=self.source.cost, remove_blocks=blocks, times=times)

        return self._iterative(scores, choose)

    def plan_depth(self, student: nn.Module, before: PruningPlan, num_blocks: int) -> Proposal:
        """Plan the depth stage: remove the `num_blocks` least important blocks, narrow the others to the budget.

        Args:
            student: the model after the width stage. Indices of the plan count in it.
            before: the plan that cut the student from the dense model.
        """
        removed = tuple(rank_blocks_for_removal(student, self.calibration, num_blocks))
        structure = describe(student)
        numbers = " and ".join(str(index + 1) for index in sorted(removed))
        log(f"depth: of {counted(len(structure.blocks), 'block')}, number {numbers} will be removed")
        scores = self.score(student)

        def choose(times: PartCosts | None) -> PruningPlan:
            return allocate(structure, scores, self.budget, whole=self.source.cost, remove_blocks=removed, times=times)

        return self._corrected_by_measurement(before, choose)

    def _before_first_step(self) -> tuple[PruningPlan, nn.Module]:
        """The plan that only narrows the heads, and the model that it leaves."""
        structure = self.source.start.structure
        full = PruningPlan.full(structure)
        if not self.head_width:
            return full, self.base
        plan = full.with_head_widths(structure, self.head_width)
        return plan, prune(self.base, plan)

    def _iterative(self, scores: Scores, choose: ChoosePlan) -> Proposal:
        """Narrow the model in steps. After each step but the last, the model is recovered and scored again.

        The budgets of the steps shrink by equal factors. Nothing is trained in between. Heads get their width before
        the first step. The scores stay valid then: they say how the loss changes without a unit, whatever its width.

        Args:
            scores: of the model that is cut.
            choose: makes the plan of one step. Its indices refer to the model that the steps before have left.
        """
        steps = self.recipe.importance.steps
        plan, student = self._before_first_step()
        start_ms = self.times.total(PruningPlan.full(self.source.start.structure)) if self.times else 0.0
        for step in range(1, steps):
            budget = self.budget.on_the_way(step / steps, start_ms, self.start_fractions)
            times = self.times.after(plan) if self.times else None
            plan = plan.then(self._jointly(student, choose(describe(student), scores, budget, times)))
            log(f"choosing heads and neurons: step {step} of {steps}")
            if plan.keeps_all(self.source.start.structure):
                continue
            student = self.cut(plan, self.calibration)
            scores = self.score(student)
        if steps > 1:
            log(f"choosing heads and neurons: step {steps} of {steps}")
        structure, last_scores = describe(student), scores
        proposal = self._corrected_by_measurement(
            plan, lambda times: choose(structure, last_scores, self.budget, times)
        )
        return replace(proposal, plan=plan.then(self._jointly(student, proposal.plan)))

    def _jointly(self, student: nn.Module, plan: PruningPlan) -> PruningPlan:
        """The plan with the units of each layer chosen together, if the recipe says so."""
        return choose_jointly(student, plan, self.calibration) if self.recipe.importance.joint else plan

    def _corrected_by_measurement(
        self, before: PruningPlan, choose: Callable[[PartCosts | None], PruningPlan]
    ) -> Proposal:
        """Make a plan, time its model, correct the times, and repeat until prediction and measurement agree.

        The model is timed alternately with the dense model. If the prediction is wrong, all times are multiplied by one
        factor. If no prediction becomes right, the plan with the smallest error is taken among those within the budget.

        Args:
            before: the plan that was followed so far.
            choose: makes a plan from the milliseconds of the parts. Its indices refer to the model that `before`
                leaves.

        Raises:
            BudgetError: no plan is within the budget.
        """
        if self.times is None:
            return Proposal(plan=choose(None))
        tried: list[_Attempt] = []
        while len(tried) < MAX_ATTEMPTS or (all(t.over for t in tried) and len(tried) < MAX_ATTEMPTS_ABOVE_BUDGET):
            factor = _next_factor(tried)
            times = self.times.scaled(factor)
            try:
                step = choose(times.after(before))
            except BudgetError:
                if all(attempt.over for attempt in tried):
                    raise
                break  # the correction went too far
            predicted, measured = times.total(before.then(step)), self._measured_ms(before.then(step))
            log(f"latency: predicted {predicted:.4g} ms, measured {measured:.4g} ms")
            over = measured > (1 + MAX_SLOWER) * max(self.budget.latency_ms, predicted)
            proposal = Proposal(plan=step, predicted_ms=predicted, measured_ms=measured)
            slower = measured / predicted
            tried.append(_Attempt(over, abs(math.log(slower)), factor, slower, proposal))
            if -MAX_FASTER <= slower - 1 <= MAX_SLOWER:
                break
        found = min(tried, key=lambda attempt: attempt[:2]).proposal
        if difference_text(found.measured_ms, found.predicted_ms):
            log(f"the best plan of {counted(len(tried), 'attempt')} is used; {found.latency_text()}")
        return found

    def _measured_ms(self, plan: PruningPlan) -> float:
        """Milliseconds of the model that `plan` leaves, at the speed at which the dense model was timed."""
        settings = settings_for_comparison(self.recipe.latency, self.timings.dense_ms)
        models = [self.source.model, prune(self.source.start.model, plan)]
        return self.timings.dense_ms * measure_latencies(models, settings)[1].ratio


class _Attempt(NamedTuple):
    """A plan made with all times multiplied by `factor`; its model was `slower` times as slow as predicted."""

    over: bool  # above the budget
    distance: float  # |log(slower)|
    factor: float
    slower: float
    proposal: Proposal


def _next_factor(tried: Sequence[_Attempt]) -> float:
    """The factor for the next attempt: where a line through the two nearest attempts, in logarithms, meets 1.

    The slope of the line is limited, because both points are noisy.
    """
    if not tried:
        return 1.0
    near = sorted(tried, key=lambda attempt: attempt.distance)[:2]
    slope = 1.0
    if len(near) == 2 and near[0].factor != near[1].factor:
        slope = -math.log(near[0].slower / near[1].slower) / math.log(near[0].factor / near[1].factor)
    factor = near[0].factor * near[0].slower ** (1 / min(max(slope, MIN_SLOPE), MAX_SLOPE))
    if any(math.isclose(factor, attempt.factor) for attempt in tried):  # it led to a plan of the same measured time
        return tried[-1].factor * tried[-1].slower ** (1 / MIN_SLOPE)
    return factor


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
    """The plan of the width stage: the widest one that meets the budget after `num_blocks` more blocks are removed.

    Which blocks will be removed is not known yet. The most expensive ones are assumed. The depth stage then cuts what
    is still above the budget.

    Args:
        whole: the cost of which the budget is a fraction; by default that of `structure`.
        times: milliseconds of the parts of `structure`, for a budget in milliseconds.
        dense_ms: milliseconds of the dense model.

    Raises:
        BudgetError: no plan meets the budget.
    """
    whole = whole or count_cost(structure)
    if num_blocks == 0:
        return allocate(structure, scores, budget, whole=whole, times=times)
    limits = budget.limits(structure, whole, times)

    def plan_at(extra: float) -> PruningPlan:
        return allocate(structure, scores, budget.widened(extra, dense_ms), whole=whole, times=times)

    def fills_budget(extra: float) -> bool:
        try:
            plan = plan_at(extra)
        except BudgetError:
            return False  # removing blocks later makes this size possible
        return any(
            without_largest_blocks(structure, plan, num_blocks, limit.costs) >= limit.maximum for limit in limits
        )

    low, high = 0.0, 1.0
    if not fills_budget(high):
        return plan_at(high)  # removing these blocks alone meets the budget
    for _ in range(7):
        middle = (low + high) / 2
        low, high = (low, middle) if fills_budget(middle) else (middle, high)
    return plan_at(high)


def without_largest_blocks(structure: ViTStructure, plan: PruningPlan, count: int, costs: PartCosts) -> float:
    """The cost of what `plan` leaves, without its `count` most expensive blocks that can be removed."""
    removable = [kept for kept in plan.blocks if not structure.blocks[kept.block].not_prunable]
    return costs.total(plan) - sum(sorted(costs.of_block(kept) for kept in removable)[-count:])
