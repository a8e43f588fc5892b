"""Clocks for tests: they compute the time of a model from its sizes, so laws about milliseconds hold exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from vitrim import compress_run, planning
from vitrim.costs import device, latency_table
from vitrim.costs.latency import Latency
from vitrim.surgery import prune

Clock = Callable[[nn.Module], float]


def sizes_of(model: nn.Module) -> list[tuple[int, int]]:
    """Numbers of heads and neurons of each block of one of timm's plain models; `describe` would be slower."""
    return [(block.attn.num_heads, block.mlp.fc1.out_features) for block in model.blocks]


def steady(model: nn.Module) -> float:
    """Milliseconds: 1, plus 0.2 for each block, 0.05 for each head, 0.01 for each neuron."""
    return 1.0 + sum(0.2 + 0.05 * heads + 0.01 * neurons for heads, neurons in sizes_of(model))


def in_eights(model: nn.Module) -> float:
    """As `steady`, but neurons need as long as the next multiple of 8, and 20 % longer if they are not a multiple."""
    sizes = sizes_of(model)
    neurons_ms = sum(0.01 * 8 * -(-neurons // 8) * (1.2 if neurons % 8 else 1.0) for _, neurons in sizes)
    return 1.0 + sum(0.2 + 0.05 * heads for heads, _ in sizes) + neurons_ms


def uneven(model: nn.Module) -> float:
    """As `steady` if all blocks have the same width, and up to a third longer if their widths differ."""
    counts = [neurons for _, neurons in sizes_of(model)]
    return steady(model) * (1.0 + (max(counts) - min(counts)) / (3 * max(counts)))


def install(clock: Clock, patch: pytest.MonkeyPatch, cache: Path | None = None) -> None:
    """Replace every measurement of time by this clock.

    Args:
        cache: folder for measured latency tables; by default the folder of all tests.
    """

    def latencies(models: list[nn.Module], settings: Any = None) -> list[Latency]:
        times = [clock(model) for model in models]
        about: dict[str, Any] = {"ratio_low": None, "ratio_high": None, "batch_size": 1, "device": "cpu", "threads": 1}
        return [Latency(median_ms=ms, p90_ms=ms, ratio=ms / times[0], **about) for ms in times]

    def savings(model: nn.Module, plans: list[Any], *others: Any, **options: Any) -> list[float]:
        dense_ms = clock(model)
        return [1 - clock(prune(model, plan)) / dense_ms for plan in plans]

    patch.setattr(latency_table, "measure_savings", savings)
    patch.setattr(device, "measure_latency", lambda model, settings: latencies([model])[0])
    patch.setattr(planning, "measure_latencies", latencies)
    patch.setattr(compress_run, "measure_latencies", latencies)
    if cache is not None:
        patch.setattr(latency_table, "user_cache_path", lambda name: cache / name)
