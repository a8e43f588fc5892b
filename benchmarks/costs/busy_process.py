"""The command `python -m benchmarks.costs.busy_process SHAPE`: trains when it is asked to, and prints the speed.

It first prints 0. For each line of standard input, a number of seconds, it trains in whole updates until they are over,
and prints images per second. It is a process of its own, because OpenMP reads its settings when torch is imported.
"""

import sys
import time
from contextlib import ExitStack
from itertools import chain, count

from benchmarks.costs.cases import SMALL, VIT_TI, Case
from benchmarks.costs.loops import VitrimLoop
from vitrim.cli.demo import SHAPE


def case_of(shape: str) -> Case:
    """The model and the batches of `vitrim demo`, or a ViT-Ti."""
    if shape == "demo":
        return Case.make(shape, VIT_TI, {**SHAPE, "num_classes": 10}, batch_size=64, steps=8)
    return Case.make(shape, VIT_TI, SMALL, batch_size=16, steps=4)


def main() -> None:
    """Train when asked to, until standard input ends."""
    case = case_of(sys.argv[1])
    with ExitStack() as stack:
        loop = VitrimLoop(case, stack, distil=False)
        loop.epoch()
        print(0, flush=True)
        for line in sys.stdin:
            begun, updates = time.perf_counter(), 0
            for batch in chain.from_iterable(loop.batches() for _ in count()):
                loop.update(batch)
                updates += 1
                if time.perf_counter() - begun >= float(line):
                    break
            print(updates * int(case.settings.batch_size) / (time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    main()
