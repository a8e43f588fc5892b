"""What a Vision Transformer is made of, as plain data: which units exist, where they lie, what each costs.

A *unit* is an attention head or an MLP hidden neuron. All units of one kind in one block form a `UnitGroup`;
each group has one *reader*: the linear layer whose input columns are the units' outputs (`attn.proj`, `mlp.fc2`).
Adapters make these descriptions; everything else only reads them. Standard library only.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from vitrim.plan import PruningPlan

UnitKind = Literal["heads", "neurons"]
UNIT_KINDS: tuple[UnitKind, ...] = ("heads", "neurons")


@dataclass(frozen=True, kw_only=True)
class TensorCut:
    """Where a group's units lie in one parameter: along `dim`, `repeats` stretches, `width` entries a unit.

    A fused qkv weight stores a head as three stretches of rows: `dim=0, width=head_dim, repeats=3`.
    """

    name: str
    dim: int
    width: int = 1
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """All heads, or all neurons, of one block.

    Attributes:
        count: how many units there are.
        reader: name of the linear layer that reads the units; its input has `count * width` columns.
        width: columns per unit: the head width for heads, 1 for neurons.
        cuts: every parameter that stores a part of each unit.
        params, macs: what one unit costs; multiply-adds for one image, attention products included.
        locked: why units of this group cannot be removed exactly; empty if they can.
    """

    count: int
    reader: str
    width: int
    cuts: tuple[TensorCut, ...]
    params: int
    macs: int
    locked: str = ""


@dataclass(frozen=True, kw_only=True)
class BlockStructure:
    """One residual block.

    Attributes:
        name: module name, `blocks.3`.
        params, macs: what the block costs besides its units (norms, biases of the readers, layer scale).
        qkv: name of the layer whose output holds queries, keys and values `(B, N, 3*H*K)`, for relation distillation.
        locked: why the block cannot be removed; empty if it can.
    """

    name: str
    heads: UnitGroup
    neurons: UnitGroup
    params: int
    macs: int
    qkv: str = ""
    locked: str = ""

    def group(self, kind: UnitKind) -> UnitGroup:
        return self.heads if kind == "heads" else self.neurons


@dataclass(frozen=True, kw_only=True)
class ViTStructure:
    """A whole model: what it is called, its blocks, and what everything outside the blocks costs."""

    model: str
    family: str
    img_size: tuple[int, int]
    in_chans: int
    num_classes: int
    embed_dim: int
    num_tokens: int
    blocks_name: str
    blocks: tuple[BlockStructure, ...]
    params: int
    macs: int

    def full_plan(self) -> PruningPlan:
        """The plan that keeps everything."""
        return PruningPlan.full(self.model, [(block.heads.count, block.neurons.count) for block in self.blocks])


@dataclass(frozen=True, kw_only=True)
class Origin:
    """How a model can be built again: library, architecture, its arguments, and the plan that then cuts it.

    `plan` is None for a dense model. `classes` are the names of the outputs, in order, where they are known.
    """

    library: str
    architecture: str
    model_args: dict[str, Any]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    plan: PruningPlan | None = None
    classes: tuple[str, ...] = ()

    def cut_by(self, plan: PruningPlan) -> "Origin":
        """The origin of the model after a further cut; `plan` counts in the model as it is now."""
        return replace(self, plan=plan if self.plan is None else self.plan.then(plan))
