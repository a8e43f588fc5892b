"""Whether a budget in milliseconds is kept: what a plan promises, and what a model cut by it then takes.

What is promised comes from a table measured here and now, corrected as `compress` corrects it; what is taken is timed
afterwards in turns with the dense model, which no part of the promise has seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.costs.distillation import TINY, VIT_S, noise, where
from benchmarks.costs.latency import uneven_scores
from benchmarks.costs.ratios import Ratio
from vitrim.costs import latency_table as tables
from vitrim.costs.budget import Budget
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import LatencySettings, Runtime, measure_latencies
from vitrim.importance import ImportanceSettings
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.pipeline import calibration_images
from vitrim.planning import Planner
from vitrim.recipe import Recipe
from vitrim.surgery import prune

RUNTIMES: tuple[Runtime, ...] = ("cpu", "onnxruntime")
BOUND = 1.05
ROUNDS = 41


@dataclass(frozen=True, kw_only=True)
class Case:
    """`shares` are those of the dense model's milliseconds that are budgeted."""

    name: str
    arguments: dict[str, Any]
    batch_size: int = 1
    shares: tuple[float, ...] = (0.7, 0.5)


CASE = Case(name="ViT-S/16 at 224 x 224", arguments={})
SMOKE = Case(
    name="a tiny ViT", arguments=TINY, batch_size=256, shares=(0.8,)
)  # of one image, calls take most of the time


def measure_latency_budget(*, smoke: bool = False) -> list[Ratio]:
    """For each runtime and share of the dense model's time: measured over promised, and promised over the budget."""
    with _empty_cache():
        return [row for on in RUNTIMES[: 1 if smoke else None] for row in _lines(SMOKE if smoke else CASE, on)]


def _lines(case: Case, on: Runtime) -> Iterator[Ratio]:
    torch.manual_seed(0)
    dense = create_model(VIT_S, **case.arguments).eval()
    structure, latency = describe(dense), LatencySettings(on=on, batch_size=case.batch_size)
    first = Recipe(budget=Budget(params=1.0, macs=1.0, latency_ms=1.0), latency=latency)
    device = DeviceTimes.measure(dense, first.budget, first.latency)
    data = noise(2, structure.img_size[0], structure.num_classes)  # one step asks for no further scores
    for share in case.shares:
        budget = replace(first.budget, latency_ms=share * device.dense_ms)
        recipe = replace(first, budget=budget, importance=ImportanceSettings(num_images=1, steps=1))
        planner = Planner(dense, recipe, calibration_images(dense, data, recipe), device)
        proposal = planner.one_shot(uneven_scores(structure), ())
        cut = prune(dense, proposal.plan)
        found = measure_latencies([dense, cut], replace(latency, rounds=ROUNDS))[1]
        assert planner.times is not None
        setting = (
            f"{case.name}, batch {case.batch_size}, random scores, {where()}; {ROUNDS} rounds in turns with the dense "
            f"model, which took {device.dense_ms:.4g} ms; budget {budget.latency_ms:.4g} ms"
        )
        about = {"section": "budget", "setting": setting}
        name = f"{_names(on)}, {share:.0%} of the dense model's milliseconds"
        measured = found.ratio * device.dense_ms
        by_table = planner.times.total(proposal.plan)
        yield Ratio.counted(
            max(measured / proposal.predicted_ms, proposal.predicted_ms / measured),
            measure=f"measured and promised latency, the larger over the smaller: {name}",
            against="",
            bound=BOUND,
            **about,
        )
        yield Ratio.counted(
            measured / budget.latency_ms,
            measure=f"measured latency: {name}",
            against="the budget",
            bound=BOUND,
            **about,
        )
        yield Ratio.counted(
            measured / by_table, measure=f"measured latency: {name}", against="the table before its correction", **about
        )


def _names(on: Runtime) -> str:
    return {"cpu": "PyTorch on the CPU", "onnxruntime": "ONNX Runtime"}.get(on, on)


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Within the context, nothing that was measured before is read."""
    with TemporaryDirectory() as folder, patch.object(tables, "user_cache_path", lambda name: Path(folder)):
        yield
