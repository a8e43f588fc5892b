"""The pruning plan: which heads, neurons and blocks are kept, counted in the dense model. Standard library only.

A plan decides nothing and cuts nothing. It is what one prints, reviews, edits by hand, and stores beside the weights.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from vitrim.errors import PlanMismatch
from vitrim.structure import BlockStructure, ViTStructure

FORMAT = 1
_MORE_UNITS = re.compile(r"(heads|neurons)\.[1-9][0-9]*")


@dataclass(frozen=True, kw_only=True)
class KeptBlock:
    """One block that stays: its index in the dense model and the sorted indices of its kept heads and neurons.

    A block without attention keeps no heads, one without an MLP no neurons. `more` holds `(key, kept)` for further
    groups of units, where a block has two attentions or two MLPs.
    """

    block: int
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    more: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __post_init__(self) -> None:
        for key, kept in self.items():
            if list(kept) != sorted(set(kept)) or (kept and kept[0] < 0):
                raise PlanMismatch(
                    f"The {key} of block {self.block} in the plan are not sorted, distinct indices from 0."
                )

    @classmethod
    def of(cls, block: int, units: Mapping[str, Iterable[int]]) -> Self:
        """From kept units by key."""
        kept = {key: tuple(indices) for key, indices in units.items()}
        more = tuple(sorted((key, indices) for key, indices in kept.items() if key not in ("heads", "neurons")))
        return cls(block=block, heads=kept.get("heads", ()), neurons=kept.get("neurons", ()), more=more)

    def items(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return (("heads", self.heads), ("neurons", self.neurons), *self.more)

    def units(self, key: str) -> tuple[int, ...]:
        return dict(self.items()).get(key, ())


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
    def full(cls, structure: ViTStructure) -> Self:
        """The plan that keeps everything of a model of this structure."""
        blocks = (
            KeptBlock.of(index, {group.key: range(group.count) for group in block.groups})
            for index, block in enumerate(structure.blocks)
        )
        return cls(model=structure.model, blocks=tuple(blocks))

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
            units = {key: _pick(before.units(key), indices, key) for key, indices in kept.items()}
            blocks.append(KeptBlock.of(before.block, units))
        return PruningPlan(model=self.model, blocks=tuple(blocks))

    def check(self, structure: ViTStructure) -> None:
        """Raise `PlanMismatch` unless the plan can cut a model of this structure."""
        for kept in self.blocks:
            if kept.block >= len(structure.blocks):
                raise PlanMismatch(
                    f"The plan keeps block {kept.block}, but the model has blocks 0..{len(structure.blocks) - 1}. "
                    f"The plan was made for `{self.model}`, the model is `{structure.model}`."
                )
            _check_units(kept, structure.blocks[kept.block], f"`{self.model}`, the model is `{structure.model}`")
        gone = set(range(len(structure.blocks))) - {kept.block for kept in self.blocks}
        for index in sorted(gone):
            if structure.blocks[index].not_prunable:
                raise PlanMismatch(
                    f"The plan removes block {index}, which cannot be: {structure.blocks[index].not_prunable}."
                )

    def keeps_all(self, structure: ViTStructure) -> bool:
        return self.blocks == PruningPlan.full(structure).blocks

    def to_dict(self) -> dict[str, Any]:
        blocks = [{"block": b.block, **{key: list(kept) for key, kept in b.items()}} for b in self.blocks]
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
                KeptBlock.of(
                    _index(b["block"]),
                    {"heads": _indices(b["heads"]), "neurons": _indices(b["neurons"])}
                    | {key: _indices(kept) for key, kept in b.items() if _MORE_UNITS.fullmatch(key)},
                )
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


def _check_units(kept: KeptBlock, block: BlockStructure, names: str) -> None:
    """Raise `PlanMismatch` unless the block has these units and may lose the others."""
    for key in [group.key for group in block.groups] + [key for key, units in kept.items() if units]:
        group, units = block.group(key), kept.units(key)
        if group.count and not units:
            raise PlanMismatch(
                f"The plan keeps no {key} in block {kept.block}; keep at least one, or leave the block out."
            )
        if units and units[-1] >= group.count:
            outside = [unit for unit in units if unit >= group.count][:5]
            has = f"{key} 0..{group.count - 1}" if group.count else f"no {key}"
            raise PlanMismatch(
                f"The plan keeps {key} {outside} of block {kept.block}, but that block has {has}. "
                f"The plan was made for {names}."
            )
        if group.not_prunable and len(units) < group.count:
            raise PlanMismatch(
                f"The plan removes {key} of block {kept.block}, which cannot be cut: {group.not_prunable}."
            )


def _pick(before: tuple[int, ...], kept: tuple[int, ...], kind: str) -> tuple[int, ...]:
    if kept and kept[-1] >= len(before):
        raise PlanMismatch(f"The later plan keeps {kind} {kept[-1]} where only {len(before)} are left.")
    return tuple(before[index] for index in kept)
