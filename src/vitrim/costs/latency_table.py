"""The latency table: how many milliseconds heads, neurons and blocks cost on one device.

Only whole models are timed, each in the same rounds as the dense model. In a timed model, all groups of one kind have
the same fraction of their units, so the difference to the dense model is well above the noise. Measurements are kept in
the user's cache folder. What a plan needs besides the table is in `device`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from platformdirs import user_cache_path
from scipy.optimize import isotonic_regression
from torch import nn

from vitrim.costs.counting import Key, PartCosts
from vitrim.costs.latency import LatencySettings, forward_passes, run_device, time_in_rounds
from vitrim.errors import CheckpointMismatch
from vitrim.hooks import eval_mode
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.runs.digests import digest_of_data
from vitrim.runs.environment import device_name
from vitrim.runs.files import read_json, write_text
from vitrim.runs.progress import log, track
from vitrim.structure import UnitGroup, ViTStructure
from vitrim.surgery import prune

FORMAT = 1  # of a file in the cache
MAX_TABLE_ROUNDS, MIN_TABLE_ROUNDS, TABLE_WARMUP = 21, 7, 3
SECONDS_PER_MODEL = 10.0  # a model that needs longer is timed in fewer rounds
FRACTIONS = tuple(eighth / 8 for eighth in range(1, 8))  # of the units that the timed models keep
COARSE_FRACTIONS = (0.25, 0.5, 0.75)  # with more than MAX_KINDS_FOR_FRACTIONS kinds, which would need many models
MAX_KINDS_FOR_FRACTIONS = 2
WIDTH = " width"  # ends the names of plans that narrow heads
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
MIN_MULTIPLES_IN_WIDTH = 8  # a larger multiple would leave too few widths to choose from
MULTIPLE_TOLERANCE = 0.02  # a multiple is fast if its neurons need at most 2 % longer than those of the fastest one


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Time that smaller models save, as fractions of the dense model's time.

    A kind is all groups with one key in one stage, such as the neurons of all blocks.

    Attributes:
        units: by kind, named `stage key`: pairs of (fraction of the units that is kept, fraction of the time saved).
        blocks: by stage: fraction of the time that the removal of one block saves.
        widths: by kind: pairs of (fraction of the head width that is kept, fraction of the time saved), with all heads.
    """

    units: dict[str, list[tuple[float, float]]]
    blocks: dict[str, float]
    widths: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Any) -> "LatencyTable":
        """Make a table from plain data, as `dataclasses.asdict` and JSON return it."""
        units, widths = (
            {kind: [(kept, saved) for kept, saved in points] for kind, points in data.get(name, {}).items()}
            for name in ("units", "widths")
        )
        return cls(units=units, blocks=data["blocks"], widths=widths)

    def times(self, structure: ViTStructure, dense_ms: float) -> PartCosts:
        """Milliseconds of each part of the dense model.

        A group has a fraction w of its kind's multiply-adds. With k of its n units it costs w * dense_ms * c(k / n),
        where c is the cost curve of the kind. Heads of r of their K directions cost v(r / K) / v(1) of that, where v is
        the cost curve of the widths of the kind; it is a straight line where no width was timed. A block without its
        units costs what its removal saves, minus the cost of all its units. The rest of `dense_ms` is fixed. If the
        parts add up to more than `dense_ms`, they are scaled down.

        Args:
            structure: of the dense model.
            dense_ms: milliseconds of a forward pass of the dense model.
        """
        units: dict[Key, np.ndarray] = {}
        narrow: dict[Key, np.ndarray] = {}
        for kind, members in _groups_by_kind(structure).items():
            fractions, costs = _cost_curve(self.units.get(kind, []))
            kind_macs = sum(group.count * group.macs for _, group in members) or 1
            for block, group in members:
                group_ms = dense_ms * group.count * group.macs / kind_macs
                kept = np.arange(group.count + 1) / max(group.count, 1)
                units[block, group.key] = group_ms * np.interp(kept, fractions, costs)
                if group.directions:
                    narrow[block, group.key] = np.outer(units[block, group.key], self._by_width(kind, group.width))
        blocks = []
        for index, block_structure in enumerate(structure.blocks):
            units_ms = sum(float(units[index, group.key][-1]) for group in block_structure.groups)
            blocks.append(max(0.0, dense_ms * self.blocks.get(block_structure.stage, 0.0) - units_ms))
        parts_ms = sum(blocks) + sum(float(values[-1]) for values in units.values())
        found = PartCosts(fixed=max(0.0, dense_ms - parts_ms), blocks=tuple(blocks), units=units, narrow=narrow)
        return found.scaled(dense_ms / max(dense_ms, parts_ms))

    def _by_width(self, kind: str, width: int) -> np.ndarray:
        """The cost of a head of 0, 1, ..., K directions, as a fraction of that of a whole head, `(K + 1,)`."""
        fractions, costs = _cost_curve(self.widths.get(kind, []))
        kept = np.arange(width + 1) / width
        return np.interp(kept, fractions, costs) / costs[-1] if costs[-1] > 0 else kept


