"""The section `latency`: the relative latency of pruned models, divided by their relative multiply-adds.

The runtimes are PyTorch on the CPU, ONNX Runtime and `torch.compile`. All models of a line run in turns. Latency on a
GPU belongs to `gpu_latency`, latency budgets to `budget`.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.errors import percent
from vitrim.importance.scores import Scores
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.plan import PruningPlan
from vitrim.programs.onnx import onnx_program
from vitrim.programs.program import random_images
from vitrim.runs.progress import log
from vitrim.structure import ViTStructure
from vitrim.surgery import prune

LIMIT = 1.10
DENSE = "dense"
SPREAD = 1.0  # standard deviation of the logarithm of scores, between blocks and within each block
Program = Callable[[Tensor], object]


class Cut(NamedTuple):
    """One way to prune the dense model.

    Attributes:
        keep: fraction of parameters and multiply-adds to keep.
        multiple: the number of neurons is a multiple of this.
        blocks: number of blocks to remove.
        head_width: width of the narrowed heads; 0 keeps their width.
    """

    keep: float
    multiple: int
    blocks: int = 0
    head_width: int = 0

    def __str__(self) -> str:
        removed = f", {self.blocks} blocks removed" if self.blocks else ""
        narrowed = f", heads of width {self.head_width}" if self.head_width else ""
        return f"keep {self.keep}, neurons in multiples of {self.multiple}{removed}{narrowed}"


NARROW = (Cut(0.7, 8, head_width=48), Cut(0.5, 8, head_width=32))
ALL = (*(Cut(keep, multiple) for keep in (0.7, 0.5) for multiple in (1, 8, 32)), Cut(0.5, 8, blocks=3), *NARROW)
SOME = (Cut(0.7, 1), Cut(0.7, 8), Cut(0.5, 8), *NARROW)
FEW = SOME[:2]  # for slow models and for compilation


@dataclass(frozen=True, kw_only=True)
class Line:
    """Pruned models that run in turns with the dense model, with one batch size and number of rounds."""

    batch_size: int
    rounds: int
    cuts: Sequence[Cut] = ALL


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dense model and its lines. `compiled` holds the lines for `torch.compile`."""

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    lines: Sequence[Line]
    compiled: Sequence[Line]


