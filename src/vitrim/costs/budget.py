"""Limits on what a compressed model may cost, and whether any model can meet them.

Every kind of budget is defined in this file: a field of `Budget`, and an entry in `Budget.limits`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from vitrim.checks import check_types
from vitrim.costs.counting import Cost, Key, PartCosts, block_cost, count_cost
from vitrim.errors import BudgetError, PlanMismatch, SettingError, counted, percent
from vitrim.structure import UnitGroup, ViTStructure

MAX_LATENCY_MS = 1e9  # of one forward pass: 12 days


@dataclass(frozen=True, kw_only=True, eq=False)
class Limit:
    """One limit: the maximum of one kind of cost, and what each part of the model costs in that kind.

    Attributes:
        maximum: in the unit of `costs`.
        costs: of the model that is to be cut.
        allowed: the limit in words, such as `70.0 % of the parameters`.
        text: turns an amount into words, such as `69.90 % of the parameters`.
        setting: the setting of the recipe that raises the limit.
    """

    maximum: float
    costs: PartCosts
    allowed: str
    text: Callable[[float], str]
    setting: str


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The maximum cost of the result, and the minimum width of each block.

    Attributes:
        params: fraction of the dense model's parameters, in (0, 1].
        macs: fraction of the dense model's multiply-adds, in (0, 1].
        min_heads: minimum number of heads in every block that is kept (or all of them, if the block has fewer).
        min_neurons: minimum number of neurons in every MLP that is kept (or all of them).
        multiple_of: the number of neurons is a multiple of this. It is rounded down in a block whose dense width is not
            a multiple. `auto` is 8 where `compress` trains in bf16, because products of other widths are slow there,
            and else 1. With `measured`, `compress` measures which multiple is fast.
        latency_ms: maximum milliseconds of one forward pass, timed as the latency settings say; 0 for no limit.

    Raises:
        BudgetError: a fraction or the latency is out of range, or a value is of the wrong type. SettingError: a minimum
            is below 1.
    """

    params: float = 0.7
    macs: float = 0.7
    min_heads: int = 1
    min_neurons: int = 16
    multiple_of: int | Literal["auto", "measured"] = "auto"
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        try:
            check_types(self, latency_ms=MAX_LATENCY_MS)
        except SettingError as problem:  # also of a fraction that is no number
            raise BudgetError(str(problem)) from None
        for name in ("params", "macs"):
            if not 0 < (fraction := getattr(self, name)) <= 1:
                raise BudgetError(f"{name} is {fraction:g}; {fraction_expected(fraction)}")
        for name in ("min_heads", "min_neurons"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if isinstance(self.multiple_of, int) and self.multiple_of < 1:
            raise SettingError(f"multiple_of is {self.multiple_of}; expected at least 1, auto or measured.")
        if self.latency_ms < 0:
            raise BudgetError(f"latency_ms is {self.latency_ms:g}; expected milliseconds above 0, or 0 for no limit.")

    @property
    def label(self) -> str:
        """A short name of the result: `70 %` for fractions of 0.7, `12 ms` for a latency limit alone."""
        parts = []
        if self.params != self.macs:
            kinds = {"parameters": self.params, "multiply-adds": self.macs}
            parts += [f"{100 * fraction:g} % of {kind}" for kind, fraction in kinds.items() if fraction < 1]
        elif self.params < 1 or not self.latency_ms:
            parts.append(f"{100 * self.params:g} %")
        if self.latency_ms:
            parts.append(f"{self.latency_ms:g} ms")
        return ", ".join(parts)

    @property
    def neuron_step(self) -> int:
        """The number of neurons by which widths differ; 1 for `auto`.

        Raises:
            SettingError: `multiple_of` is `measured`, and nothing has been measured.
        """
        if self.multiple_of == "measured":
            raise SettingError(
                "budget.multiple_of is measured, which `compress` and `plan` replace by a number; here give a number."
            )
        return self.multiple_of if isinstance(self.multiple_of, int) else 1

    def limit(self, whole: Cost) -> Cost:
        """The maximum parameters and multiply-adds, rounded down; `whole` is the cost of the dense model."""
        return Cost(params=int(self.params * whole.params), macs=int(self.macs * whole.macs))

    def limits(self, structure: ViTStructure, whole: Cost, times: PartCosts | None = None) -> list[Limit]:
        """Every limit that this budget sets, one for each kind of cost.

        Args:
            structure: of the model that is to be cut.
            whole: cost of the dense model, of which `params` and `macs` are fractions.
            times: milliseconds of the parts of `structure`; needed for a budget in milliseconds.

        Raises:
            SettingError: `latency_ms` is set, but `times` is missing.
        """
        maximum = self.limit(whole)
        found = [
            Limit(
                maximum=maximum.params,
                costs=PartCosts.of_structure(structure, "params"),
                allowed=f"{percent(self.params, 1)} of the parameters",
                text=lambda amount: f"{percent(amount / whole.params, 2)} of the parameters",
                setting="budget.params",
            ),
            Limit(
                maximum=maximum.macs,
                costs=PartCosts.of_structure(structure, "macs"),
                allowed=f"{percent(self.macs, 1)} of the multiply-adds",
                text=lambda amount: f"{percent(amount / whole.macs, 2)} of the multiply-adds",
                setting="budget.macs",
            ),
        ]
        if self.latency_ms:
            if times is None:
                raise SettingError(
                    "A budget in milliseconds needs the times of the model's parts; `compress` measures them."
                )
            found.append(
                Limit(
                    maximum=self.latency_ms,
                    costs=times,
                    allowed=f"{self.latency_ms:.4g} ms",
                    text=lambda amount: f"{amount:.4g} ms",
                    setting="budget.latency_ms",
                )
            )
        return found

    def on_the_way(
        self, progress: float, start_ms: float, start_fractions: tuple[float, float] = (1.0, 1.0)
    ) -> "Budget":
        """The budget of one pruning step, by equal factors.

        Args:
            progress: from 0, the model that is cut, to 1, this budget.
            start_ms: milliseconds of the model that is cut; not used without a budget in milliseconds.
            start_fractions: of the dense model's parameters and multiply-adds that the model that is cut has.
        """

        def between(start: float, end: float) -> float:
            return max(start, end) ** (1 - progress) * end**progress

        return replace(
            self,
            params=between(start_fractions[0], self.params),
            macs=between(start_fractions[1], self.macs),
            latency_ms=between(start_ms, self.latency_ms) if self.latency_ms else 0.0,
        )

    def widened(self, extra: float, dense_ms: float) -> "Budget":
        """A budget between this one (`extra` = 0) and the dense model (`extra` = 1)."""
        return replace(
            self,
            params=_between(self.params, 1.0, extra),
            macs=_between(self.macs, 1.0, extra),
            latency_ms=_between(self.latency_ms, max(dense_ms, self.latency_ms), extra),
        )


def fraction_expected(value: float) -> str:
    """The end of the error for a limit that is no fraction; explains how to write a percentage."""
    expected = "expected a fraction above 0 and at most 1"
    return f"{expected}. For {value:g} %, write {value / 100:g}." if 2 <= value <= 100 else f"{expected}, such as 0.7."


def check_reachable(
    structure: ViTStructure,
    budget: Budget,
    *,
    whole: Cost | None = None,
    remove_blocks: Sequence[int] = (),
    times: PartCosts | None = None,
) -> None:
    """Raise what `allocate` raises where no plan meets the budget; no scores are needed for it.

    Args:
        whole: cost of the dense model; by default that of `structure`.
        remove_blocks: indices of blocks that are removed in any case.
        times: milliseconds of the parts of `structure`, for a budget in milliseconds.

    Raises:
        BudgetError: the smallest possible model is above a limit; says how small it can be.
    """
    kept_blocks = blocks_without(structure, remove_blocks)
    minimum = min_counts(structure, kept_blocks, budget)
    above = []
    for limit in budget.limits(structure, whole or count_cost(structure), times):
        needed = limit.costs.fixed + sum(limit.costs.blocks[index] for index in kept_blocks)
        needed += sum(float(limit.costs.units[key][count]) for key, count in minimum.items())
        if needed > limit.maximum:
            above.append((limit, needed))
    if above:
        remedies = [f"raise {' or '.join(limit.setting for limit, _ in above)}"]
        if _helped_by_fewer_blocks(structure, kept_blocks, minimum, above):
            remedies.append(f"set depth.blocks to more than {len(structure.blocks) - len(kept_blocks)}")
        if budget.min_neurons > 1:
            remedies.append("lower budget.min_neurons")
        *first, last = remedies
        advice = f"{', '.join(first)}{',' if len(first) > 1 else ''} or {last}" if first else last
        raise BudgetError(
            f"The budget allows {' and '.join(limit.allowed for limit, _ in above)}. The smallest possible model with "
            f"{counted(len(kept_blocks), 'block')} needs "
            f"{' and '.join(limit.text(needed) for limit, needed in above)}. {advice[0].upper()}{advice[1:]}."
            f"{unprunable_summary(structure)}"
        )


def _helped_by_fewer_blocks(
    structure: ViTStructure,
    kept_blocks: Sequence[int],
    minimum: Mapping[Key, int],
    above: Sequence[tuple[Limit, float]],
) -> bool:
    """Whether these limits can be met if further blocks are removed. One block is always kept."""
    removable = [index for index in kept_blocks if not structure.blocks[index].not_prunable]
    for limit, needed in above:
        saved = [
            limit.costs.blocks[index]
            + sum(float(limit.costs.units[key][count]) for key, count in minimum.items() if key[0] == index)
            for index in removable
        ]
        largest = sorted(saved, reverse=True)[: len(kept_blocks) - 1]
        if needed - sum(largest) > limit.maximum:
            return False
    return True


def blocks_without(structure: ViTStructure, remove_blocks: Sequence[int]) -> list[int]:
    """Indices of the blocks that are kept.

    Raises:
        PlanMismatch: a block that is to be removed does not exist.
    """
    if not set(remove_blocks) <= set(range(len(structure.blocks))):
        raise PlanMismatch(
            f"Blocks {sorted(remove_blocks)} are to be removed; the model has blocks 0..{len(structure.blocks) - 1}."
        )
    return [index for index in range(len(structure.blocks)) if index not in remove_blocks]


def min_counts(structure: ViTStructure, kept_blocks: Sequence[int], budget: Budget) -> dict[Key, int]:
    """The minimum number of units of each group in these blocks."""
    return {(i, group.key): _min_count(group, budget) for i in kept_blocks for group in structure.blocks[i].groups}


def smallest_cost(structure: ViTStructure, budget: Budget, remove_blocks: Sequence[int] = ()) -> Cost:
    """The cost of the smallest model that the minimum widths allow, without the blocks `remove_blocks`."""
    kept_blocks = blocks_without(structure, remove_blocks)
    counts = min_counts(structure, kept_blocks, budget)
    total = Cost(params=structure.params, macs=structure.macs)
    for index in kept_blocks:
        total += block_cost(structure, index, {key: count for (block, key), count in counts.items() if block == index})
    return total


def unprunable_summary(structure: ViTStructure) -> str:
    """A sentence on what cannot be pruned, with one reason for each kind of part; empty if everything can."""
    reasons: dict[str, str] = {}
    for block in structure.blocks:
        for kind, reason in [(group.kind, group.not_prunable) for group in block.groups] + [
            ("blocks", block.not_prunable)
        ]:
            if reason:
                reasons.setdefault(kind, reason)
    texts = [f"{kind} ({why})" for kind, why in reasons.items()]
    if structure.skipped_parts:
        num_others = len(structure.skipped_parts) - 1
        texts.append(structure.skipped_parts[0] + (f" (and {num_others} more such parts)" if num_others else ""))
    return f" Not prunable: {'; '.join(texts)}." if texts else ""


def _min_count(group: UnitGroup, budget: Budget) -> int:
    if group.not_prunable:
        return group.count
    if group.kind == "heads":
        return min(budget.min_heads, group.count)
    rounded = -(-budget.min_neurons // budget.neuron_step) * budget.neuron_step
    return min(rounded, group.count)


def _between(low: float, high: float, extra: float) -> float:
    return low + extra * (high - low)
