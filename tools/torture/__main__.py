"""Interrupt, damage and misuse vitrim many times, and count what went wrong.

    python -m tools.torture -o runs/torture            # all cases, hours on two cores; a rerun goes on
    python -m tools.torture --quick -o runs/torture    # about two minutes
    python -m tools.torture --kinds kills damage       # some kinds

Exit status 1 if a case went wrong. `cases.jsonl` has one line for each case, `table.md` the counts.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.torture import bad_input, corruption, interruptions, races, several
from tools.torture.runner import preload
from tools.torture.scene import Scene, make
from tools.torture.verdict import Record

MANY = 10**6
KINDS: dict[
    str, list[tuple[Callable[[Scene, Record, int], None], int, int]]
] = {  # with numbers: of all, of the quick run
    "kills": [(interruptions.kills, 40, 1), (interruptions.kills_at_writes, 60, 3)],
    "damage": [(corruption.damaged_runs, 400, 10), (corruption.damaged_models, 100, 6)],
    "input": [(bad_input.bad_input, MANY, 0), (bad_input.hostile_files, MANY, 8)],
    "races": [(races.races, 20, 1)],
    "disk": [(interruptions.full_disks, 30, 2)],
    "signals": [(interruptions.signals, 30, 3)],
    "streams": [(several.streams, MANY, 0)],
    "processes": [(several.killed_processes, 6, 0)],
}


def main() -> None:
    """Read the command line, run the cases, and exit with 1 if one went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("runs/torture"), help="folder (default: runs/torture)"
    )
    parser.add_argument("--quick", action="store_true", help="a few cases of each kind (default: all cases)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="default: all")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    preload()
    scene = make((chosen.output / "scene").resolve())
    record = Record(chosen.output / "cases.jsonl")
    for kind in chosen.kinds:
        began, before = time.monotonic(), len(record.cases)
        for run_cases, count, few in KINDS[kind]:
            run_cases(scene, record, few if chosen.quick else count)
        print(f"{kind}: {len(record.cases) - before} cases in {time.monotonic() - began:.0f} s", flush=True)
    (chosen.output / "table.md").write_text(record.table() + "\n")
    print(record.table())
    sys.exit(0 if record.is_good() else 1)


if __name__ == "__main__":
    main()