def latency_table(model: nn.Module, settings: LatencySettings) -> LatencyTable:
    """The latency table of a dense model; measured, or read from the cache.

    Args:
        model: the dense model. It is not changed.
        settings: runtime and batch size. The number of rounds is chosen here.

    Raises:
        SettingError: the runtime is missing. ExportFailed: a model cannot be exported to ONNX.
    """
    return LatencyTable.from_dict(_read_or_measure("table", model, settings, lambda: asdict(_measure(model, settings))))


def fast_multiple(model: nn.Module, settings: LatencySettings, fraction: float) -> int:
    """The multiple to which the widths of MLPs should be rounded, because such widths are fast on the device.

    Near `fraction` of the dense width, one width is timed for each multiple k in `MULTIPLES`. It is k below a round
    width, so it is a multiple of k, but not of 2k. To compare these widths, the time of k neurons is added to each one.
    The time of one neuron is measured with half of all neurons. The result is the smallest multiple whose time is
    within `MULTIPLE_TOLERANCE` of the fastest one.

    Args:
        model: the dense model. It is not changed.
        settings: runtime and batch size. The number of rounds is chosen here.
        fraction: of the neurons that the smaller model will keep.

    Returns:
        The multiple; 1 if the widths are too small for a choice, or if no neuron can be removed.

    Raises:
        SettingError: the runtime is missing. ExportFailed: a model cannot be exported to ONNX.
    """
    name = f"multiple {fraction:g}"
    return int(_read_or_measure(name, model, settings, lambda: _measure_multiple(model, settings, fraction)))


def measure_savings(
    model: nn.Module, plans: list[PruningPlan], settings: LatencySettings, label: str, *, interleaved: bool = False
) -> list[float]:
    """Measure which fraction of the dense model's time each plan saves.

    Args:
        model: the dense model.
        plans: each makes one model that is timed.
        settings: runtime and batch size.
        label: text of the progress bar.
        interleaved: run all models in the same rounds. This compares them best, but all are in memory. By default one
            model after the other is made and timed, always in the same rounds as the dense model.
    """
    device = run_device(model, settings)
    with torch.no_grad(), eval_mode(model):
        (dense,) = forward_passes([model], settings)
        timing = replace(settings, rounds=_num_rounds(dense, settings, device), warmup=TABLE_WARMUP)
        if interleaved:
            passes = forward_passes([prune(model, plan) for plan in plans], settings)
            found = time_in_rounds([dense, *passes], timing, device)[1:]
        else:
            found = []
            for plan in track(plans, label):
                passes = [dense, *forward_passes([prune(model, plan)], settings)]
                found.append(time_in_rounds(passes, timing, device, progress_bar=False)[1])
    return [1 - latency.ratio for latency in found]


