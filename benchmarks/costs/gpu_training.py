"""The section `gpu-training`: speed, fraction of the peak, memory, compilation and slowest kernels of training.

For each model and batch size there are two trainings: of the dense model on labels, and of a student with the teacher.
Both are run eager and compiled. All loops of a line run in turns, and each turn is a whole epoch, so that the time of
making batches counts.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from torch.profiler import ProfilerActivity, profile

from benchmarks.costs.cases import TINY, VIT_TI, Case
from benchmarks.costs.found import Found, Parts
from benchmarks.costs.gpu import (
    STUDENT,
    VIT_B_16,
    VIT_S_8,
    Peak,
    allocated_bytes,
    fresh_compiler,
    largest_batch,
    peak_bytes,
    peak_flops,
    precision,
    reason_not_to_compile,
    uneven_plan,
    wait,
)
from benchmarks.costs.loops import VitrimLoop
from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.costs.counting import count_cost
from vitrim.errors import percent
from vitrim.runs.progress import log
from vitrim.surgery import prune

MIN_PERCENT_OF_PEAK = 45.0
KERNELS_SHOWN = 10
STEPS, ROUNDS = 10, 3
DENSE, DISTILLATION, OTHER = "dense training", "distillation", "distillation of the second student"


class Shape(NamedTuple):
    """A model, the largest batch size to try, and whether a second student is compiled, which is slow."""

    name: str
    architecture: str
    sizes: dict[str, int]
    batch_size: int
    second_student: bool


SHAPES = (Shape(*VIT_S_8, 1024, True), Shape(*VIT_B_16, 128, False), Shape(*VIT_S_8, 512, False))
SMOKE = (Shape("a tiny ViT", VIT_TI, TINY, 8, True),)


def parts(*, smoke: bool = False, device: str = "cuda", peak: Peak | None = None) -> Parts:
    """Return one part for each model and batch size.

    Args:
        smoke: a tiny model and few steps, traced but not compiled. The figures mean nothing.
        device: the device on which vitrim trains on this machine.
        peak: peak of the device (default: by its name; on the CPU the fraction of the peak is left out).
    """
    return {
        f"{shape.name}, batch {shape.batch_size}": partial(_measure, shape, smoke=smoke, device=device, peak=peak)
        for shape in (SMOKE if smoke else SHAPES)
    }


def flops_per_image(case: Case, *, distil: bool) -> int:
    """Return the floating-point operations of training for one image: two for each multiply-add.

    A training needs three times the multiply-adds of a forward pass. Distillation needs one forward pass of the
    teacher more.
    """
    dense = count_cost(case.teacher).macs
    return 2 * (3 * count_cost(case.student).macs + dense) if distil else 2 * 3 * dense


@dataclass(kw_only=True)
class _Run:
    """The loops of one part, by training and by `eager` or `compiled`, and what their lines have in common."""

    case: Case
    device: str
    peak: Peak | None
    rounds: int
    stack: ExitStack
    loops: dict[tuple[str, str], VitrimLoop] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.case.name}, batch {self.case.settings.batch_size}"

    @property
    def about(self) -> dict[str, Any]:
        return {"section": "gpu-training", "setting": f"{self.name}, {precision(self.device)}, augmentation, {STUDENT}"}

    def add(self, training: str, how: str, case: Case) -> tuple[float, int | None]:
        """Open a loop, run its first step and an epoch. Return the seconds of the first step and the peak memory."""
        settings = replace(case.settings, compile=how == "compiled")
        base = allocated_bytes(self.device)
        loop = VitrimLoop(replace(case, settings=settings), self.stack, distil=training != DENSE)
        assert loop.loop.device.type == self.device.split(":")[0]
        batch = next(loop.batches())
        wait(self.device)
        start = perf_counter()
        loop.update(batch)
        wait(self.device)
        seconds = loop.opening_seconds + perf_counter() - start
        self.loops[training, how] = loop
        return seconds, peak_bytes(loop.epoch, self.device, base=base)

    def turns(self) -> dict[tuple[str, str], np.ndarray]:
        """Return the seconds of a step of each loop, `(rounds,)`."""
        keys = {" ".join(key): key for key in self.loops if key[0] != OTHER}
        runs = {name: self.loops[key].epoch for name, key in keys.items()}
        seconds = seconds_in_turns(runs, rounds=self.rounds, device=self.device)
        return {key: seconds[name] / self.case.steps for name, key in keys.items()}


def _measure(shape: Shape, *, smoke: bool, device: str, peak: Peak | None) -> Iterator[Found]:
    """Measure one part. Each result is yielded as soon as it is known."""
    steps = 2 if smoke else STEPS
    make = partial(Case.make, shape.name, shape.architecture, shape.sizes, steps=steps, plan_of=uneven_plan)
    fitting = largest_batch(shape.batch_size, lambda size: _one_step(make(batch_size=size)))
    peak = peak or peak_flops(device)
    with fresh_compiler(smoke=smoke), ExitStack() as stack:
        case = make(batch_size=fitting)
        run = _Run(case=case, device=device, peak=peak, rounds=2 if smoke else ROUNDS, stack=stack)
        for training in (DENSE, DISTILLATION):
            _, memory = run.add(training, "eager", case)
            yield Found(ratios=_memory(run, training, "eager", memory))
        seconds = run.turns()
        yield Found(ratios=[*_speeds(run, seconds, "eager"), _against_dense(run, seconds, "eager")])
        reason = reason_not_to_compile(smoke=smoke)
        if reason:
            log(f"{run.name}: {reason}")
        else:
            yield from _compiled(run, second_student=shape.second_student)
        for (training, how), loop in run.loops.items():
            if training != OTHER:
                title = f"{run.name}, {training}, {how}"
                yield Found(texts={title: profile_epoch(loop.epoch, case.steps, device)})


def _one_step(case: Case) -> None:
    """Run one step of distillation, which needs the most memory."""
    with ExitStack() as stack:
        loop = VitrimLoop(case, stack)
        loop.update(next(loop.batches()))


def _compiled(run: _Run, *, second_student: bool) -> Iterator[Found]:
    """Measure the compiled loops, each beside the eager one."""
    cases = {DISTILLATION: run.case, DENSE: run.case}
    if second_student:
        plan = uneven_plan(run.case.teacher, seed=1)
        other = replace(run.case, plan=plan, student=prune(run.case.teacher, plan))
        cases = {DISTILLATION: run.case, OTHER: other, DENSE: run.case}
    first_steps: dict[str, float] = {}
    for training, case in cases.items():
        log(f"{run.name}: compiling {training}")
        earlier = " and ".join(first_steps) or "nothing"
        seconds, memory = run.add(training, "compiled", case)
        about = {**run.about, "setting": f"{run.about['setting']}; compiled before: {earlier}"}
        measure = f"time until the first compiled step is done: {run.name}, {training}"
        rows = [Ratio.counted(seconds, measure=measure, against="", unit="s", **about)]
        if training == OTHER:
            ratio = seconds / first_steps[DISTILLATION]
            rows.append(Ratio.counted(ratio, measure=measure, against="that of the first student", **about))
        else:
            rows += _memory(run, training, "compiled", memory)
        first_steps[training] = seconds
        yield Found(ratios=rows)
    yield Found(ratios=_compiled_speeds(run))


def _compiled_speeds(run: _Run) -> list[Ratio]:
    seconds = run.turns()
    rows = [*_speeds(run, seconds, "compiled"), _against_dense(run, seconds, "compiled")]
    for training in (DENSE, DISTILLATION):
        rows.append(
            Ratio.timed(
                seconds[training, "eager"] / seconds[training, "compiled"],
                measure=f"images per second: {run.name}, {training}, compiled",
                against="eager",
                **run.about,
            )
        )
    return rows


def _memory(run: _Run, training: str, how: str, memory: int | None) -> list[Ratio]:
    if memory is None:
        return []
    measure = f"peak memory: {run.name}, {training}, {how}"
    return [Ratio.counted(memory / 2**30, measure=measure, against="", unit="GiB", **run.about)]


def _speeds(run: _Run, seconds: dict[tuple[str, str], np.ndarray], how: str) -> list[Ratio]:
    """Return images per second and the fraction of the peak of both trainings."""
    rows = []
    turns = f"{run.about['setting']}; {run.rounds} epochs of {run.case.steps} steps"
    about = {"section": run.about["section"], "against": "", "at_least": True}
    for training in (DENSE, DISTILLATION):
        name = f"{run.name}, {training}, {how}"
        speed = run.case.settings.batch_size / seconds[training, how]
        rows.append(Ratio.timed(speed, measure=f"training speed: {name}", unit="images/s", setting=turns, **about))
        if run.peak:
            flops = flops_per_image(run.case, distil=training == DISTILLATION)
            rows.append(
                Ratio.timed(
                    100 * speed * flops / run.peak.flops,
                    measure=f"training, in % of the bf16 peak: {name}",
                    unit="%",
                    limit=MIN_PERCENT_OF_PEAK,
                    setting=f"{turns}, {flops / 1e9:.3g} GFLOP for an image; {run.peak.source}",
                    **about,
                )
            )
    return rows


def _against_dense(run: _Run, seconds: dict[tuple[str, str], np.ndarray], how: str) -> Ratio:
    return Ratio.timed(
        seconds[DENSE, how] / seconds[DISTILLATION, how],
        measure=f"images per second: {run.name}, {DISTILLATION}, {how}",
        against=DENSE,
        **run.about,
    )


def profile_epoch(epoch: Callable[[], object], steps: int, device: str) -> str:
    """Return the slowest kernels of an epoch, and the fraction of the time that the device is busy, as text."""
    on_gpu = device.startswith("cuda")
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        wait(device)
        start = perf_counter()
        epoch()
        wait(device)
        seconds = perf_counter() - start
    times = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        for event in profiler.key_averages()
    }
    busy = sum(times.values())
    slowest = sorted(times.items(), key=lambda item: -item[1])[:KERNELS_SHOWN]
    lines = [f"{100 * spent / busy:5.1f} %  {1e3 * spent / steps:8.3f} ms  {name[:90]}" for name, spent in slowest]
    return "\n".join(
        [f"{1e3 * seconds / steps:.2f} ms per step, device busy {percent(busy / seconds)} of the time", *lines]
    )
