"""Limits on what a compressed model may cost."""

import math
from dataclasses import dataclass
from typing import Literal

from vitrim.costs.counting import Cost
from vitrim.errors import BudgetError, SettingError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that the result may cost, as shares of the dense model, and the least that each block keeps.

    Attributes:
        params, macs: shares in (0, 1].
        min_heads, min_neurons: what every block that stays keeps (or all it has, if that is less).
        multiple_of: neurons are kept in multiples of this, for hardware that likes round widths (rounded down
            in a block whose dense width is not a multiple). `auto`: `compress` measures which multiple is fast.
        latency_ms: the most milliseconds of a forward pass, with what the latency settings name; 0 for no limit.
    """

    params: float = 0.7
    macs: float = 0.7
    min_heads: int = 1
    min_neurons: int = 16
    multiple_of: int | Literal["auto"] = 1
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (("parameters", self.params), ("multiply-adds", self.macs)):
            if not 0 < share <= 1:
                raise BudgetError(
                    f"The budget for {name} is {share:g}; expected a share above 0 and at most 1, such as 0.7."
                )
        if self.min_heads < 1 or self.min_neurons < 1:
            raise SettingError("budget.min_heads and budget.min_neurons must be at least 1.")
        if self.multiple_of != "auto" and self.multiple_of < 1:
            raise SettingError("budget.multiple_of must be at least 1, or auto.")
        if not 0 <= self.latency_ms < math.inf:
            raise BudgetError(
                f"The budget for latency is {self.latency_ms:g} ms; expected a number above 0, or 0 for no limit."
            )

    @property
    def step(self) -> int:
        """By how many neurons widths may differ."""
        if self.multiple_of == "auto":
            raise SettingError("budget.multiple_of is auto, which `compress` and `plan` measure; here give a number.")
        return self.multiple_of

    def limit(self, whole: Cost) -> Cost:
        """The budget in numbers, rounded down."""
        return Cost(params=int(self.params * whole.params), macs=int(self.macs * whole.macs))
