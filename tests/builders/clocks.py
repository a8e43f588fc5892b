"""A clock that tells a model's time from its sizes, so that laws about milliseconds can be stated exactly."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from vitrim import pipeline, planning
from vitrim.costs import device, latency_table
from vitrim.costs.latency import Latency
from vitrim.models import describe
from vitrim.surgery import prune

Clock = Callable[[nn.Module], float]


def steady(model: nn.Module) -> float:
    """Milliseconds that grow evenly: 1 for the whole, 0.2 a block, 0.05 a head, 0.01 a neuron."""
    blocks = describe(model).blocks
    return 1.0 + sum(0.2 + 0.05 * block.heads.count + 0.01 * block.neurons.count for block in blocks)


def in_eights(model: nn.Module) -> float:
    """The same, but neurons take as long as the next multiple of eight and an odd width a fifth more."""
    blocks = describe(model).blocks
    odd = sum(0.01 * 8 * -(-block.neurons.count // 8) * (1.2 if block.neurons.count % 8 else 1.0) for block in blocks)
    return 1.0 + sum(0.2 + 0.05 * block.heads.count for block in blocks) + odd


def uneven(model: nn.Module) -> float:
    """The same as the steady one where blocks are alike, and up to a third more where they differ."""
    counts = [block.neurons.count for block in describe(model).blocks]
    return steady(model) * (1.0 + (max(counts) - min(counts)) / (3 * max(counts)))


def install(clock: Clock, patch: pytest.MonkeyPatch) -> None:
    """Let every timing read this clock."""

    def latencies(models: list[nn.Module], settings: Any = None) -> list[Latency]:
        first = clock(models[0])
        about = {"batch_size": 1, "device": "cpu", "threads": 1}
        return [
            Latency(median_ms=clock(model), p90_ms=clock(model), ratio=clock(model) / first, **about)
            for model in models
        ]

    def savings(model: nn.Module, plans: list[Any], *others: Any, **options: Any) -> list[float]:
        return [1 - clock(prune(model, plan)) / clock(model) for plan in plans]

    patch.setattr(latency_table, "measure_savings", savings)
    patch.setattr(device, "measure_latency", lambda model, settings: latencies([model])[0])
    patch.setattr(planning, "measure_latencies", latencies)
    patch.setattr(pipeline, "measure_latencies", latencies)
