"""How a model can be built again: noted on the model, written into model folders."""

from dataclasses import dataclass, field, replace
from typing import Any

from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a model can be built again: library, architecture, its arguments, and the plan that then cuts it.

    `plan` is None for a dense model. `classes` are the names of the outputs, in order, where they are known;
    `block_names` those of the dense model's blocks, noted by the first cut.
    """

    library: str
    architecture: str
    model_args: dict[str, Any]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    plan: PruningPlan | None = None
    classes: tuple[str, ...] = ()
    block_names: tuple[str, ...] = ()

    def cut_by(self, plan: PruningPlan, structure: ViTStructure) -> "Origin":
        """The origin of the model after a further cut; `plan` counts in the model as it is now, of this structure."""
        if self.plan is None:
            return replace(self, plan=plan, block_names=tuple(block.name for block in structure.blocks))
        return replace(self, plan=self.plan.then(plan))

    def removed_blocks(self) -> tuple[str, ...]:
        """Names in the dense model of the blocks that the plan leaves out, in the order in which they run."""
        kept = {block.block for block in self.plan.blocks} if self.plan else set(range(len(self.block_names)))
        return tuple(name for index, name in enumerate(self.block_names) if index not in kept)