CASES = (
    Case(
        name="ViT-S/8 at 64 x 64",
        architecture="vit_small_patch16_224",
        arguments={"img_size": 64, "patch_size": 8, "num_classes": 200},
        lines=(Line(batch_size=1, rounds=50), Line(batch_size=64, rounds=5)),
        compiled=(Line(batch_size=1, rounds=50, cuts=FEW), Line(batch_size=64, rounds=7, cuts=FEW)),
    ),
    Case(
        name="ViT-S/16 at 224 x 224",
        architecture="vit_small_patch16_224",
        arguments={},
        lines=(Line(batch_size=1, rounds=20, cuts=SOME), Line(batch_size=64, rounds=3, cuts=FEW)),
        compiled=(Line(batch_size=1, rounds=20, cuts=FEW),),
    ),
)
SMOKE = Case(
    name="a tiny ViT",
    architecture="vit_tiny_patch16_224",
    arguments={"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 10},
    lines=(Line(batch_size=2, rounds=2, cuts=(Cut(0.7, 8), Cut(0.7, 8, head_width=6))),),
    compiled=(Line(batch_size=2, rounds=2, cuts=(Cut(0.7, 8),)),),
)


def measure_compressed_latency(*, smoke: bool = False) -> list[Ratio]:
    """Measure all lines of the section: one for each model, runtime, batch size and pruned model.

    Args:
        smoke: a tiny model and two rounds, traced but not compiled. The figures mean nothing.
    """
    return [row for case in ((SMOKE,) if smoke else CASES) for row in _rows(case, "eager" if smoke else "inductor")]


def uneven_scores(structure: ViTStructure, seed: int = 0) -> Scores:
    """Return random scores that lead to different widths in different blocks, as real scores do.

    The score of a unit is its multiply-adds, times a log-normal number of its block, times a log-normal number of its
    own.
    """
    rng = np.random.default_rng(seed)
    block_factors = rng.lognormal(sigma=SPREAD, size=len(structure.blocks))

    def draw(key: str) -> tuple[np.ndarray, ...]:
        groups = [block.group(key) for block in structure.blocks]
        return tuple(
            group.macs * factor * rng.lognormal(sigma=SPREAD, size=group.count)
            for group, factor in zip(groups, block_factors, strict=True)
        )

    return Scores(
        model=structure.model,
        criterion="random",
        num_images=0,
        heads=draw("heads"),
        neurons=draw("neurons"),
        blocks=block_factors,
    )


def dense_and_cut(case: Case) -> dict[str, nn.Module]:
    """Return the dense model and all pruned models of the case, by name."""
    torch.manual_seed(0)
    dense = create_model(case.architecture, **case.arguments).eval()
    structure = describe(dense)
    scores = uneven_scores(structure)

    def cut_by(cut: Cut) -> nn.Module:
        budget = Budget(params=cut.keep, macs=cut.keep, multiple_of=cut.multiple)
        removed = tuple(np.argsort(scores.blocks)[: cut.blocks].tolist())
        full, whole = PruningPlan.full(structure), count_cost(structure)
        narrowed = prune(dense, full.with_head_widths(structure, cut.head_width)) if cut.head_width else dense
        return prune(narrowed, allocate(describe(narrowed), scores, budget, whole=whole, remove_blocks=removed))

    cuts = dict.fromkeys(cut for line in (*case.lines, *case.compiled) for cut in line.cuts)
    return {DENSE: dense, **{str(cut): cut_by(cut) for cut in cuts}}


@torch.no_grad()
def _rows(case: Case, backend: str) -> Iterator[Ratio]:
    models = dense_and_cut(case)
    for line in case.lines:
        yield from _timed(case, line, "PyTorch", models, models)
    log(f"{case.name}: exporting {len(models)} models to ONNX")
    programs = {name: onnx_program(model) for name, model in models.items()}
    for line in case.lines:
        yield from _timed(case, line, "ONNX Runtime", models, programs)
    if backend == "inductor" and (missing := missing_for_compile()):
        log(f"{case.name}: torch.compile is not measured, because this machine has no {missing}")
        return
    for line in case.compiled:
        torch.compiler.reset()  # torch compiles a function for at most eight models, then runs it uncompiled
        compiled = _compiled(line, models, backend)
        yield from _timed(case, line, "torch.compile", models, compiled)


def _timed(
    case: Case, line: Line, runtime: str, models: Mapping[str, nn.Module], programs: Mapping[str, Program]
) -> Iterator[Ratio]:
    """Measure one line: one row for each pruned model."""
    images = random_images(models[DENSE], line.batch_size)
    runs = {name: partial(programs[name], images) for name in _names(line)}
    seconds = seconds_in_turns(runs, rounds=line.rounds)
    dense_macs = count_cost(models[DENSE]).macs
    for cut in map(str, line.cuts):
        fraction = count_cost(models[cut]).macs / dense_macs
        yield Ratio.timed(
            seconds[cut] / seconds[DENSE] / fraction,
            section="latency",
            measure=f"relative latency: {case.name}, batch {line.batch_size}, {cut}, {runtime}",
            against="relative multiply-adds",
            limit=LIMIT,
            setting=(
                f"{case.name}, batch {line.batch_size}, float32, {torch.get_num_threads()} threads, {line.rounds} "
                f"rounds; {percent(fraction, 1)} of the multiply-adds, dense {1000 * np.median(seconds[DENSE]):.1f} ms"
            ),
        )


def _compiled(line: Line, models: Mapping[str, nn.Module], backend: str) -> dict[str, Program]:
    """Compile the models for the line's batch size. The first pass compiles, so it is run here."""
    images, found = random_images(models[DENSE], line.batch_size), {}
    for name in _names(line):
        log(f"compiling: {name}, batch {line.batch_size}")
        found[name] = torch.compile(models[name], backend=backend, dynamic=False)
        found[name](images)
    return found


def missing_for_compile() -> str | None:
    """Return what `torch.compile` needs on the CPU and this machine lacks. None if nothing is missing."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler):
        return f"C++ compiler ({compiler})"
    headers = Path(sysconfig.get_path("include"))
    return None if (headers / "Python.h").is_file() else f"Python.h in {headers}"


def _names(line: Line) -> list[str]:
    return [DENSE, *map(str, line.cuts)]