def _measure(model: nn.Module, settings: LatencySettings) -> LatencyTable:
    structure = describe(model)
    kinds = {kind: members for kind, members in _groups_by_kind(structure).items() if not members[0][1].not_prunable}
    plans: dict[tuple[str, float], PruningPlan] = {}  # by kind and fraction kept, or by stage and 0
    narrow = {
        (f"{kind}{WIDTH}", fraction): plan
        for kind, members in _groups_by_kind(structure).items()
        for fraction, plan in _narrow_plans(structure, members).items()
    }
    for kind, members in kinds.items():
        for fraction in FRACTIONS if len(kinds) <= MAX_KINDS_FOR_FRACTIONS else COARSE_FRACTIONS:
            counts = {(block, group.key): max(1, round(fraction * group.count)) for block, group in members}
            plans[kind, fraction] = _plan_with_counts(structure, counts)
    for stage in dict.fromkeys(block.stage for block in structure.blocks):
        removable = [
            index for index, block in enumerate(structure.blocks) if block.stage == stage and not block.not_prunable
        ]
        if len(removable) > 1:  # without the later half of them
            plans[stage, 0.0] = _plan_without_blocks(structure, removable[len(removable) // 2 :])
    plans |= narrow
    savings = measure_savings(model, list(plans.values()), settings, "timing heads, neurons and blocks")
    units: dict[str, list[tuple[float, float]]] = {}
    widths: dict[str, list[tuple[float, float]]] = {}
    blocks: dict[str, float] = {}
    for (name, fraction), plan, saved in zip(plans, plans.values(), savings, strict=True):
        if name.endswith(WIDTH):
            widths.setdefault(name.removesuffix(WIDTH), []).append((fraction, saved))
        elif name in kinds:
            units.setdefault(name, []).append((_fraction_kept(plan, kinds[name]), saved))
        else:
            blocks[name] = max(0.0, saved) / (len(structure.blocks) - len(plan.blocks))
    return LatencyTable(units=units, blocks=blocks, widths=widths)


def _narrow_plans(structure: ViTStructure, members: list[tuple[int, UnitGroup]]) -> dict[float, PruningPlan]:
    """Plans that narrow all heads of one kind, by the fraction of the width that is kept; none if they cannot be."""
    full, group = PruningPlan.full(structure), members[0][1]
    widths = {round(fraction * group.width) for fraction in COARSE_FRACTIONS} if group.directions else set()
    plans = {}
    for width in sorted(widths - {0, group.width}):
        narrowed = {
            block: KeptBlock.of(block, dict(full.blocks[block].items()), {other.key: width})
            for block, other in members
            if other.directions
        }
        blocks = tuple(narrowed.get(kept.block, kept) for kept in full.blocks)
        plans[width / group.width] = replace(full, blocks=blocks)
    return plans


def _measure_multiple(model: nn.Module, settings: LatencySettings, fraction: float) -> int:
    structure = describe(model)
    counts = {
        (index, group.key): group.count
        for index, block in enumerate(structure.blocks)
        for group in block.groups
        if group.kind == "neurons" and not group.not_prunable
    }
    multiples = [
        k for k in MULTIPLES if all(MIN_MULTIPLES_IN_WIDTH * k <= fraction * count for count in counts.values())
    ]
    if not counts or len(multiples) < 2:
        return 1
    roundness = 2 * multiples[-1]
    round_widths = {key: int(fraction * count // roundness) * roundness for key, count in counts.items()}
    widths = [{key: width - k for key, width in round_widths.items()} for k in multiples]
    half = {key: count // 2 for key, count in counts.items()}
    plans = [_plan_with_counts(structure, found) for found in (half, *widths)]
    saved_by_half, *savings = measure_savings(
        model, plans, settings, "timing widths that are multiples of 1, 2, 4, ...", interleaved=True
    )
    per_neuron = saved_by_half / sum(count - half[key] for key, count in counts.items())
    # as fractions of the dense time; a constant, the time of the dense model, is left out of each
    times = [k * len(counts) * per_neuron - saved for k, saved in zip(multiples, savings, strict=True)]
    margin = MULTIPLE_TOLERANCE * per_neuron * sum(round_widths.values())
    return next(k for k, time in zip(multiples, times, strict=True) if time <= min(times) + margin)


def _num_rounds(dense: Callable[[], object], settings: LatencySettings, device: torch.device) -> int:
    """As many rounds of two models as there is time for."""
    (once,) = time_in_rounds([dense], replace(settings, rounds=1, warmup=1), device)
    return min(MAX_TABLE_ROUNDS, max(MIN_TABLE_ROUNDS, int(1000 * SECONDS_PER_MODEL / (2 * once.median_ms))))


def _groups_by_kind(structure: ViTStructure) -> dict[str, list[tuple[int, UnitGroup]]]:
    """By kind: the groups, each with the index of its block. Groups that are not prunable have a kind of their own."""
    found: dict[str, list[tuple[int, UnitGroup]]] = {}
    for index, block in enumerate(structure.blocks):
        for group in block.groups:
            suffix = " (not prunable)" if group.not_prunable else ""
            found.setdefault(f"{block.stage} {group.key}{suffix}", []).append((index, group))
    return found


def _plan_with_counts(structure: ViTStructure, counts: Mapping[Key, int]) -> PruningPlan:
    """The plan that keeps the first `counts` units of these groups, and all units of the others.

    Which units are kept makes no difference for the time.
    """
    blocks = tuple(
        KeptBlock.of(index, {group.key: range(counts.get((index, group.key), group.count)) for group in block.groups})
        for index, block in enumerate(structure.blocks)
    )
    return PruningPlan(model=structure.model, blocks=blocks)


def _plan_without_blocks(structure: ViTStructure, removed: list[int]) -> PruningPlan:
    full = PruningPlan.full(structure)
    return replace(full, blocks=tuple(kept for kept in full.blocks if kept.block not in removed))


def _fraction_kept(plan: PruningPlan, members: list[tuple[int, UnitGroup]]) -> float:
    """The fraction of a kind's multiply-adds that the plan keeps."""
    kept = {block.block: block for block in plan.blocks}
    macs = sum(len(kept[block].units(group.key)) * group.macs for block, group in members)
    return macs / sum(group.count * group.macs for _, group in members)


def _cost_curve(points: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """The cost curve of a kind: what its units cost, as a fraction of the dense time, for a fraction of them.

    The curve never falls (isotonic regression). A model without any unit cannot be timed, so the cost at 0 is read from
    the straight line through all points.

    Args:
        points: pairs of (fraction kept, fraction of the dense time saved).

    Returns:
        Fractions kept, from 0 to 1, and costs, `(P,)` each.
    """
    if not points:
        return np.array([0.0, 1.0]), np.zeros(2)
    fractions, saved = np.array(sorted([*points, (1.0, 0.0)])).T
    _, saved_without_units = np.polyfit(fractions, saved, 1)
    rising = isotonic_regression(-saved).x
    start = min(-saved_without_units, rising[0])
    return np.append(0.0, fractions), np.append(0.0, rising - start)


def _read_or_measure(what: str, model: nn.Module, settings: LatencySettings, measure: Callable[[], Any]) -> Any:
    """The measurement in the cache, if it was made under the same conditions; else measure it and write it there.

    A cache that cannot be read or written is no error.
    """
    about = {"format": FORMAT, "what": what, **_conditions(model, settings)}
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = user_cache_path("vitrim") / "latency" / f"{name}.json"
    try:
        content = read_json(path)
        found = content["found"]
        if content["digest"] != digest_of_data([about, found]):
            raise CheckpointMismatch(f"{path} is damaged.")  # as if there were none
        log(f"latency: read from {path}; delete this file to measure again")
        return found
    except (OSError, CheckpointMismatch, KeyError, TypeError):
        pass
    found = measure()
    content = {"about": about, "found": found, "digest": digest_of_data([about, found])}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content, indent=1) + "\n")
    except OSError as problem:
        log(f"latency: cannot write the measurement to {path} ({problem.strerror})")
    return found


def _conditions(model: nn.Module, settings: LatencySettings) -> dict[str, Any]:
    """Everything that a measured time depends on."""
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
