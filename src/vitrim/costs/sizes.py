"""Which sizes one run makes: the settings for several sizes and for the search of the smallest one, and their budgets.

How the models are made is in `vitrim.sizes`.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

from vitrim.checks import check_types
from vitrim.costs.budget import Budget, fraction_expected
from vitrim.errors import BudgetError, SettingError

MAX_SIZES = 32
MIN_STEP = 0.01  # between the fractions that a search compares


@dataclass(frozen=True, kw_only=True)
class SizeSettings:
    """Several sizes from one run. Each smaller model starts from the larger one.

    Attributes:
        keeps: fractions of the dense model's parameters and multiply-adds, one model for each. Empty for one model, as
            `budget` says. A cost that `budget` does not limit (fraction 1) is not limited, if the other one is.
        latencies_ms: maximum milliseconds of one forward pass, one model for each, within the fractions of `budget`.
        later_epochs: epochs of each size after the largest, as a fraction of the recipe's epochs. A model that starts
            from a distilled one needs fewer.

    Raises:
        SettingError: a value is out of range, or both lists are given. BudgetError: a limit is out of range.
    """

    keeps: tuple[float, ...] = ()
    latencies_ms: tuple[float, ...] = ()
    later_epochs: float = 0.5

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 < self.later_epochs <= 1:
            raise SettingError(f"later_epochs is {self.later_epochs:g}; expected a fraction above 0 and at most 1.")
        if self.keeps and self.latencies_ms:
            raise SettingError("keeps and latencies_ms are both given; give one of them.")
        for fraction in self.keeps:
            if not 0 < fraction <= 1:
                raise BudgetError(f"keeps has {fraction:g}; {fraction_expected(fraction)}")
        for milliseconds in self.latencies_ms:
            if not 0 < milliseconds < math.inf:
                raise BudgetError(f"latencies_ms has {milliseconds:g}; expected milliseconds above 0.")
        for name, values in (("keeps", self.keeps), ("latencies_ms", self.latencies_ms)):
            if len(values) > MAX_SIZES:
                raise SettingError(f"{name} has {len(values)} sizes; expected at most {MAX_SIZES}.")
            texts = [f"{value:g}" for value in values]  # as in the names of folders
            if len(set(texts)) < len(texts):
                twice = next(text for text in texts if texts.count(text) > 1)
                raise SettingError(f"{name} has {twice} twice; give each size once.")

    @property
    def are_several(self) -> bool:
        """Whether a run makes a model for each of these sizes."""
        return bool(self.keeps or self.latencies_ms)

    def budgets(self, budget: Budget) -> list[Budget]:
        """The budgets of the sizes, the largest one first.

        Args:
            budget: of the recipe. It says which costs are limited.
        """
        if self.latencies_ms:
            return [replace(budget, latency_ms=latency) for latency in sorted(self.latencies_ms, reverse=True)]
        return [with_keep(budget, keep) for keep in sorted(self.keeps, reverse=True)]


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The search of the smallest model whose accuracy is within a drop.

    Attributes:
        max_drop: of the top-1 accuracy on the validation images, in percentage points; 0 for no search.
        objective: `keep` finds the smallest fraction of parameters and multiply-adds; `latency` the smallest number of
            milliseconds.
        smallest: the smallest fraction that is tried, of the dense model's cost or milliseconds.
        largest: the largest fraction that is tried.
        step: between the fractions that are compared.
        short_epochs: epochs of the distillation of each try, as a fraction of the recipe's epochs.

    Raises:
        SettingError: a value is out of range.
    """

    max_drop: float = 0.0
    objective: Literal["keep", "latency"] = "keep"
    smallest: float = 0.25
    largest: float = 0.95
    step: float = 0.05
    short_epochs: float = 0.2

    def __post_init__(self) -> None:
        check_types(self)
        if not 0 <= self.max_drop < 100:
            raise SettingError(
                f"max_drop is {self.max_drop:g}; expected percentage points above 0 and below 100, or 0 for no search."
            )
        for name in ("smallest", "largest"):
            if not 0 < getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name):g}; expected a fraction above 0 and below 1.")
        if self.smallest > self.largest:
            raise SettingError(
                f"largest is {self.largest:g}, below search.smallest, which is {self.smallest:g}; lower "
                "search.smallest, too."
            )
        if not MIN_STEP <= self.step < 1:
            raise SettingError(f"step is {self.step:g}; expected a fraction from {MIN_STEP:g} to below 1.")
        if not 0 < self.short_epochs <= 1:
            raise SettingError(f"short_epochs is {self.short_epochs:g}; expected a fraction above 0 and at most 1.")

    def changeable(self) -> frozenset[str]:
        """The settings that may change when a search is continued: the models that were made stay the same."""
        return frozenset({"max_drop", "smallest", "largest", "step"})

    def fractions(self) -> list[float]:
        """The fractions that are compared, the largest one first."""
        count = math.floor((self.largest - self.smallest) / self.step + 1e-9) + 1
        return [round(self.largest - index * self.step, 6) for index in range(count)]


def with_keep(budget: Budget, keep: float) -> Budget:
    """The budget with another fraction for the costs that it limits; for both, if it limits none."""
    limits_one = (budget.params < 1) != (budget.macs < 1)
    return replace(
        budget,
        params=1.0 if limits_one and budget.params == 1 else keep,
        macs=1.0 if limits_one and budget.macs == 1 else keep,
    )


def folder_name(budget: Budget, *, in_ms: bool) -> str:
    """The name of the folder of a size, such as `keep-0.7` and `latency-12ms`.

    Args:
        in_ms: whether sizes differ by their milliseconds.
    """
    return f"latency-{budget.latency_ms:g}ms" if in_ms else f"keep-{min(budget.params, budget.macs):g}"
