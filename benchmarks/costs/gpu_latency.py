"""The section `gpu-latency`: the latency of pruned models on a GPU, divided by that of the dense model.

All models of a line run in turns. `measure_latency` of vitrim times the same passes in float32. With bf16 autocast, the
weights stay float32 and the products are in bf16.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.costs.cases import TINY, VIT_TI
from benchmarks.costs.found import Found, Parts
from benchmarks.costs.gpu import VIT_B_16, VIT_S_8, fresh_compiler, reason_not_to_compile
from benchmarks.costs.latency import DENSE, LIMIT, NARROW, Case, Cut, Line, dense_and_cut
from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.costs.counting import count_cost
from vitrim.costs.latency import LatencySettings, forward_passes
from vitrim.errors import percent
from vitrim.programs.program import random_images
from vitrim.runs.progress import log

CUTS = (*(Cut(keep, multiple) for keep in (0.7, 0.5) for multiple in (8, 1)), *NARROW)
COMPILED = (Cut(0.7, 8),)  # compilation is slow
WARMUP = 5
MIN_BATCH_WITH_LIMIT = 64  # a GPU is not busy with fewer images, so the number of kernels decides
Program = Callable[[], object]


def _case(model: tuple[str, str, Mapping[str, Any]], *, lines: Sequence[Line], compiled: Sequence[Line]) -> Case:
    name, architecture, sizes = model
    return Case(name=name, architecture=architecture, arguments=sizes, lines=lines, compiled=compiled)


LINES = tuple(Line(batch_size=size, rounds=rounds, cuts=CUTS) for size, rounds in ((1, 50), (64, 30), (256, 15)))
CASES = (
    _case(VIT_S_8, lines=LINES, compiled=(Line(batch_size=256, rounds=30, cuts=COMPILED),)),
    _case(VIT_B_16, lines=LINES, compiled=()),
)
SMOKE = (
    _case(
        ("a tiny ViT", VIT_TI, TINY),
        lines=(Line(batch_size=2, rounds=2, cuts=(Cut(0.7, 8), Cut(0.7, 1), Cut(0.7, 8, head_width=6))),),
        compiled=(Line(batch_size=2, rounds=2, cuts=COMPILED),),
    ),
)


def parts(*, smoke: bool = False, device: str = "cuda") -> Parts:
    """Return one part for each model, and one for compiled models.

    Args:
        smoke: a tiny model and two rounds, traced but not compiled. The figures mean nothing.
        device: device of the models.
    """
    cases = SMOKE if smoke else CASES
    eager = {case.name: partial(_eager, case, device=device) for case in cases}
    return eager | {
        f"{case.name}, compiled": partial(_compiled, case, smoke=smoke, device=device)
        for case in cases
        if case.compiled
    }


def _models(case: Case, device: str) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Return the models on the device, and their multiply-adds relative to the dense model, by name."""
    models = dense_and_cut(case)
    macs = {name: count_cost(model).macs for name, model in models.items()}
    fractions = {name: count / macs[DENSE] for name, count in macs.items()}
    return {name: model.to(device) for name, model in models.items()}, fractions


def _eager(case: Case, *, device: str) -> Iterator[Found]:
    """Measure one model with each batch size, in both precisions. The passes are those of `measure_latency`."""
    models, fractions = _models(case, device)
    for line in case.lines:
        names = [DENSE, *map(str, line.cuts)]
        settings = LatencySettings(batch_size=line.batch_size)
        passes = dict(zip(names, forward_passes([models[name] for name in names], settings), strict=True))
        for how, runs in {"bf16 autocast": _in_bf16(passes, device), "float32": passes}.items():
            yield Found(ratios=_rows(case, line, fractions, runs, how=how, device=device))


def _compiled(case: Case, *, smoke: bool, device: str) -> Iterator[Found]:
    """Measure compiled models in bf16 autocast. The warm-up compiles."""
    reason = reason_not_to_compile(smoke=smoke)
    if reason:
        log(f"{case.name}: {reason}")
        return
    models, fractions = _models(replace(case, lines=case.compiled), device)
    for line in case.compiled:
        images = random_images(models[DENSE], line.batch_size)
        with fresh_compiler(smoke=smoke):
            passes = {name: partial(torch.compile(model), images) for name, model in models.items()}
            how = "bf16 autocast, compiled"
            yield Found(ratios=_rows(case, line, fractions, _in_bf16(passes, device), how=how, device=device))


def _in_bf16(passes: Mapping[str, Program], device: str) -> dict[str, Program]:
    """Return the passes in bf16 autocast."""

    def run(program: Program) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            program()

    return {name: partial(run, program) for name, program in passes.items()}


@torch.no_grad()
def _rows(
    case: Case, line: Line, fractions: Mapping[str, float], runs: Mapping[str, Program], *, how: str, device: str
) -> list[Ratio]:
    """Measure one line: one row for each pruned model."""
    seconds = seconds_in_turns(runs, rounds=line.rounds, warmup=WARMUP, device=device, collect_each=False)
    return [
        Ratio.timed(
            seconds[cut] / seconds[DENSE],
            section="gpu-latency",
            measure=f"latency: {case.name}, batch {line.batch_size}, {cut}, {how}",
            against="latency of the dense model",
            limit=round(LIMIT * fractions[cut], 3) if line.batch_size >= MIN_BATCH_WITH_LIMIT else None,
            setting=(
                f"{case.name}, batch {line.batch_size}, {line.rounds} rounds; {percent(fractions[cut], 1)} of the "
                f"multiply-adds, dense {1000 * np.median(seconds[DENSE]):.3g} ms"
            ),
        )
        for cut in map(str, line.cuts)
    ]
