"""The section `gpu`: the fraction of the GPU's bf16 peak in training, a profile, and the latency of pruned models.

On a CPU everything runs too. This tests the code; the figures mean nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.costs.cases import LARGE, SMALL, TINY, VIT_B, VIT_S, VIT_TI, Case
from benchmarks.costs.loops import VitrimLoop
from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.costs.counting import count_cost

VIT_S_8 = ("ViT-S/8 at 64 x 64", VIT_S, SMALL)
VIT_B_16 = ("ViT-B/16 at 224 x 224", VIT_B, LARGE)
KERNELS_SHOWN = 10
# Dense bf16 in TFLOP/s from NVIDIA's data sheets. For devices after the A100 they state twice that, with sparsity.
# A device matches by the beginning of its name, so longer names come first.
PEAKS = {
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H200": 989.4,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100": 989.4,
    "NVIDIA A100": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
}


def peak_flops(device: str) -> tuple[float, str]:
    """Return the device's peak of dense bf16 FLOP/s, and its source as text.

    The source is a data sheet. For an unknown device, it is the fastest of some large matrix products.
    """
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    for known, tera in PEAKS.items():
        if name.startswith(known):
            return tera * 1e12, f"{name}, {tera:g} TFLOP/s by its data sheet"
    side = 8192 if device.startswith("cuda") else 512
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = seconds_in_turns({"product": lambda: square @ square}, rounds=10, warmup=3, device=device)["product"]
    found = 2 * side**3 / float(seconds.min())
    return found, f"{name}, {found / 1e12:.2g} TFLOP/s measured by a bf16 matrix product of side {side}"


def cases(*, smoke: bool, compile: bool) -> list[Case]:
    """Make the cases: ViT-S/8 at 64 x 64 with a small and a large batch, and ViT-B/16 at 224 x 224.

    Args:
        smoke: only a tiny ViT.
        compile: train with `torch.compile`.
    """
    if smoke:
        return [Case.make("a tiny ViT", VIT_TI, TINY, batch_size=8, steps=3, compile=compile)]
    shapes = [(*VIT_S_8, 128), (*VIT_S_8, 1024), (*VIT_B_16, 128)]
    return [
        Case.make(name, architecture, sizes, batch_size=batch_size, steps=20, compile=compile)
        for name, architecture, sizes, batch_size in shapes
    ]


def measure_gpu(*, smoke: bool = False, device: str = "cuda") -> list[Ratio]:
    """Measure the fraction of the peak in training, eager and compiled, and latency against multiply-adds."""
    peak, source = peak_flops(device)
    rows = []
    for compile in (False,) if smoke else (False, True):
        for case in cases(smoke=smoke, compile=compile):
            with opened() as stack:
                rows += _training(case, VitrimLoop(case, stack), peak, source, rounds=1 if smoke else 3)
    return rows + _latency(smoke=smoke, device=device)


@contextmanager
def opened() -> Iterator[ExitStack]:
    """Reset the compiler for one case, because torch compiles a function for at most eight models."""
    torch.compiler.reset()
    with ExitStack() as stack:
        yield stack


def step_flops(ours: VitrimLoop) -> int:
    """Return the floating-point operations of a step: two per multiply-add of products, convolutions and attention."""
    batch = next(ours.batches())
    with FlopCounterMode(display=False) as counter:
        ours.loop.update(batch, ours.loop.model, ours.loop.teacher, ours.sums)
    return counter.get_total_flops()


def _training(case: Case, ours: VitrimLoop, peak: float, source: str, *, rounds: int) -> list[Ratio]:
    flops = step_flops(ours)
    ours.epoch()  # compiles, and allocates the optimiser's moments
    seconds = np.array([_seconds_of_epoch(ours) for _ in range(rounds)]) / case.steps
    how = "compiled" if case.settings.compile else "eager"
    setting = f"{case.setting}, {how}, {rounds} epochs of {case.steps} steps, with augmentation; {source}"
    name = f"{case.name}, batch {case.settings.batch_size}, {how}"
    about = {"section": "gpu", "against": "", "setting": setting, "at_least": True}
    return [
        Ratio.timed(
            100 * flops / seconds / peak,
            measure=f"training, in % of the bf16 peak: {name}",
            unit="%",
            limit=45.0,
            **about,
        ),
        Ratio.timed(case.settings.batch_size / seconds, measure=f"training speed: {name}", unit="images/s", **about),
    ]


def _seconds_of_epoch(ours: VitrimLoop) -> float:
    _wait(ours.loop.device)
    start = time.perf_counter()
    ours.epoch()
    _wait(ours.loop.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def profile_gpu(*, smoke: bool = False, device: str = "cuda") -> dict[str, str]:
    """Return for each case a text with the slowest kernels and the fraction of the time that the device is busy."""
    found = {}
    for compile in (False,) if smoke else (False, True):
        for case in cases(smoke=smoke, compile=compile):
            with opened() as stack:
                ours = VitrimLoop(case, stack)
                ours.epoch()
                how = "compiled" if compile else "eager"
                found[f"{case.name}, batch {case.settings.batch_size}, {how}"] = _profile(ours, case.steps)
    return found


def _profile(ours: VitrimLoop, steps: int) -> str:
    on_gpu = ours.loop.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        seconds = _seconds_of_epoch(ours)
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        for event in profiler.key_averages()
    }
    busy = sum(times.values())
    slowest = sorted(times.items(), key=lambda item: -item[1])[:KERNELS_SHOWN]
    lines = [f"{100 * spent / busy:5.1f} %  {1e3 * spent / steps:8.3f} ms  {name[:90]}" for name, spent in slowest]
    return "\n".join([f"{1e3 * seconds / steps:.2f} ms per step, device busy {busy / seconds:.0%} of the time", *lines])


@torch.no_grad()
def _latency(*, smoke: bool, device: str) -> list[Ratio]:
    """Measure the relative latency of the pruned model, divided by its relative multiply-adds. Weights are bf16."""
    rows = []
    for shape in [("a tiny ViT", VIT_TI, TINY)] if smoke else [VIT_S_8, VIT_B_16]:
        case = Case.make(*shape, batch_size=2, steps=1)
        fraction = count_cost(case.student).macs / count_cost(case.teacher).macs
        models = {
            "dense": case.teacher.to(device, torch.bfloat16).eval(),
            "cut": case.student.to(device, torch.bfloat16).eval(),
        }
        for compiled in (False,) if smoke else (False, True):
            torch.compiler.reset()
            run = {key: torch.compile(model, disable=not compiled) for key, model in models.items()}
            for batch_size in (8,) if smoke else (64, 256):
                rows.append(
                    _latency_row(case, run, fraction, batch_size, compiled=compiled, smoke=smoke, device=device)
                )
    return rows


def _latency_row(
    case: Case,
    models: dict[str, Callable[[Tensor], Tensor]],
    fraction: float,
    batch_size: int,
    *,
    compiled: bool,
    smoke: bool,
    device: str,
) -> Ratio:
    side = case.data.train.pixels.shape[-1]  # type: ignore[union-attr]
    images = torch.randn(batch_size, 3, side, side, device=device, dtype=torch.bfloat16)
    rounds = 3 if smoke else 50
    runs = {key: (lambda model=model: model(images)) for key, model in models.items()}
    seconds = seconds_in_turns(runs, rounds=rounds, warmup=5, device=device)
    how = "compiled" if compiled else "eager"
    return Ratio.timed(
        seconds["cut"] / seconds["dense"] / fraction,
        section="gpu",
        measure=f"relative latency: {case.name}, batch {batch_size}, {how}",
        against="relative multiply-adds",
        limit=1.10,
        setting=f"bf16 weights, {fraction:.1%} of the multiply-adds, {rounds} rounds",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="use a tiny model")
    parser.add_argument("--device", default="cuda", help="device to measure (default: cuda)")
    chosen = vars(parser.parse_args())
    for row in measure_gpu(**chosen):
        print(f"{row.measure}: {row.value:.3f} {row.unit} [{row.low:.3f}, {row.high:.3f}], holds: {row.holds}")
    for title, text in profile_gpu(**chosen).items():
        print(f"\n{title}\n{text}")
