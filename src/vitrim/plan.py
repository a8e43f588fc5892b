"""The pruning plan: which heads, neurons and blocks are kept, as indices in the dense model.

Plain data that people print, review, edit by hand and store next to the weights. How a plan is chosen is in
`allocation`; `surgery` applies it. Standard library only.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from vitrim.errors import PlanMismatch, counted, shown
from vitrim.structure import BlockStructure, UnitGroup, ViTStructure

FORMAT = 1
_MORE_UNITS = re.compile(r"(heads|neurons)\.[1-9][0-9]*")
_HEAD_WIDTH = re.compile(r"head_width(\.[1-9][0-9]*)?")  # the width of the heads of the group `heads`, `heads.1`, ...


@dataclass(frozen=True, kw_only=True)
class KeptBlock:
    """One kept block and its kept units.

    Attributes:
        block: index of the block in the dense model.
        heads: sorted indices of the kept heads; empty if the block has no attention.
        neurons: sorted indices of the kept neurons; empty if the block has no MLP.
        more: `(key, kept)` for further groups of units, if the block has two attentions or two MLPs.
        head_widths: `(key, width)` for each attention whose heads are narrowed: of each head, the first `width`
            directions are kept. Heads of an attention that is not listed keep their width.

    Raises:
        PlanMismatch: indices are negative, not sorted, or not distinct, or a width is below 1.
    """

    block: int
    heads: tuple[int, ...] = ()
    neurons: tuple[int, ...] = ()
    more: tuple[tuple[str, tuple[int, ...]], ...] = ()
    head_widths: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for key, width in self.head_widths:
            if width < 1:
                raise PlanMismatch(
                    f"The plan narrows the {key} of block {self.block} to width {width}; expected at least 1."
                )
        for key, kept in self.items():
            if list(kept) != sorted(set(kept)) or (kept and kept[0] < 0):
                raise PlanMismatch(
                    f"The plan keeps {key} {list(kept)[:5]} of block {self.block}; "
                    "expected sorted, distinct indices from 0."
                )

    @classmethod
    def of(cls, block: int, units: Mapping[str, Iterable[int]], widths: Mapping[str, int] | None = None) -> Self:
        """Build from the kept units of every group and the widths of narrowed heads, by the group's key."""
        kept = {key: tuple(indices) for key, indices in units.items()}
        more = tuple(sorted((key, indices) for key, indices in kept.items() if key not in ("heads", "neurons")))
        return cls(
            block=block,
            heads=kept.get("heads", ()),
            neurons=kept.get("neurons", ()),
            more=more,
            head_widths=tuple(sorted((widths or {}).items())),
        )

    def items(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The kept units of every group, as `(key, indices)`."""
        return (("heads", self.heads), ("neurons", self.neurons), *self.more)

    def units(self, key: str) -> tuple[int, ...]:
        """The kept units of the group with this key; empty if the plan has no such key."""
        return dict(self.items()).get(key, ())

    def width(self, group: UnitGroup) -> int:
        """The number of columns that each unit of this group keeps."""
        return dict(self.head_widths).get(group.key, group.width)

    def shrinks(self, group: UnitGroup) -> bool:
        """Whether the plan removes units of this group or narrows its heads."""
        return len(self.units(group.key)) < group.count or self.width(group) < group.width


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """What is kept of a model. A block that is not listed is removed.

    Attributes:
        model: name of the dense model's architecture.
        blocks: one entry for each kept block, in order.

    Raises:
        PlanMismatch: no block is kept, or the blocks are not distinct and in order.
    """

    model: str
    blocks: tuple[KeptBlock, ...]

    def __post_init__(self) -> None:
        kept = [block.block for block in self.blocks]
        if not kept:
            raise PlanMismatch("The plan keeps no block. A model needs at least one block.")
        if kept != sorted(set(kept)) or kept[0] < 0:
            raise PlanMismatch(f"The plan lists blocks {kept}; expected distinct indices in order, 0 or above.")

    @classmethod
    def full(cls, structure: ViTStructure) -> Self:
        """The plan that keeps everything in a model of this structure."""
        blocks = (
            KeptBlock.of(index, {group.key: range(group.count) for group in block.groups})
            for index, block in enumerate(structure.blocks)
        )
        return cls(model=structure.model, blocks=tuple(blocks))

    def with_head_widths(self, structure: ViTStructure, width: int) -> "PruningPlan":
        """The same plan with heads of at most this width in every attention that can be narrowed.

        Args:
            structure: of the model that the plan's indices refer to.
        """
        blocks = []
        for kept in self.blocks:
            widths = dict(kept.head_widths)
            for group in structure.blocks[kept.block].groups:
                if group.directions and width < kept.width(group):
                    widths[group.key] = width
            blocks.append(KeptBlock.of(kept.block, dict(kept.items()), widths))
        return PruningPlan(model=self.model, blocks=tuple(blocks))

    def without_blocks(self, positions: Sequence[int]) -> "PruningPlan":
        """The plan without the blocks at these positions in `self.blocks`.

        Raises:
            PlanMismatch: no block would be left.
        """
        removed = set(positions)
        blocks = tuple(block for position, block in enumerate(self.blocks) if position not in removed)
        return PruningPlan(model=self.model, blocks=blocks)

    def then(self, later: "PruningPlan") -> "PruningPlan":
        """One plan that does the work of two: `self` first, then `later` on the result.

        Args:
            later: a plan whose indices refer to the model that `self` produces.

        Raises:
            PlanMismatch: `later` keeps a block, a unit or a direction that `self` removes.
        """
        blocks = []
        for kept in later.blocks:
            if kept.block >= len(self.blocks):
                raise PlanMismatch(
                    f"The later plan keeps block {kept.block}, "
                    f"but the earlier plan leaves only {counted(len(self.blocks), 'block')}. "
                    "Was the later plan made for the dense model?"
                )
            before = self.blocks[kept.block]
            units = {key: _pick(before.units(key), indices, key) for key, indices in kept.items()}
            blocks.append(KeptBlock.of(before.block, units, _narrower(before, kept)))
        return PruningPlan(model=self.model, blocks=tuple(blocks))

    def check(self, structure: ViTStructure) -> None:
        """Raise `PlanMismatch` unless the plan can be applied to a model of this structure."""
        for kept in self.blocks:
            if kept.block >= len(structure.blocks):
                raise PlanMismatch(
                    f"The plan keeps block {kept.block}, but the model has blocks 0..{len(structure.blocks) - 1}. "
                    f"The plan was made for `{self.model}`, the model is `{structure.model}`."
                )
            _check_units(kept, structure.blocks[kept.block], f"`{self.model}`, the model is `{structure.model}`")
        removed = set(range(len(structure.blocks))) - {kept.block for kept in self.blocks}
        for index in sorted(removed):
            if structure.blocks[index].not_prunable:
                raise PlanMismatch(
                    f"The plan removes block {index}, which must be kept: {structure.blocks[index].not_prunable}."
                )

    def keeps_all(self, structure: ViTStructure) -> bool:
        """Whether the plan keeps every block and every unit of this structure, at full width."""
        kept_blocks = [kept.block for kept in self.blocks]
        return kept_blocks == list(range(len(structure.blocks))) and not any(
            kept.shrinks(group) for kept in self.blocks for group in structure.blocks[kept.block].groups
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `plan.json` as plain data."""
        blocks = [
            {"block": b.block, **{key: list(kept) for key, kept in b.items()}}
            | {_width_key(key): width for key, width in b.head_widths}
            for b in self.blocks
        ]
        return {"format": FORMAT, "model": self.model, "blocks": blocks}

    def to_json(self) -> str:
        """The text of `plan.json`, with one line for each block."""
        head = f'{{"format": {FORMAT}, "model": {json.dumps(self.model)}, "blocks": [\n'
        return head + ",\n".join(json.dumps(block) for block in self.to_dict()["blocks"]) + "\n]}\n"

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Build a plan from what `to_dict` returned. Unknown keys are ignored.

        Raises:
            PlanMismatch: a key is missing, a value has the wrong type, or the format is unknown.
        """
        try:
            if data["format"] != FORMAT:
                raise PlanMismatch(
                    f"The plan has format {data['format']}; this version of vitrim reads format {FORMAT}. "
                    "Install the version that wrote the plan."
                )
            blocks = tuple(
                KeptBlock.of(
                    _whole(b["block"], "block"),
                    {"heads": _indices(b["heads"]), "neurons": _indices(b["neurons"])}
                    | {key: _indices(kept) for key, kept in b.items() if _MORE_UNITS.fullmatch(key)},
                    {
                        key.replace("head_width", "heads"): _whole(width, key)
                        for key, width in b.items()
                        if _HEAD_WIDTH.fullmatch(key)
                    },
                )
                for b in data["blocks"]
            )
            return cls(model=str(data["model"]), blocks=blocks)
        except (KeyError, TypeError) as error:
            raise PlanMismatch(
                f"This is not a pruning plan ({type(error).__name__}: {error}); expected "
                '{"format": 1, "model": NAME, "blocks": [{"block": 0, "heads": [...], "neurons": [...]}, ...]}.'
            ) from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the text of `plan.json`; raises as `from_dict`, and for text that is not JSON."""
        try:
            data = json.loads(text, object_pairs_hook=_without_repeated)
        except json.JSONDecodeError as error:
            raise PlanMismatch(f"The plan is not valid JSON: {error}.") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, PlanMismatch):
                raise
            raise PlanMismatch("The plan is nested too deeply, or has a number of thousands of digits.") from None
        return cls.from_dict(data)


