"""What a Vision Transformer consists of, as plain data: its units, the tensors that store them, and their costs.

A *unit* is an attention head or an MLP hidden neuron. All units of one attention, or of one MLP, form a `UnitGroup`.
Each group has one *output projection*: the layer whose input columns are the outputs of the units (`attn.proj`,
`mlp.fc2`). A *direction* is one of the K columns of a head. Adapters make these descriptions; all other code only reads
them. Standard library only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

UnitKind = Literal["heads", "neurons"]
UNIT_KINDS: tuple[UnitKind, ...] = ("heads", "neurons")


@dataclass(frozen=True, kw_only=True)
class TensorCut:
    """Where one parameter or buffer stores the units of a group.

    A fused qkv weight stores each head as three ranges of rows: `dim=0, width=head_dim, repeats=3`.

    Attributes:
        name: name of the tensor in the model.
        dim: the dimension along which the units lie.
        width: number of consecutive entries of one unit.
        repeats: how many times one unit occurs; all units come once before the first one comes again.
        first: index of the first entry of the first unit.
    """

    name: str
    dim: int
    width: int = 1
    repeats: int = 1
    first: int = 0


@dataclass(frozen=True, kw_only=True)
class HeadRows:
    """Where one tensor stores the queries, the keys or the values of all heads of an attention, along dimension 0.

    Attributes:
        name: name of the tensor in the model.
        width: number of consecutive entries of one head.
        stride: distance between the first entries of two neighbouring heads.
        first: index of the first entry of the first head.
    """

    name: str
    width: int
    stride: int
    first: int = 0

    def end(self, count: int) -> int:
        """One after the last entry of `count` heads."""
        return self.first + (count - 1) * self.stride + self.width


@dataclass(frozen=True, kw_only=True)
class Directions:
    """What narrowing an attention needs: where its heads store their directions, and what one direction costs.

    Of `queries`, `keys` and `values`, the first entry is a weight `(rows, D, ...)`, and the others are biases.

    Attributes:
        queries, keys: both empty if only values can be narrowed.
        values: the columns of the output projection belong to them.
        query_input, key_input: names of the modules whose input the weights of queries and keys multiply.
        only_values: why queries and keys cannot be narrowed; empty if they can.
        params, macs: cost of one direction of one head.
    """

    values: tuple[HeadRows, ...]
    queries: tuple[HeadRows, ...] = ()
    keys: tuple[HeadRows, ...] = ()
    query_input: str = ""
    key_input: str = ""
    only_values: str = ""
    params: int = 0
    macs: int = 0


@dataclass(frozen=True, kw_only=True)
class UnitGroup:
    """All heads of one attention, or all neurons of one MLP.

    Attributes:
        kind: heads or neurons.
        key: the group's key in the plan: its kind, or `heads.1`, `neurons.1` for a second group in the same block.
        count: number of units.
        output_proj: name of the output projection: a linear layer (columns last) or a convolution (channels first).
        width: input columns of the output projection for each unit: the head width K for heads, 1 for neurons.
        first: the first input column of the output projection that belongs to the group.
        cuts: every tensor that stores a part of each unit.
        params, macs: cost of one unit. Multiply-adds are for one image and include attention products.
        residual_scale: how the block adds the output of the output projection to the residual stream. None: not known,
            so it must be measured. Empty: it is added unchanged. Otherwise: name of the parameter `(D,)` that
            multiplies each channel before the addition, such as `blocks.3.ls1.gamma`.
        not_prunable: why no unit can be removed exactly; empty if units can be removed. If there is a reason,
            `output_proj` and `cuts` may be empty.
        directions: what narrowing the heads needs; None if they cannot be narrowed.
        not_narrowable: why heads cannot be narrowed; empty if they can, and for neurons.
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
    residual_scale: str | None = None
    not_prunable: str = ""
    directions: Directions | None = None
    not_narrowable: str = ""

    def params_at(self, width: int) -> int:
        """Parameters of one head that is narrowed to this width."""
        return self.params - (self.width - width) * self.directions.params if self.directions else self.params

    def macs_at(self, width: int) -> int:
        """Multiply-adds of one head that is narrowed to this width."""
        return self.macs - (self.width - width) * self.directions.macs if self.directions else self.macs


