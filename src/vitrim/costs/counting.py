"""Parameters and multiply-adds of a model. Multiply-adds are for one image and include attention's matrix products.

`count_cost` computes them from the structure. `count_cost_by_running` asks torch's own counter; tests compare the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vitrim.copying import copied
from vitrim.models import describe
from vitrim.models.wrappers import unwrapped
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import ViTStructure

Key = tuple[int, str]  # the index of a block and the key of one of its groups of units


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model costs: number of parameters, and multiply-adds for one image."""

    params: int
    macs: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(params=self.params + other.params, macs=self.macs + other.macs)

    def fraction_of(self, whole: "Cost") -> tuple[float, float]:
        """Parameters and multiply-adds as fractions of those of another model."""
        return self.params / whole.params, self.macs / whole.macs


@dataclass(frozen=True, kw_only=True, eq=False)
class PartCosts:
    """What each part of a model costs, in one unit of cost such as parameters or milliseconds. The parts add up.

    Attributes:
        fixed: everything outside the blocks.
        blocks: each block without its units.
        units: for each group of units, the cost of keeping 0, 1, 2, ... units, `(count + 1,)`.
        narrow: for each attention that can be narrowed, the cost of keeping 0, 1, 2, ... heads of width 0, 1, ..., K,
            `(count + 1, K + 1)`. The last column is that of `units`.
    """

    fixed: float
    blocks: tuple[float, ...]
    units: Mapping[Key, np.ndarray]
    narrow: Mapping[Key, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_structure(cls, structure: ViTStructure, cost: Literal["params", "macs"]) -> Self:
        """Parameters or multiply-adds of a model of this structure."""
        groups = {(index, group.key): group for index, block in enumerate(structure.blocks) for group in block.groups}
        counts = {key: np.arange(group.count + 1, dtype=np.float64) for key, group in groups.items()}
        return cls(
            fixed=getattr(structure, cost),
            blocks=tuple(getattr(block, cost) for block in structure.blocks),
            units={key: counts[key] * getattr(group, cost) for key, group in groups.items()},
            narrow={
                key: np.outer(counts[key], [getattr(group, f"{cost}_at")(width) for width in range(group.width + 1)])
                for key, group in groups.items()
                if group.directions
            },
        )

    def of_group(self, key: Key, width: int | None = None) -> np.ndarray:
        """The cost of keeping 0, 1, 2, ... units of a group, `(count + 1,)`; `width` is that of narrowed heads."""
        return self.units[key] if width is None else self.narrow[key][:, width]

    def total(self, plan: PruningPlan) -> float:
        """The cost of the model that `plan` leaves."""
        return self.fixed + sum(self.of_block(kept) for kept in plan.blocks)

    def of_block(self, kept: KeptBlock) -> float:
        """The cost of one block with the units that are kept."""
        widths = dict(kept.head_widths)
        units = [(key, len(indices)) for key, indices in kept.items() if (kept.block, key) in self.units]
        costs = [float(self.of_group((kept.block, key), widths.get(key))[count]) for key, count in units]
        return self.blocks[kept.block] + sum(costs)

    def scaled(self, factor: float) -> Self:
        """All parts multiplied by `factor`."""
        return type(self)(
            fixed=factor * self.fixed,
            blocks=tuple(factor * block for block in self.blocks),
            units={key: factor * values for key, values in self.units.items()},
            narrow={key: factor * values for key, values in self.narrow.items()},
        )

    def after(self, plan: PruningPlan) -> Self:
        """The costs of the model that `plan` leaves, counted in that model."""
        units: dict[Key, np.ndarray] = {}
        narrow: dict[Key, np.ndarray] = {}
        for index, kept in enumerate(plan.blocks):
            widths = dict(kept.head_widths)
            for key, indices in kept.items():
                before, num = (kept.block, key), len(indices) + 1
                if before in self.units:
                    units[index, key] = self.of_group(before, widths.get(key))[:num]
                if before in self.narrow:
                    width = widths.get(key, self.narrow[before].shape[1] - 1)
                    narrow[index, key] = self.narrow[before][:num, : width + 1]
        return type(self)(
            fixed=self.fixed,
            blocks=tuple(self.blocks[kept.block] for kept in plan.blocks),
            units=units,
            narrow=narrow,
        )


def count_cost(model: nn.Module | ViTStructure, plan: PruningPlan | None = None) -> Cost:
    """Count the cost of a model, or of the model that `plan` leaves, from the sizes of its layers.

    Args:
        plan: by default, everything is kept.

    Raises:
        UnsupportedModel: the model cannot be described.
        PlanMismatch: the plan is not one for this model.
    """
    structure = model if isinstance(model, ViTStructure) else describe(model)
    plan = plan or PruningPlan.full(structure)
    plan.check(structure)
    total = Cost(params=structure.params, macs=structure.macs)
    for kept in plan.blocks:
        counts = {key: len(units) for key, units in kept.items()}
        total += block_cost(structure, kept.block, counts, dict(kept.head_widths))
    return total


def block_cost(
    structure: ViTStructure, index: int, counts: Mapping[str, int], widths: Mapping[str, int] | None = None
) -> Cost:
    """The cost of one block.

    Args:
        counts: number of units of each group, by the key of the group.
        widths: widths of narrowed heads, by the key of the group.
    """
    block = structure.blocks[index]
    params, macs = block.params, block.macs
    for group in block.groups:
        width = (widths or {}).get(group.key, group.width)
        params += counts[group.key] * group.params_at(width)
        macs += counts[group.key] * group.macs_at(width)
    return Cost(params=params, macs=macs)


def count_cost_by_running(model: nn.Module) -> Cost:
    """Count by running the model on the meta device under torch's FLOP counter; one multiply-add is two FLOPs."""
    structure = describe(model)
    twin = (
        copied(unwrapped(model)).to("meta").eval().requires_grad_(False)
    )  # the counter hooks onto gradients otherwise
    dtype = next(twin.parameters()).dtype
    images = torch.empty(1, structure.in_chans, *structure.img_size, device="meta", dtype=dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(images)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params=params, macs=counter.get_total_flops() // 2)
