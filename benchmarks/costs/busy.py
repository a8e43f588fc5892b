"""The section `busy`: what worker processes and waiting threads cost and save, beside other programs that compute.

Each other program is a process with one thread that computes without end, in a session of its own, as a service or
another terminal would be.

* Images: files that do not fit in memory are decoded by workers (`num_workers = "auto"`), against no workers. A turn is
  a whole epoch, so the time to start workers counts.
* Threads: training as the commands run it (`vitrim.cli.limit_spinning`), against OpenMP's default. The variable is read
  when torch is imported, so each is a process that trains when it is asked to.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.costs.cases import SMALL, TINY, VIT_TI, Case, jpegs
from benchmarks.costs.loops import VitrimLoop
from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.cli import SPIN_COUNT
from vitrim.data.matching import Calibration
from vitrim.data.workers import NumWorkers
from vitrim.evaluation import evaluate
from vitrim.importance.criteria import score
from vitrim.recovery.recover import recover

# The programs end with the process that started them, also if it is killed.
COMPUTE = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
BUSY = (0, 1, 4)  # other programs
IMAGES = ("training", "scoring", "recovery", "evaluation")
SHAPES = {"the ViT of vitrim demo, 8 x 8 pixels": "demo", "ViT-Ti/8 at 64 x 64": "tiny"}
LIMITED = {"GOMP_SPINCOUNT": SPIN_COUNT}
DEFAULT: dict[str, str] = {}


@contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """A context in which `count` other processes compute."""
    programs = [subprocess.Popen([sys.executable, "-c", COMPUTE], start_new_session=True) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def measure_images(*, smoke: bool = False, busy: Sequence[int] = BUSY) -> Iterator[list[Ratio]]:
    """Measure `auto` against no workers, for each way to use images, beside each number of other programs.

    Args:
        smoke: a tiny model and few images. The figures mean nothing.
        busy: numbers of other programs.
    """
    rounds = 1 if smoke else 5
    shape = {**TINY, "num_classes": 10} if smoke else {**SMALL, "num_classes": 10}
    case = Case.make(
        "a tiny ViT" if smoke else "ViT-Ti/8 at 64 x 64", VIT_TI, shape, batch_size=8 if smoke else 32, steps=1
    )
    with TemporaryDirectory() as folder, ExitStack() as stack:
        data = jpegs(Path(folder), 16 if smoke else 192, 10)
        data = replace(data, in_output_order=True)
        runs = {f"{what}, {workers}": run for workers in (0, "auto") for what, run in _uses(case, data, workers, stack)}
        for count in busy:
            with busy_programs(count):
                seconds = seconds_in_turns(runs, rounds=rounds, warmup=0 if smoke else 1)
            yield [
                Ratio.timed(
                    seconds[f"{what}, 0"] / seconds[f"{what}, auto"],
                    section="busy",
                    measure=f"images per second of {what} from JPEG files, {_beside(count)}, workers auto",
                    against="no workers",
                    limit=1.0,
                    at_least=True,
                    setting=f"{case.name}, {len(data.train)} files of 256 x 256 pixels, batch "
                    f"{case.settings.batch_size}, {torch.get_num_threads()} threads, {rounds} rounds",
                )
                for what in IMAGES
            ]


def _uses(case: Case, data: object, workers: NumWorkers, stack: ExitStack) -> list[tuple[str, Callable[[], object]]]:
    """The ways to use images, each once for all of them."""
    found = data.with_num_workers(workers)  # type: ignore[attr-defined]
    loop = VitrimLoop(case, stack, data=found)
    batches = Calibration(images=found.train, model=case.teacher, batch_size=int(case.settings.batch_size))
    return [
        ("training", loop.epoch),
        ("scoring", partial(score, case.teacher, batches)),
        ("recovery", partial(recover, case.student, case.teacher, case.plan, batches)),
        ("evaluation", partial(evaluate, case.teacher, found)),
    ]


def _beside(count: int) -> str:
    return "quiet machine" if not count else f"beside {count} busy process{'es' if count > 1 else ''}"


# Threads


class _Trainer:
    """A process that trains for some seconds when it is asked to, under some variables of the environment."""

    def __init__(self, shape: str, variables: dict[str, str], stack: ExitStack) -> None:
        names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
        environment = {name: value for name, value in os.environ.items() if name not in names} | variables
        command = [sys.executable, "-m", "benchmarks.costs.busy_process", shape]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
        stack.callback(self.close)
        self.read()

    def read(self) -> float:
        """The next number that the process prints."""
        return float(self.process.stdout.readline())

    def images_per_second(self, seconds: float) -> float:
        """Train for some seconds, in whole updates."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def measure_threads(*, smoke: bool = False, busy: Sequence[int] = BUSY) -> Iterator[list[Ratio]]:
    """Measure training with limited spinning against OpenMP's default, beside each number of other programs.

    Args:
        smoke: one short round. The figures mean nothing.
        busy: numbers of other programs.
    """
    rounds, seconds = (1, 0.0) if smoke else (9, 1.0)
    for name, shape in list(SHAPES.items())[: 1 if smoke else None]:
        with ExitStack() as stack:
            limited, default = _Trainer(shape, LIMITED, stack), _Trainer(shape, DEFAULT, stack)
            for count in busy:
                with busy_programs(count):
                    pairs = [[one.images_per_second(seconds) for one in (limited, default)] for _ in range(rounds)]
                first, second = np.array(pairs).T
                yield [
                    Ratio.timed(
                        first / second,
                        section="busy",
                        measure=f"images per second of training {name}, {_beside(count)}, spinning limited",
                        against="OpenMP's default",
                        limit=1.0 if count else 0.9,
                        at_least=True,
                        setting=f"in memory, {torch.get_num_threads()} threads, {rounds} rounds of {seconds:g} s",
                    )
                ]
