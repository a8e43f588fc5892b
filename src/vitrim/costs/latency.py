"""Latency: milliseconds of one forward pass, for one model or for several models that are compared.

Models that are compared run one after the other in each round. If the machine becomes slower, all of them become slower
by the same factor, so their ratios stay the same. What single heads, neurons and blocks cost is in `latency_table`.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from scipy import stats
from torch import nn

from vitrim.asking import within_memory
from vitrim.checks import MAX_ROUNDS, check_types
from vitrim.copying import copied
from vitrim.errors import SettingError, counted, percent
from vitrim.hooks import eval_mode
from vitrim.models.wrappers import unwrapped
from vitrim.programs.onnx import check_onnx, onnx_program
from vitrim.programs.program import random_images
from vitrim.runs.progress import track

Runtime = Literal["model", "cpu", "cuda", "onnxruntime"]
CONFIDENCE = 0.95
MAX_LATENCY_BATCH = 16_384  # images
MAX_DIFFERENCE = 0.05  # of a measured latency from a stated one; a larger difference is said where it is stated
MAX_LOAD = 1.5  # processes that want to compute, for each core; a training of this process alone is about 1


@dataclass(frozen=True, kw_only=True)
class LatencySettings:
    """How latency is measured.

    Attributes:
        on: the runtime. `model`: eager PyTorch on the device of the model. `cpu`, `cuda`: eager PyTorch there.
            `onnxruntime`: ONNX Runtime on the CPU.
        batch_size: number of images in one forward pass.
        rounds: number of rounds that count. Each model runs once in each round.
        warmup: number of rounds before them, which do not count.

    Raises:
        SettingError: the runtime is unknown, or a number is too small.
    """

    on: Runtime = "model"
    batch_size: int = 1
    rounds: int = 50
    warmup: int = 5

    def __post_init__(self) -> None:
        check_types(self, batch_size=MAX_LATENCY_BATCH, rounds=MAX_ROUNDS, warmup=MAX_ROUNDS)
        for name, minimum in {"batch_size": 1, "rounds": 1, "warmup": 0}.items():
            if getattr(self, name) < minimum:
                raise SettingError(f"{name} is {getattr(self, name)}; expected at least {minimum}.")

    def changeable(self) -> frozenset[str]:
        """The settings that may have another value when a run is continued. What was timed before is kept."""
        return frozenset({"rounds", "warmup"})


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The time of one forward pass.

    Attributes:
        median_ms: median over the rounds, in milliseconds for a whole batch.
        p90_ms: 90th percentile over the rounds, in milliseconds for a whole batch.
        ratio: time divided by that of the first model in the same round; the median over the rounds. It is 1 for the
            first model. It is not the ratio of the two medians: on a busy machine, that one may be far off.
        ratio_low: lower end of the 95 % interval of `ratio`, from the order of the rounds' ratios (David and Nagaraja,
            Order Statistics, 2003, section 7.1). It assumes that rounds are independent. None with fewer than six
            rounds, which have no such interval.
        ratio_high: upper end of this interval.
        batch_size: number of images in the batch.
        device: device of PyTorch, such as `cpu` or `cuda`.
        threads: number of CPU threads that PyTorch uses.
    """

    median_ms: float
    p90_ms: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    batch_size: int
    device: str
    threads: int


def measure_latency(model: nn.Module, settings: LatencySettings | None = None) -> Latency:
    """Time the forward pass of one model in eval mode, on random images. The model is not changed.

    A compiled model runs eager, as all models do whose latency is compared.

    Raises:
        SettingError: the runtime is missing. ExportFailed: the model cannot be exported to ONNX.
    """
    return measure_latencies([model], settings)[0]


@within_memory("measure the latency", "Lower latency.batch_size (--latency-batch), or use a smaller model.")
@torch.no_grad()
def measure_latencies(models: Sequence[nn.Module], settings: LatencySettings | None = None) -> list[Latency]:
    """Time the forward passes of several models in eval mode, on random images. The models are not changed.

    Compare models by `ratio`, not by milliseconds: it is computed in each round, so it varies less.

    Args:
        models: with `settings.on == "model"`, all of them on one device.
        settings: default values if None.

    Returns:
        One entry for each model. Ratios are to the first model.

    Raises:
        SettingError: the runtime is missing. ExportFailed: a model cannot be exported to ONNX.
    """
    settings, models = settings or LatencySettings(), [unwrapped(model) for model in models]
    with eval_mode(*models):
        return time_in_rounds(forward_passes(models, settings), settings, run_device(models[0], settings))


