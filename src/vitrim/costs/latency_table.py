"""What heads, neurons and blocks cost in milliseconds on one device: measured once, kept, read as a table.

Whole models are timed, in turns with the dense one: all groups of units of one kind are narrowed together, so that
every part runs where it will run, and what it saves stands well above the noise. Measurements are kept in the user's
cache folder under everything that they depend on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path
from scipy.optimize import isotonic_regression
from torch import nn

from vitrim.costs.counting import Key, PartCosts
from vitrim.costs.latency import LatencySettings, forward_passes, run_device, time_in_turns
from vitrim.errors import CheckpointMismatch
from vitrim.hooks import eval_mode
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.runs.environment import device_name
from vitrim.runs.files import read_json, write_text
from vitrim.runs.progress import log, track
from vitrim.structure import UnitGroup, ViTStructure
from vitrim.surgery import prune

FORMAT = 1
MAX_ROUNDS, MIN_ROUNDS, WARMUP = 21, 7, 3
SECONDS_FOR_A_MODEL = 10.0  # fewer rounds where they would take longer
SHARES = tuple(eighth / 8 for eighth in range(1, 8))
FEW_SHARES = (0.25, 0.5, 0.75)  # where there are many kinds of groups
MANY_KINDS = 2
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS_APART = 8  # multiples up to an eighth of the width: more would cut widths that are no neighbours
SLOWER = 0.02  # what neurons in one multiple may take more than in the fastest one: within the noise


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Which share of a dense model's time is saved by narrowing all groups of a kind to a share of their units.

    Attributes:
        units: by kind of group, as `stage key`: pairs of (share of the units that is kept, share of the time saved).
        blocks: by stage, the share of the time that one block less saves.
    """

    units: dict[str, list[tuple[float, float]]]
    blocks: dict[str, float]

    @classmethod
    def from_dict(cls, data: Any) -> "LatencyTable":
        """From what `asdict` and JSON make of one."""
        units = {kind: [(share, saved) for share, saved in rows] for kind, rows in data["units"].items()}
        return cls(units=units, blocks=data["blocks"])

    def times(self, structure: ViTStructure, dense_ms: float) -> PartCosts:
        """The table in milliseconds of a dense model that takes `dense_ms`, group by group."""
        units: dict[Key, np.ndarray] = {}
        for kind, members in _kinds(structure).items():
            shares, costs = _curve(self.units.get(kind, []))
            whole = sum(group.count * group.macs for _, group in members) or 1
            for block, group in members:
                part = dense_ms * group.count * group.macs / whole
                kept = np.arange(group.count + 1) / max(group.count, 1)
                units[block, group.key] = part * np.interp(kept, shares, costs)
        blocks = []
        for index, whole_block in enumerate(structure.blocks):
            own = sum(float(units[index, group.key][-1]) for group in whole_block.groups)
            blocks.append(max(0.0, dense_ms * self.blocks.get(whole_block.stage, 0.0) - own))
        inside = sum(blocks) + sum(float(values[-1]) for values in units.values())
        found = PartCosts(fixed=max(0.0, dense_ms - inside), blocks=tuple(blocks), units=units)
        return found.scaled(dense_ms / max(dense_ms, inside))  # savings that add up to more than all were mismeasured


def latency_table(model: nn.Module, settings: LatencySettings) -> LatencyTable:
    """The table of this model on the device that `settings` name; measured, or read from the cache."""
    return LatencyTable.from_dict(_cached("table", model, settings, lambda: asdict(_measure(model, settings))))


def fast_multiple(model: nn.Module, settings: LatencySettings, share: float) -> int:
    """The least multiple to which widths of MLPs should be rounded near this share of their neurons.

    Widths next to each other are timed, each a multiple of 1, 2, 4, ... and of no higher power of two; what a neuron
    more or less takes is told by the dense width and half of it. The least multiple that is about as fast as the best
    one wins.
    """
    return int(_cached(f"multiple {share:g}", model, settings, lambda: _measure_multiple(model, settings, share)))