@dataclass(frozen=True, kw_only=True)
class BlockStructure:
    """One residual block.

    Attributes:
        name: module name, such as `blocks.3`. Blocks whose names differ only in the last part form a *stage*.
        groups: its attentions and MLPs, in the order in which they run.
        params, macs: cost of the block without its units (norms, biases of the output projections, layer scale).
        state: position of the hidden state among the block's arguments.
        qkv: name of the layer whose output is queries, keys and values `(B, N, 3*H*K)`; empty if there is none.
        cuts: tensors outside the block that hold one entry for each block of the model along `dim`.
        not_prunable: why the block cannot be removed; empty if it can be removed.
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
        """Name of the module that holds the blocks of this stage."""
        return self.name.rpartition(".")[0]

    @property
    def heads(self) -> UnitGroup:
        """The heads of the first attention; a group of 0 heads if the block has no attention."""
        return self.group("heads")

    @property
    def neurons(self) -> UnitGroup:
        """The neurons of the first MLP; a group of 0 neurons if the block has no MLP."""
        return self.group("neurons")

    def group(self, key: str) -> UnitGroup:
        """The group with this key; a group of 0 units if the block has none."""
        for group in self.groups:
            if group.key == key:
                return group
        kind: UnitKind = "heads" if key.startswith("heads") else "neurons"
        return UnitGroup(kind=kind, key=key, count=0, not_prunable=f"`{self.name}` has no {key}")


@dataclass(frozen=True, kw_only=True)
class ViTStructure:
    """A whole model.

    Attributes:
        model: the library's name of the architecture.
        family: name of the model's class.
        img_size: height and width of the images.
        in_chans: number of image channels.
        num_classes: number of logits; 0 if there is no classifier.
        embed_dim, num_tokens: width and length of the hidden state after the last block.
        blocks: the blocks in the order in which they run.
        params, macs: cost of everything outside the blocks. Multiply-adds are for one image.
        skipped_parts: attentions and MLPs that vitrim does not prune and of whose units it knows nothing: those outside
            the blocks, and those in a block that it does not know. Each is a name with the reason.
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

    def narrowed(self, width: int) -> "ViTStructure":
        """The structure with heads of at most this width, where they can be narrowed. Only its costs are meant.

        Where tensors store the narrowed heads is not stated; `describe` states it for the narrowed model.
        """
        blocks = []
        for block in self.blocks:
            groups = [
                replace(group, width=width, params=group.params_at(width), macs=group.macs_at(width))
                if group.directions and width < group.width
                else group
                for group in block.groups
            ]
            blocks.append(replace(block, groups=tuple(groups)))
        return replace(self, blocks=tuple(blocks))

    @property
    def max_narrowable_width(self) -> int:
        """The largest head width K of the attentions that can be narrowed; 0 if there is none."""
        return max((group.width for block in self.blocks for group in block.groups if group.directions), default=0)

    def matched_teacher_blocks(self, kept: Sequence[int]) -> list[int]:
        """The teacher block whose output the output of each kept block should match.

        It is the kept block itself, or the last of the removed blocks that follow it in the same stage: after removed
        blocks, the student's hidden state should match the teacher's hidden state after the last removed block.

        Args:
            kept: indices of the kept blocks, sorted.

        Returns:
            One block index for each kept block.
        """
        matched = []
        for block, next_kept in zip(kept, [*kept[1:], len(self.blocks)], strict=True):
            stage = self.blocks[block].stage
            matched.append(max(index for index in range(block, next_kept) if self.blocks[index].stage == stage))
        return matched
