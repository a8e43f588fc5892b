"""What the sections `gpu-training`, `gpu-scoring` and `gpu-latency` have in common: students, peaks, the compiler.

The device is an argument. On the CPU everything runs too. This tests the code; the figures mean nothing.
"""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.costs.cases import LARGE, SMALL, VIT_B, VIT_S
from benchmarks.costs.latency import missing_for_compile, uneven_scores
from benchmarks.costs.ratios import seconds_in_turns
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.errors import percent
from vitrim.models import describe
from vitrim.plan import PruningPlan

VIT_S_8 = ("ViT-S/8 at 64 x 64", VIT_S, SMALL)
VIT_B_16 = ("ViT-B/16 at 224 x 224", VIT_B, LARGE)
KEEP = 0.7
MULTIPLE = 8
STUDENT = f"students with {percent(KEEP)} of parameters and multiply-adds, neurons in multiples of {MULTIPLE}"
# Dense bf16 in TFLOP/s from NVIDIA's data sheets. For most devices after the A100 they state twice that, with sparsity.
PEAKS = {
    "NVIDIA B200": 2250.0,
    "NVIDIA GH200": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA H200 NVL": 835.5,
    "NVIDIA H100": 989.4,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA A100": 312.0,
    "NVIDIA A40": 149.7,
    "NVIDIA A30": 165.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L4": 121.0,
}


@dataclass(frozen=True)
class Peak:
    """The peak of a device: FLOP/s of dense bf16 arithmetic, and where the number is from."""

    flops: float
    source: str


def uneven_plan(model: nn.Module, *, seed: int = 0) -> PruningPlan:
    """Return a plan with other widths in each block, as real scores lead to. Each seed leads to other widths."""
    structure = describe(model)
    budget = Budget(params=KEEP, macs=KEEP, multiple_of=MULTIPLE)
    return allocate(structure, uneven_scores(structure, seed), budget)


def peak_flops(device: str) -> Peak | None:
    """Return the peak of a device. None for the CPU.

    The source is a data sheet. For an unknown GPU, the peak is the fastest of some large matrix products.
    """
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    tera = peak_by_name(name)
    if tera is not None:
        return Peak(tera * 1e12, f"{name}, {tera:g} TFLOP/s by its data sheet")
    return measured_peak(device, name)


def peak_by_name(name: str) -> float | None:
    """Return the TFLOP/s of a device by the beginning of its name. The longest known name counts."""
    known = [beginning for beginning in PEAKS if name.startswith(beginning)]
    return PEAKS[max(known, key=len)] if known else None


def measured_peak(device: str, name: str, *, side: int = 8192) -> Peak:
    """Return the speed of the fastest of ten bf16 matrix products."""
    square = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds = seconds_in_turns({"product": lambda: square @ square}, rounds=10, warmup=3, device=device)["product"]
    found = 2 * side**3 / float(seconds.min())
    return Peak(found, f"{name}, {found / 1e12:.2g} TFLOP/s measured by a bf16 matrix product of side {side}")


def peak_bytes(run: Callable[[], object], device: str, *, base: int = 0) -> int | None:
    """Return the maximum of the bytes that torch's allocator holds for tensors during a run. None on the CPU.

    Args:
        base: bytes of tensors that do not belong to the run; subtracted.
    """
    if torch.device(device).type != "cuda":
        run()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - base


def allocated_bytes(device: str) -> int:
    """Return the bytes of all tensors on a GPU, after unused ones are deleted. 0 on the CPU."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if torch.device(device).type == "cuda" else 0


def wait(device: str) -> None:
    """Wait until a GPU has finished."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def precision(device: str) -> str:
    """Return the precision of training on the device as text."""
    return "bf16 autocast" if torch.device(device).type == "cuda" else "float32"


def largest_batch(batch_size: int, run: Callable[[int], object]) -> int:
    """Return the largest batch size for which `run` does not run out of memory: the given one, a half, a quarter, ...

    Raises:
        torch.OutOfMemoryError: not even two images fit.
    """
    while True:
        try:
            run(batch_size)
            return batch_size
        except torch.OutOfMemoryError:
            if batch_size <= 2:
                raise
        batch_size = batch_size // 4 * 2  # a training batch is even
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def fresh_compiler(*, smoke: bool) -> Iterator[None]:
    """Forget everything that was compiled, and compile into an empty cache folder within the context.

    torch compiles a function for at most eight models. Without the empty folder, a second run of a benchmark would
    compile less than the first.

    Args:
        smoke: `torch.compile` traces the model and does not compile it.
    """
    torch.compiler.reset()
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
        compile = partial(torch.compile, backend="eager") if smoke else torch.compile
        with patch.dict(os.environ, caches), patch.object(torch, "compile", compile):
            yield
    torch.compiler.reset()


def reason_not_to_compile(*, smoke: bool) -> str | None:
    """Return why `torch.compile` cannot be measured on this machine, as a sentence. None if it can."""
    missing = None if smoke else missing_for_compile()
    return f"torch.compile is not measured, because this machine has no {missing}" if missing else None
