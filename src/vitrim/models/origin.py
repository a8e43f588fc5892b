"""`Origin`: how a model can be built again. It is noted on the model and written into model folders."""

from dataclasses import dataclass, field, replace
from typing import Any

from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

ORIGIN_ATTRIBUTE = "vitrim_origin"  # of a model; a deep copy keeps it


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a model can be built again.

    Attributes:
        library: timm, transformers or torchvision.
        architecture: the library's name for the dense model.
        model_args: arguments that build the dense model.
        preprocessing: how images are prepared: size, mean, standard deviation, interpolation, crop.
        plan: the plan that prunes the dense model; None for a dense model.
        classes: names of the classes in the order of the logits, if known.
        block_names: names of the dense model's blocks, noted by the first cut.
    """

    library: str
    architecture: str
    model_args: dict[str, Any]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    plan: PruningPlan | None = None
    classes: tuple[str, ...] = ()
    block_names: tuple[str, ...] = ()

    def cut_by(self, plan: PruningPlan, structure: ViTStructure) -> "Origin":
        """The origin after a further cut. `plan` counts units in the model before that cut, which has `structure`."""
        if self.plan is None:
            return replace(self, plan=plan, block_names=tuple(block.name for block in structure.blocks))
        return replace(self, plan=self.plan.then(plan))

    def removed_blocks(self) -> tuple[str, ...]:
        """Names of the removed blocks in the dense model, in the order in which they run."""
        kept = {block.block for block in self.plan.blocks} if self.plan else set(range(len(self.block_names)))
        return tuple(name for index, name in enumerate(self.block_names) if index not in kept)
