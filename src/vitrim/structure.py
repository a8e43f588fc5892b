"""What a Vision Transformer is made of, as plain data: which units exist, where they lie, what each costs.

A *unit* is an attention head or an MLP hidden neuron. All units of one attention, or of one MLP, form a `UnitGroup`;
each group has one *reader*: the layer whose input columns are the units' outputs (`attn.proj`, `mlp.fc2`).
Adapters make these descriptions; everything else only reads them. Standard library only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

UnitKind = Literal["heads", "neurons"]
UNIT_KINDS: tuple[UnitKind, ...] = ("heads", "neurons")


@dataclass(frozen=True, kw_only=True)
class TensorCut:
    """Where a group's units lie in one parameter or buffer: along `dim`, `repeats` stretches, `width` entries a unit.

    A fused qkv weight stores a head as three stretches of rows: `dim=0, width=head_dim, repeats=3`. The stretches
    begin at entry `first`, where something else comes before them.
    """

    name: str
    dim: int
    width: int = 1
    repeats: int = 1
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """All heads of one attention, or all neurons of one MLP.

    Attributes:
        kind: heads or neurons.
        key: what the plan calls the group: its kind, or `heads.1`, `neurons.1` for a second one in the same block.
        count: how many units there are.
        reader: name of the layer that reads the units: linear (columns last) or a convolution (channels first).
        width: columns per unit: the head width for heads, 1 for neurons.
        first: the reader's column with which the group begins.
        cuts: every tensor that stores a part of each unit.
        params, macs: what one unit costs; multiply-adds for one image, attention products included.
        locked: why units of this group cannot be removed exactly; empty if they can. Such a group may lack the rest.
    """

    kind: UnitKind
    key: str
    count: int
    output_proj: str = ""
    width: int = 1
    first: int = 0
    cuts: tuple[TensorCut, ...] = ()
    params: int = 0
    macs: int = 0
    not_prunable: str = ""


@dataclass(frozen=True, kw_only=True)
class BlockStructure:
    """One residual block.

    Attributes:
        name: module name, `blocks.3`; blocks whose names differ in the last part alone form a *stage*.
        groups: its attentions and MLPs, in the order in which they run.
        params, macs: what the block costs besides its units (norms, biases of the readers, layer scale).
        state: which positional argument of the block is the residual stream.
        qkv: name of the layer whose output holds queries, keys and values `(B, N, 3*H*K)`, for relation distillation.
        cuts: tensors outside the block that hold one entry for each block of the model along `dim`.
        locked: why the block cannot be removed; empty if it can.
    """

    name: str
    groups: tuple[UnitGroup, ...]
    params: int
    macs: int
    state: int = 0
    qkv: str = ""
    cuts: tuple[TensorCut, ...] = ()
    not_prunable: str = ""

    @property
    def stage(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def heads(self) -> UnitGroup:
        """The first attention; a group of no heads where there is none."""
        return self.group("heads")

    @property
    def neurons(self) -> UnitGroup:
        """The first MLP; a group of no neurons where there is none."""
        return self.group("neurons")

    def group(self, key: str) -> UnitGroup:
        for group in self.groups:
            if group.key == key:
                return group
        kind: UnitKind = "heads" if key.startswith("heads") else "neurons"
        return UnitGroup(kind=kind, key=key, count=0, not_prunable=f"`{self.name}` has none")


@dataclass(frozen=True, kw_only=True)
class ViTStructure:
    """A whole model: what it is called, its blocks, and what everything outside the blocks costs.

    Attributes:
        embed_dim, num_tokens: width and length of the residual stream behind the last block.
        uncut: parts outside the blocks that have heads or neurons which vitrim leaves alone, and why.
    """

    model: str
    family: str
    img_size: tuple[int, int]
    in_chans: int
    num_classes: int
    embed_dim: int
    num_tokens: int
    blocks: tuple[BlockStructure, ...]
    params: int
    macs: int
    skipped_parts: tuple[str, ...] = ()

    def matched_teacher_blocks(self, kept: Sequence[int]) -> list[int]:
        """For each block that is kept, the last one before the next kept one, or before the stage ends.

        Behind a removed stretch the smaller model must already be where this one is at the stretch's end.
        """
        ends = []
        for block, following in zip(kept, [*kept[1:], len(self.blocks)], strict=True):
            stage = self.blocks[block].stage
            ends.append(max(index for index in range(block, following) if self.blocks[index].stage == stage))
        return ends
