"""The section `distillation`: the cost of a training step, against a minimal loop and against its own parts.

Also measured: how long training waits for images. Each turn of vitrim's loop is a whole epoch, so that the time for
making batches counts even if several batches are made together.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.costs.cases import LARGE, TINY, VIT_S, VIT_TI, Case, jpegs
from benchmarks.costs.loops import MinimalLoop, VitrimLoop, both_loops, count_step, needed_bytes
from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.models import describe

MINIMAL = "the minimal loop"


def measure_distillation(*, smoke: bool = False, device: str = "cpu") -> list[Ratio]:
    """Measure speed, memory and waiting of the training loop.

    Args:
        smoke: a tiny model and few steps. The figures mean nothing.
        device: the device on which vitrim trains on this machine.
    """
    case = Case.small(smoke=smoke, steps=2 if smoke else 3)
    with both_loops(case) as (ours, minimal):
        assert ours.loop.device.type == torch.device(device).type
        rows = [*_counted(case, ours, minimal), *_timed(case, ours, minimal, rounds=2 if smoke else 5, device=device)]
    return [*rows, *_waiting(smoke=smoke)]


def _counted(case: Case, ours: VitrimLoop, minimal: MinimalLoop) -> list[Ratio]:
    batch = next(ours.batches())
    mine = count_step(lambda: ours.update(batch), ours.loop.model)
    theirs = count_step(minimal.step, minimal.student)
    about = {"section": "distillation", "setting": case.setting}
    return [
        Ratio.counted(
            mine.peak_bytes / theirs.peak_bytes,
            measure="peak bytes of a step",
            against=MINIMAL,
            limit=1.02,
            **about,
        ),
        Ratio.counted(
            mine.saved_bytes / needed_bytes(minimal),
            measure="bytes kept for the backward pass",
            against="the student's forward pass plus the teacher's hidden states",
            limit=1.01,
            **about,
        ),
        Ratio.counted(mine.calls / theirs.calls, measure="calls of torch in a step", against=MINIMAL, **about),
    ]


def _timed(case: Case, ours: VitrimLoop, minimal: MinimalLoop, *, rounds: int, device: str) -> list[Ratio]:
    runs = {"ours": ours.epoch, "minimal": _repeated(case, minimal.step), **_parts(case, ours, minimal)}
    seconds = seconds_in_turns(runs, rounds=rounds, device=device)
    parts = seconds["student"] + seconds["teacher"] + seconds["optimiser"] + seconds["batches"]
    about = {"section": "distillation", "setting": f"{case.setting}, {rounds} rounds of {case.steps} steps"}
    rate = {"measure": "images per second", "at_least": True, **about}
    percent = {"against": "", "unit": "%", **about}
    return [
        Ratio.timed(seconds["minimal"] / seconds["ours"], against=MINIMAL, limit=0.95, **rate),
        Ratio.timed(parts / seconds["ours"], against="the sum of the parts, each run alone", limit=0.90, **rate),
        Ratio.timed(
            100 * seconds["batches"] / seconds["ours"], measure="time of making batches, in % of a step", **percent
        ),
        Ratio.timed(
            100 * seconds["average"] / seconds["ours"], measure="time of the moving average, in % of a step", **percent
        ),
    ]


def _parts(case: Case, ours: VitrimLoop, minimal: MinimalLoop) -> dict[str, Callable[[], object]]:
    """Return the parts of an epoch, each as a run of its own."""
    labels = torch.arange(len(minimal.images), device=minimal.images.device) % len(minimal.images)
    labels %= int(describe(minimal.student).num_classes)

    def student() -> None:
        with minimal.bf16:
            logits = minimal.student(minimal.images)
        minimal.states[minimal.student].clear()
        F.cross_entropy(logits.float(), labels).backward()

    def teacher() -> None:
        minimal.teacher_logits()
        minimal.states[minimal.teacher].clear()

    def optimiser() -> None:
        nn.utils.clip_grad_norm_(minimal.student.parameters(), 1.0)
        minimal.optimizer.step()

    return {
        "student": _repeated(case, student),
        "teacher": _repeated(case, teacher),
        "optimiser": _repeated(case, optimiser),
        "batches": lambda: list(ours.batches()),
        "average": _repeated(case, lambda: ours.loop.ema and ours.loop.ema.update(ours.loop.model, step=1)),
    }


def _repeated(case: Case, run: Callable[[], object]) -> Callable[[], None]:
    """Return a function that runs `run` once for each step of an epoch."""

    def turn() -> None:
        for _ in range(case.steps):
            run()

    return turn


def _waiting(*, smoke: bool) -> list[Ratio]:
    """Measure the fraction of the time that training waits for a batch."""
    steps = 4 if smoke else 6
    memory = Case.small(smoke=smoke, steps=steps)
    shape = ("a tiny ViT", VIT_TI, {**TINY, "img_size": 64}) if smoke else ("ViT-S/16 at 224 x 224", VIT_S, LARGE)
    files = Case.make(*shape, batch_size=8, steps=steps)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        found = jpegs(Path(folder), 8 * steps, len(files.data.classes))
        loops = {
            "small images in memory": (memory, VitrimLoop(memory, stack)),
            "JPEG files of 256 x 256 pixels": (files, VitrimLoop(files, stack, data=found)),
        }
        return [
            Ratio.counted(
                100 * np.divide(*loop.seconds_waiting()),
                section="distillation",
                measure=f"time of waiting for {name}, in % of all time",
                against="",
                unit="%",
                limit=2.0,
                setting=f"{case.setting}, {steps} steps, the first one not counted",
            )
            for name, (case, loop) in loops.items()
        ]
