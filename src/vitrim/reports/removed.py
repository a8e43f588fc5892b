"""The map of what was removed: for each block of the dense model, which heads and how many neurons are kept."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vitrim.importance.scores import Scores
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import UNIT_KINDS, UnitGroup, ViTStructure

DIGITS = 6  # after the point, of a fraction


def block_rows(structure: ViTStructure, plan: PruningPlan, scores: Scores | None) -> list[dict[str, Any]]:
    """The entry `blocks` of `details.json`.

    Importance is a fraction of the sum over the whole model: over its blocks, its heads, or its neurons. It is None if
    there are no scores, or if a part cannot be removed. Negative scores, as some criteria have them, count as 0.

    Args:
        structure: of the dense model.
        plan: its indices refer to the dense model.
        scores: of the dense model, see also `scores_in_dense`; None if they are missing.
    """
    kept = {block.block: block for block in plan.blocks}
    blocks = _fractions(None if scores is None else scores.blocks, _total([] if scores is None else [scores.blocks]))
    totals = {kind: _total(_scores_of_kind(structure, scores, kind)) for kind in UNIT_KINDS}
    return [
        {
            "name": block.name,
            "is_kept": index in kept,
            "importance": blocks[index] if blocks else None,
            "groups": [
                _group_row(group, kept.get(index), _of_group(group, index, scores), totals[group.kind])
                for group in block.groups
            ],
        }
        for index, block in enumerate(structure.blocks)
    ]


def scores_in_dense(scores: Scores, plan: PruningPlan, structure: ViTStructure) -> Scores:
    """The scores of a smaller model as scores of the dense one. Parts that the smaller model lacks are not a number.

    Args:
        scores: of a model that `plan` leaves.
        plan: its indices refer to the dense model.
        structure: of the dense model.
    """
    rows: list[dict[str, np.ndarray]] = [
        {group.key: np.full(group.count, np.nan) for group in block.groups} for block in structure.blocks
    ]
    blocks = np.full(len(structure.blocks), np.nan)
    for position, kept in enumerate(plan.blocks):
        blocks[kept.block] = scores.blocks[position]
        for key, values in rows[kept.block].items():
            values[list(kept.units(key))] = scores.group(key, position)
    return replace(
        scores,
        heads=tuple(row.get("heads", np.zeros(0)) for row in rows),
        neurons=tuple(row.get("neurons", np.zeros(0)) for row in rows),
        blocks=blocks,
        more=tuple({key: row[key] for key in row if key not in UNIT_KINDS} for row in rows),
    )


def _group_row(group: UnitGroup, block: KeptBlock | None, scores: np.ndarray | None, total: float) -> dict[str, Any]:
    """One entry of `groups`: the heads of an attention or the neurons of an MLP."""
    kept = block.units(group.key) if block else ()
    row: dict[str, Any] = {"key": group.key, "kind": group.kind, "count": group.count, "num_kept": len(kept)}
    if group.kind == "heads":
        row |= {"kept": list(kept), "width": group.width, "kept_width": block.width(group) if block else 0}
        row["importance"] = _fractions(scores, total)
    else:
        row["importance_total"] = None if scores is None or not total else round(_total([scores]) / total, DIGITS)
    own = 0.0 if scores is None else _total([scores])
    row["importance_kept"] = None if scores is None or not own else round(_total([scores[list(kept)]]) / own, DIGITS)
    return row


def _of_group(group: UnitGroup, block: int, scores: Scores | None) -> np.ndarray | None:
    """The scores of a group; None if there are none. Those of units that cannot be removed mean nothing."""
    if scores is None or group.not_prunable:
        return None
    return scores.group(group.key, block)


def _scores_of_kind(structure: ViTStructure, scores: Scores | None, kind: str) -> list[np.ndarray]:
    groups = [(index, group) for index, block in enumerate(structure.blocks) for group in block.groups]
    found = [_of_group(group, index, scores) for index, group in groups if group.kind == kind]
    return [one for one in found if one is not None]


def _total(scores: Sequence[np.ndarray]) -> float:
    """The sum of all finite scores above 0."""
    return float(sum(values[np.isfinite(values)].clip(min=0).sum() for values in scores))


def _fractions(scores: np.ndarray | None, total: float) -> list[float | None] | None:
    """Each score as a fraction of a total; None for those that are infinite."""
    if scores is None or not total:
        return None
    return [round(max(0.0, one) / total, DIGITS) if np.isfinite(one) else None for one in scores.tolist()]
