"""The section `budget`: predicted latency of a plan, and measured latency of the pruned model.

The prediction is from a latency table that is measured in the same run, with the corrections that `compress` makes. The
measurement is done afterwards, in turns with the dense model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.costs.cases import TINY, VIT_S, random_data, threads_and_torch
from benchmarks.costs.latency import uneven_scores
from benchmarks.costs.ratios import Ratio
from vitrim.costs import latency_table as tables
from vitrim.costs.budget import Budget
from vitrim.costs.device import DeviceTimes
from vitrim.costs.latency import LatencySettings, Runtime, measure_latencies
from vitrim.errors import percent
from vitrim.importance.criteria import ImportanceSettings
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.planning import Planner
from vitrim.recipe import Recipe
from vitrim.source import Source
from vitrim.surgery import prune

RUNTIMES: tuple[Runtime, ...] = ("cpu", "onnxruntime")
LIMIT = 1.05
ROUNDS = 41


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dense model and its latency budgets, as fractions of the dense model's latency."""

    name: str
    arguments: dict[str, Any]
    batch_size: int = 1
    fractions: tuple[float, ...] = (0.7, 0.5)


CASE = Case(name="ViT-S/16 at 224 x 224", arguments={})
# with one image, the overhead of calls would hide the time of the tiny model
SMOKE = Case(name="a tiny ViT", arguments=TINY, batch_size=256, fractions=(0.8,))


def measure_latency_budget(*, smoke: bool = False) -> list[Ratio]:
    """Compare measured latency with the prediction and with the budget, for each runtime and each budget.

    Args:
        smoke: a tiny model and one runtime. The figures mean nothing.
    """
    with _empty_cache():
        return [row for on in RUNTIMES[: 1 if smoke else None] for row in _lines(SMOKE if smoke else CASE, on)]


def _lines(case: Case, on: Runtime) -> Iterator[Ratio]:
    torch.manual_seed(0)
    dense = create_model(VIT_S, **case.arguments).eval()
    structure, latency = describe(dense), LatencySettings(on=on, batch_size=case.batch_size)
    first = Recipe(budget=Budget(params=1.0, macs=1.0, latency_ms=1.0), latency=latency)
    device = DeviceTimes.measure(dense, first.budget, first.latency)
    data = random_data(2, structure.img_size[0], structure.num_classes)  # not scored: pruning has one step
    source = Source.of(dense, data)
    for fraction in case.fractions:
        budget = replace(first.budget, latency_ms=fraction * device.dense_ms)
        recipe = replace(first, budget=budget, importance=ImportanceSettings(num_images=1, steps=1))
        planner = Planner(source=source, recipe=recipe, timings=device)
        proposal = planner.plan_one_shot(uneven_scores(structure), ())
        cut = prune(dense, proposal.plan)
        found = measure_latencies([dense, cut], replace(latency, rounds=ROUNDS))[1]
        assert planner.times is not None
        setting = (
            f"{case.name}, batch {case.batch_size}, random scores, {threads_and_torch()}; {ROUNDS} rounds in turns "
            f"with the dense model, dense latency {device.dense_ms:.4g} ms, budget {budget.latency_ms:.4g} ms"
        )
        about = {"section": "budget", "setting": setting}
        name = f"{_names(on)}, budget {percent(fraction)} of the dense latency"
        measured = found.ratio * device.dense_ms
        by_table = planner.times.total(proposal.plan)
        yield Ratio.counted(
            max(measured / proposal.predicted_ms, proposal.predicted_ms / measured),
            measure=f"measured and predicted latency, the larger divided by the smaller: {name}",
            against="",
            limit=LIMIT,
            **about,
        )
        yield Ratio.counted(
            measured / budget.latency_ms,
            measure=f"measured latency: {name}",
            against="the budget",
            limit=LIMIT,
            **about,
        )
        yield Ratio.counted(
            measured / by_table,
            measure=f"measured latency: {name}",
            against="the prediction without correction",
            **about,
        )


def _names(on: Runtime) -> str:
    return {"cpu": "PyTorch on the CPU", "onnxruntime": "ONNX Runtime"}.get(on, on)


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Use an empty cache of latency tables within the context, so that everything is measured again."""
    with TemporaryDirectory() as folder, patch.object(tables, "user_cache_path", lambda name: Path(folder)):
        yield