def _without_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that these pairs make. Of a key that is written twice, JSON would keep the last value only."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise PlanMismatch(f"The plan has the key {shown(repeated)} twice in one object. Remove one of them.")
    return found


def _width_key(group_key: str) -> str:
    """The key of a head width in `plan.json`: `head_width` for the group `heads`, `head_width.1` for `heads.1`."""
    return group_key.replace("heads", "head_width")


def _whole(value: Any, name: str) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number")
    return value


def _indices(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise TypeError("heads and neurons must be lists of whole numbers")
    return tuple(values)


def _check_units(kept: KeptBlock, block: BlockStructure, names: str) -> None:
    """Raise `PlanMismatch` unless the block has these units and the others can be removed."""
    for key in [group.key for group in block.groups] + [key for key, units in kept.items() if units]:
        group, units = block.group(key), kept.units(key)
        if group.count and not units:
            raise PlanMismatch(
                f"The plan keeps no {key} in block {kept.block}. Keep at least one, or remove the block from the plan."
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
                f"The plan removes {key} of block {kept.block}, which must all be kept: {group.not_prunable}."
            )
    for key, width in kept.head_widths:
        group = block.group(key)
        if width > group.width or not group.count:
            has = f"they have width {group.width}" if group.count else f"that block has no {key}"
            raise PlanMismatch(
                f"The plan narrows the {key} of block {kept.block} to width {width}, but {has}. "
                f"The plan was made for {names}."
            )
        if width < group.width and group.directions is None:
            reason = group.not_narrowable or group.not_prunable or "they are no heads"
            raise PlanMismatch(
                f"The plan narrows the {key} of block {kept.block} to width {width}, but they must keep their width "
                f"{group.width}: {reason}."
            )


def _narrower(before: KeptBlock, later: KeptBlock) -> dict[str, int]:
    """The head widths of two plans, one after the other."""
    widths = dict(before.head_widths)
    for key, width in later.head_widths:
        if width > widths.get(key, width):
            raise PlanMismatch(
                f"The later plan keeps width {width} of the {key} of block {before.block}, but the earlier plan leaves "
                f"only {widths[key]}. Was the later plan made for the dense model?"
            )
        widths[key] = width
    return widths


def _pick(before: tuple[int, ...], kept: tuple[int, ...], key: str) -> tuple[int, ...]:
    if kept and kept[-1] >= len(before):
        raise PlanMismatch(
            f"The later plan keeps {key} {kept[-1]}, but the earlier plan leaves only {len(before)}. "
            "Was the later plan made for the dense model?"
        )
    return tuple(before[index] for index in kept)