def forward_passes(models: Sequence[nn.Module], settings: LatencySettings) -> list[Callable[[], object]]:
    """For each model, a function without arguments that runs one batch of random images on the runtime.

    Args:
        models: in eval mode. A model on another device than the runtime's is copied.
        settings: runtime and batch size.

    Raises:
        SettingError: the runtime is missing. ExportFailed: a model cannot be exported to ONNX.
    """
    check_runtime(settings)
    passes: list[Callable[[], object]] = []
    for model in models:
        device = run_device(model, settings)
        on_device = model if next(model.parameters()).device.type == device.type else copied(model).to(device)
        images = random_images(on_device, settings.batch_size)
        if settings.on == "onnxruntime":
            passes.append(partial(onnx_program(on_device), images.float()))
        else:
            passes.append(partial(on_device, images))
    return passes


def run_device(model: nn.Module, settings: LatencySettings) -> torch.device:
    """The device on which the runtime runs the model."""
    if settings.on == "model":
        return next(model.parameters()).device
    return torch.device("cuda" if settings.on == "cuda" else "cpu")


def check_runtime(settings: LatencySettings) -> None:
    """Raise `SettingError` if there is no CUDA device or no ONNX Runtime, and the settings need it."""
    if settings.on == "cuda" and not torch.cuda.is_available():
        raise SettingError("latency.on is cuda, but PyTorch finds no CUDA device here; expected cpu or onnxruntime.")
    if settings.on == "onnxruntime":
        check_onnx()


def time_in_rounds(
    passes: Sequence[Callable[[], object]],
    settings: LatencySettings,
    device: torch.device,
    *,
    progress_bar: bool = True,
) -> list[Latency]:
    """Time several forward passes. Each of them runs once in each round.

    Args:
        passes: functions without arguments; each runs one batch of `settings.batch_size` images.
        settings: number of rounds.
        device: where the passes run. The time of a pass on a GPU ends when the GPU has finished.
        progress_bar: show a progress bar.

    Returns:
        One entry for each pass. Ratios are to the first pass.
    """
    rows, rounds = [], range(settings.warmup + settings.rounds)
    for index in track(rounds, "measuring latency") if progress_bar else rounds:
        row = [_time_once_ms(run, device) for run in passes]
        if index >= settings.warmup:
            rows.append(row)
    times = np.array(rows)  # (rounds, passes), in milliseconds
    ratios = times / times[:, :1]
    return [
        Latency(
            median_ms=float(np.median(column)),
            p90_ms=float(np.percentile(column, 90)),
            ratio=float(np.median(ratio)),
            ratio_low=low,
            ratio_high=high,
            batch_size=settings.batch_size,
            device=str(device),
            threads=torch.get_num_threads(),
        )
        for column, ratio, (low, high) in zip(times.T, ratios.T, map(interval_of_median, ratios.T), strict=True)
    ]


def interval_of_median(ratios: np.ndarray) -> tuple[float | None, float | None]:
    """The ends of the 95 % interval of the median of ratios `(rounds,)`; None for both if there are too few rounds."""
    low, high = stats.quantile_test(ratios, q=1.0, p=0.5).confidence_interval(CONFIDENCE)
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else (None, None)


def ratio_text(ratio: float, low: float | None, high: float | None) -> str:
    """Format a ratio of latencies and its interval, such as `x 0.88 [0.86, 0.90]`."""
    return f"x {ratio:.2f}" if low is None or high is None else f"x {ratio:.2f} [{low:.2f}, {high:.2f}]"


def difference_text(measured_ms: float, stated_ms: float) -> str:
    """Say by how much a measured latency differs from a stated one, such as `12 % above`; empty up to 5 %."""
    difference = measured_ms / stated_ms - 1
    if abs(difference) <= MAX_DIFFERENCE:
        return ""
    return f"{percent(abs(difference))} {'above' if difference > 0 else 'below'}"


def busy_note() -> str:
    """Say that the machine is busy, if it is, because latencies then hold for the moment only; else an empty text."""
    load, cores = (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0), os.cpu_count() or 1
    if load <= MAX_LOAD * cores:
        return ""
    return (
        f"The machine was busy when latencies were measured (load {load:.1f} on {counted(cores, 'core')}). Their "
        "ratios and intervals hold for that moment only."
    )


def _time_once_ms(run: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * (time.perf_counter() - start)
