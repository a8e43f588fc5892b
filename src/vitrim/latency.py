"""How long a forward pass takes. Models to be compared run in turn, so that a drifting machine hits all alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from vitrim.adapters import describe
from vitrim.errors import SettingError
from vitrim.modes import eval_mode
from vitrim.progress import track


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How to time: `rounds` passes of each model in turn after `warmup` that are not counted."""

    batch_size: int = 1
    rounds: int = 50
    warmup: int = 5

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.rounds < 1 or self.warmup < 0:
            raise SettingError(
                "latency.batch_size and latency.rounds must be at least 1 and latency.warmup at least 0."
            )


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds for one forward pass of a batch.

    Attributes:
        ratio: median of the paired ratios to the first model timed in the same run; 1 for that model itself.
    """

    median_ms: float
    p90_ms: float
    ratio: float
    batch_size: int
    device: str
    threads: int


def measure_latency(model: nn.Module, settings: LatencySettings | None = None) -> Latency:
    """Time one model's forward pass in eval mode, eager, on the device where it is."""
    return measure_latencies([model], settings)[0]


@torch.no_grad()
def measure_latencies(models: Sequence[nn.Module], settings: LatencySettings | None = None) -> list[Latency]:
    """Time several models in turn on random images of their own size; ratios are to the first.

    All models must be on one device. Quote the ratio rather than the milliseconds: it is measured in pairs.
    """
    settings = settings or LatencySettings()
    inputs = [random_images(model, settings.batch_size) for model in models]
    passes = [partial(model, images) for model, images in zip(models, inputs, strict=True)]
    with eval_mode(*models):
        return time_in_turns(passes, settings, inputs[0].device)


def time_in_turns(
    passes: Sequence[Callable[[], object]], settings: LatencySettings, device: torch.device
) -> list[Latency]:
    """Time several forward passes in turn, each of `settings.batch_size` images; ratios are to the first."""
    rows = []
    for index in track(range(settings.warmup + settings.rounds), "measuring latency"):
        row = [_time_once(run, device) for run in passes]
        if index >= settings.warmup:
            rows.append(row)
    times = np.array(rows)  # (rounds, passes), in milliseconds
    ratios = np.median(times / times[:, :1], axis=0)
    return [
        Latency(
            median_ms=float(np.median(column)),
            p90_ms=float(np.percentile(column, 90)),
            ratio=float(ratio),
            batch_size=settings.batch_size,
            device=str(device),
            threads=torch.get_num_threads(),
        )
        for column, ratio in zip(times.T, ratios, strict=True)
    ]


def random_images(model: nn.Module, batch_size: int) -> Tensor:
    """A batch as the model takes it, of normal noise and always the same: `(B, channels, height, width)`."""
    structure, parameter = describe(model), next(model.parameters())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, structure.in_chans, *structure.img_size, generator=generator)
    return images.to(parameter.device, parameter.dtype)


def _time_once(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)