def _measure(model: nn.Module, settings: LatencySettings) -> LatencyTable:
    structure = describe(model)
    kinds = {name: members for name, members in _kinds(structure).items() if not members[0][1].not_prunable}
    plans: dict[tuple[str, float], PruningPlan] = {}
    for kind, members in kinds.items():
        for share in SHARES if len(kinds) <= MANY_KINDS else FEW_SHARES:
            counts = {(block, group.key): max(1, round(share * group.count)) for block, group in members}
            plans[kind, share] = _first_units(structure, counts)
    for stage in dict.fromkeys(block.stage for block in structure.blocks):
        free = [
            index for index, found in enumerate(structure.blocks) if found.stage == stage and not found.not_prunable
        ]
        if len(free) > 1:
            plans[stage, 0.0] = _without(structure, free[len(free) // 2 :])
    saved = _savings(model, list(plans.values()), settings, "timing heads, neurons and blocks")
    units: dict[str, list[tuple[float, float]]] = {}
    blocks: dict[str, float] = {}
    for (name, _), plan, save in zip(plans, plans.values(), saved, strict=True):
        if name in kinds:
            units.setdefault(name, []).append((_share_kept(plan, kinds[name]), save))
        else:
            blocks[name] = max(0.0, save) / (len(structure.blocks) - len(plan.blocks))
    return LatencyTable(units=units, blocks=blocks)


def _measure_multiple(model: nn.Module, settings: LatencySettings, share: float) -> int:
    structure = describe(model)
    neurons = {
        (index, group.key): group.count
        for index, block in enumerate(structure.blocks)
        for group in block.groups
        if group.kind == "neurons" and not group.not_prunable
    }
    multiples = [k for k in MULTIPLES if all(WIDTHS_APART * k <= share * count for count in neurons.values())]
    if not neurons or len(multiples) < 2:
        return 1
    most = 2 * multiples[-1]
    round_widths = {key: int(share * count // most) * most for key, count in neurons.items()}
    widths = [{key: width - k for key, width in round_widths.items()} for k in multiples]
    half = {key: count // 2 for key, count in neurons.items()}
    plans = [_first_units(structure, found) for found in (half, *widths)]
    saved_by_half, *saved = _savings(model, plans, settings, "timing round and odd widths", interleaved=True)
    neuron = saved_by_half / sum(count - half[key] for key, count in neurons.items())
    at_round_widths = [k * len(neurons) * neuron - save for k, save in zip(multiples, saved, strict=True)]
    margin = SLOWER * neuron * sum(round_widths.values())
    return next(k for k, time in zip(multiples, at_round_widths, strict=True) if time <= min(at_round_widths) + margin)


def _savings(
    model: nn.Module, plans: list[PruningPlan], settings: LatencySettings, about: str, *, interleaved: bool = False
) -> list[float]:
    """The share of the dense model's time that each plan saves; one after the other, or all in turns."""
    device = run_device(model, settings)
    with torch.no_grad(), eval_mode(model):
        (dense,) = forward_passes([model], settings)
        timing = replace(settings, rounds=_rounds(dense, settings, device), warmup=WARMUP)
        if interleaved:
            passes = forward_passes([prune(model, plan) for plan in plans], settings)
            found = time_in_turns([dense, *passes], timing, device)[1:]
        else:
            found = [
                time_in_turns([dense, *forward_passes([prune(model, plan)], settings)], timing, device, bar=False)[1]
                for plan in track(plans, about)
            ]
    return [1 - latency.ratio for latency in found]


def _rounds(dense: Callable[[], object], settings: LatencySettings, device: torch.device) -> int:
    (once,) = time_in_turns([dense], replace(settings, rounds=1, warmup=1), device)
    return min(MAX_ROUNDS, max(MIN_ROUNDS, int(500 * SECONDS_FOR_A_MODEL / once.median_ms)))  # two models a round


def _kinds(structure: ViTStructure) -> dict[str, list[tuple[int, UnitGroup]]]:
    """The groups that are narrowed together: of one stage and one key, with the blocks where they are."""
    found: dict[str, list[tuple[int, UnitGroup]]] = {}
    for index, block in enumerate(structure.blocks):
        for group in block.groups:
            not_prunable = " locked" if group.not_prunable else ""
            found.setdefault(f"{block.stage} {group.key}{not_prunable}", []).append((index, group))
    return found


def _first_units(structure: ViTStructure, counts: Mapping[Key, int]) -> PruningPlan:
    """The plan that keeps so many units of these groups, whichever, and all others: time does not tell them apart."""
    blocks = tuple(
        KeptBlock.of(index, {group.key: range(counts.get((index, group.key), group.count)) for group in block.groups})
        for index, block in enumerate(structure.blocks)
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def _without(structure: ViTStructure, gone: list[int]) -> PruningPlan:
    full = PruningPlan.full(structure)
    return replace(full, blocks=tuple(kept for kept in full.blocks if kept.block not in gone))


def _share_kept(plan: PruningPlan, members: list[tuple[int, UnitGroup]]) -> float:
    """Which share of the kind's multiply-adds the plan keeps."""
    kept = {block.block: block for block in plan.blocks}
    left = sum(len(kept[block].units(group.key)) * group.macs for block, group in members)
    return left / sum(group.count * group.macs for _, group in members)


def _curve(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Shares kept, from 0 to 1, and what the units then cost, as a share of the dense time; it never falls.

    At 0 stands the straight line through all points: what no unit would cost cannot be measured.
    """
    if not points:
        return np.array([0.0, 1.0]), np.zeros(2)
    shares, saved = np.array(sorted([*points, (1.0, 0.0)])).T
    _, at_none = np.polyfit(shares, saved, 1)
    rising = isotonic_regression(-saved).x
    start = min(-at_none, rising[0])
    return np.append(0.0, shares), np.append(0.0, rising - start)


def _cached(what: str, model: nn.Module, settings: LatencySettings, make: Callable[[], Any]) -> Any:
    """What was measured under the same circumstances, else what is measured now; a cache that fails is done without."""
    about = {"format": FORMAT, "what": what, **_circumstances(model, settings)}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = user_cache_path("vitrim") / "latency" / f"{name}.json"
    try:
        found = read_json(path)
        log(f"latency: taken from {path}; delete it to measure anew")
        return found["found"]
    except (OSError, CheckpointMismatch, KeyError, TypeError):
        pass
    found = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"about": about, "found": found}, indent=1) + "\n")
    except OSError as problem:
        log(f"latency: cannot keep the measurement in {path} ({problem.strerror})")
    return found


def _circumstances(model: nn.Module, settings: LatencySettings) -> dict[str, Any]:
    """All that a measured time depends on."""
    packages = ["torch", "vitrim", *(["onnxruntime"] if settings.on == "onnxruntime" else [])]
    return {
        "model": asdict(describe(model)),
        "dtype": str(next(model.parameters()).dtype),
        "on": settings.on,
        "batch_size": settings.batch_size,
        "device": device_name(run_device(model, settings)),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }
