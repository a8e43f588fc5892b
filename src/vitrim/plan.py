"""The pruning plan: which heads, neurons and blocks are kept, counted in the dense model. Standard library only.

A plan decides nothing and cuts nothing. It is what one prints, reviews, edits by hand, and stores beside the weights.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from vitrim.errors import PlanMismatch

if TYPE_CHECKING:
    from vitrim.structure import UnitKind, ViTStructure

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class KeptBlock:
    """One block that stays: its index in the dense model and the sorted indices of its kept heads and neurons."""

    block: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    def __post_init__(self) -> None:
        for kind, kept in (("heads", self.heads), ("neurons", self.neurons)):
            if not kept:
                raise PlanMismatch(
                    f"The plan keeps no {kind} in block {self.block}; keep at least one, or leave the block out."
                )
            if list(kept) != sorted(set(kept)) or kept[0] < 0:
                raise PlanMismatch(
                    f"The {kind} of block {self.block} in the plan are not sorted, distinct indices from 0."
                )

    def units(self, kind: "UnitKind") -> tuple[int, ...]:
        return self.heads if kind == "heads" else self.neurons


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What is kept of a model. A block that is not listed is removed.

    Attributes:
        model: name of the dense model's architecture.
        blocks: one entry for each block that stays, in order.
    """

    model: str
    blocks: tuple[KeptBlock, ...]

    def __post_init__(self) -> None:
        kept = [block.block for block in self.blocks]
        if not kept:
            raise PlanMismatch("The plan keeps no block; a model needs at least one.")
        if kept != sorted(set(kept)) or kept[0] < 0:
            raise PlanMismatch(f"The plan lists blocks {kept}; they must be distinct, in order, and counted from 0.")

    @classmethod
    def full(cls, model: str, sizes: Sequence[tuple[int, int]]) -> Self:
        """The plan that keeps everything of a model whose blocks have `(num_heads, num_neurons)` as in `sizes`."""
        blocks = tuple(
            KeptBlock(block=index, heads=tuple(range(heads)), neurons=tuple(range(neurons)))
            for index, (heads, neurons) in enumerate(sizes)
        )
        return cls(model=model, blocks=blocks)

    def without_blocks(self, positions: Sequence[int]) -> "PruningPlan":
        """The same plan less the blocks at these positions (counted among the blocks that the plan keeps)."""
        gone = set(positions)
        blocks = tuple(block for position, block in enumerate(self.blocks) if position not in gone)
        return PruningPlan(model=self.model, blocks=blocks)

    def then(self, later: "PruningPlan") -> "PruningPlan":
        """One plan for cutting by `self` and the result by `later`, whose indices count in that result.

        Raises:
            PlanMismatch: `later` keeps something that `self` has removed already.
        """
        blocks = []
        for kept in later.blocks:
            if kept.block >= len(self.blocks):
                raise PlanMismatch(
                    f"The later plan keeps block {kept.block} of a model that has {len(self.blocks)} blocks left."
                )
            before = self.blocks[kept.block]
            heads, neurons = _pick(before.heads, kept.heads, "heads"), _pick(before.neurons, kept.neurons, "neurons")
            blocks.append(KeptBlock(block=before.block, heads=heads, neurons=neurons))
        return PruningPlan(model=self.model, blocks=tuple(blocks))

    def check(self, structure: "ViTStructure") -> None:
        """Raise `PlanMismatch` unless the plan can cut a model of this structure."""
        for kept in self.blocks:
            if kept.block >= len(structure.blocks):
                raise PlanMismatch(
                    f"The plan keeps block {kept.block}, but the model has blocks 0..{len(structure.blocks) - 1}. "
                    f"The plan was made for `{self.model}`, the model is `{structure.model}`."
                )
            block = structure.blocks[kept.block]
            for group, units, kind in ((block.heads, kept.heads, "heads"), (block.neurons, kept.neurons, "neurons")):
                if units[-1] >= group.count:
                    outside = [unit for unit in units if unit >= group.count][:5]
                    raise PlanMismatch(
                        f"The plan keeps {kind} {outside} of block {kept.block}, but that block has {kind} "
                        f"0..{group.count - 1}. The plan was made for `{self.model}`, the model is `{structure.model}`."
                    )
                if group.locked and len(units) < group.count:
                    raise PlanMismatch(
                        f"The plan removes {kind} of block {kept.block}, which cannot be cut: {group.locked}."
                    )
        gone = set(range(len(structure.blocks))) - {kept.block for kept in self.blocks}
        for index in sorted(gone):
            if structure.blocks[index].locked:
                raise PlanMismatch(
                    f"The plan removes block {index}, which cannot be: {structure.blocks[index].locked}."
                )

    def keeps_all(self, structure: "ViTStructure") -> bool:
        return self.blocks == structure.full_plan().blocks

    def to_dict(self) -> dict[str, Any]:
        blocks = [{"block": b.block, "heads": list(b.heads), "neurons": list(b.neurons)} for b in self.blocks]
        return {"format": FORMAT, "model": self.model, "blocks": blocks}

    def to_json(self) -> str:
        """`plan.json`: one line for each block."""
        head = f'{{"format": {FORMAT}, "model": {json.dumps(self.model)}, "blocks": [\n'
        return head + ",\n".join(json.dumps(block) for block in self.to_dict()["blocks"]) + "\n]}\n"

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read what `to_dict` wrote; unknown keys are kept out, missing or mistyped ones raise `PlanMismatch`."""
        try:
            if data["format"] != FORMAT:
                raise PlanMismatch(
                    f"The plan has format {data['format']}; this version of vitrim reads format {FORMAT}."
                )
            blocks = tuple(
                KeptBlock(block=_index(b["block"]), heads=_indices(b["heads"]), neurons=_indices(b["neurons"]))
                for b in data["blocks"]
            )
            return cls(model=str(data["model"]), blocks=blocks)
        except (KeyError, TypeError) as problem:
            raise PlanMismatch(
                f"This is not a pruning plan ({type(problem).__name__}: {problem}); expected "
                '{"format": 1, "model": NAME, "blocks": [{"block": 0, "heads": [...], "neurons": [...]}, ...]}.'
            ) from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as problem:
            raise PlanMismatch(f"The plan is not valid JSON: {problem}.") from None


def _index(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("block must be a whole number")
    return value


def _indices(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError("heads and neurons must be lists of whole numbers")
    return tuple(values)


def _pick(before: tuple[int, ...], kept: tuple[int, ...], kind: str) -> tuple[int, ...]:
    if kept[-1] >= len(before):
        raise PlanMismatch(f"The later plan keeps {kind} {kept[-1]} where only {len(before)} are left.")
    return tuple(before[index] for index in kept)
