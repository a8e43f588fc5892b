"""How long a forward pass takes. Models to be compared run in turn, so that a drifting machine hits all alike."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from vitrim.errors import SettingError
from vitrim.hooks import eval_mode
from vitrim.models.programs import check_onnx, onnx_program, random_images
from vitrim.runs.progress import track

Runtime = Literal["model", "cpu", "cuda", "onnxruntime"]


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How to time: `rounds` passes of each model in turn after `warmup` that are not counted.

    Attributes:
        on: what runs the model: eager PyTorch on the CPU or a GPU, ONNX Runtime on the CPU; `model`: eager PyTorch
            where the model is.
        batch_size: images for one pass.
    """

    on: Runtime = "model"
    batch_size: int = 1
    rounds: int = 50
    warmup: int = 5

    def __post_init__(self) -> None:
        if self.on not in get_args(Runtime):
            raise SettingError(f"latency.on is {self.on!r}; expected one of {', '.join(get_args(Runtime))}.")
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
    """Time one model's forward pass in eval mode."""
    return measure_latencies([model], settings)[0]


@torch.no_grad()
def measure_latencies(models: Sequence[nn.Module], settings: LatencySettings | None = None) -> list[Latency]:
    """Time several models in turn on random images of their own size; ratios are to the first.

    Without `settings.on` all models must be on one device. Quote the ratio rather than the milliseconds: it is measured
    in pairs.

    Raises:
        SettingError: there is no CUDA device, or ONNX Runtime is missing. ExportFailed: ONNX cannot take a model.
    """
    settings = settings or LatencySettings()
    with eval_mode(*models):
        return time_in_turns(forward_passes(models, settings), settings, run_device(models[0], settings))


def forward_passes(models: Sequence[nn.Module], settings: LatencySettings) -> list[Callable[[], object]]:
    """For each model in eval mode one pass of a batch, where `settings.on` wants it; models elsewhere are copied."""
    check_runtime(settings)
    passes: list[Callable[[], object]] = []
    for model in models:
        device = run_device(model, settings)
        here = model if next(model.parameters()).device.type == device.type else copy.deepcopy(model).to(device)
        images = random_images(here, settings.batch_size)
        if settings.on == "onnxruntime":
            passes.append(partial(onnx_program(here), images.float()))
        else:
            passes.append(partial(here, images))
    return passes


def run_device(model: nn.Module, settings: LatencySettings) -> torch.device:
    """Where `settings` let the model run."""
    if settings.on == "model":
        return next(model.parameters()).device
    return torch.device("cuda" if settings.on == "cuda" else "cpu")


def check_runtime(settings: LatencySettings) -> None:
    """Raise `SettingError` if what is to run the models is not here."""
    if settings.on == "cuda" and not torch.cuda.is_available():
        raise SettingError("latency.on is cuda, but PyTorch finds no CUDA device here; expected cpu or onnxruntime.")
    if settings.on == "onnxruntime":
        check_onnx()


def time_in_turns(
    passes: Sequence[Callable[[], object]], settings: LatencySettings, device: torch.device, *, bar: bool = True
) -> list[Latency]:
    """Time several forward passes in turn, each of `settings.batch_size` images; ratios are to the first.

    `bar` shows a bar, where nothing else does.
    """
    rows, rounds = [], range(settings.warmup + settings.rounds)
    for index in track(rounds, "measuring latency") if bar else rounds:
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


def _time_once(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)
