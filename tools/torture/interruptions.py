"""Kills, signals and full disks at all times of a run. After each, the same command must give the right result."""

import random
import signal
import time
from collections.abc import Iterator

from tools.torture.runner import (
    Ended,
    Running,
    at_write,
    end_by_kill,
    full_disk,
    run,
    small_files,
)
from tools.torture.scene import RUN, Scene, result_of
from tools.torture.verdict import HANG, LOST, RIGHT, TRACEBACK, UNCLEAR, WRONG, Case, Record

STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 2}


def kills(scene: Scene, record: Record, count: int) -> None:
    """Kill a run `count` times at random times, twice each."""
    for number in range(count):
        name = f"time {number}"
        if record.has("kill", name):
            continue
        draw, folder = random.Random(name), scene.case(f"kill-{number}")
        for _ in range(2):
            running = Running(scene.command(), folder)
            _wait(running, draw.uniform(0.02, 1.0) * scene.seconds)
            running.kill()
            running.wait()
        record.add(_continued(scene, "kill", name, folder))


def kills_at_writes(scene: Scene, record: Record, count: int) -> None:
    """Kill a run just before one of its writes."""
    for number in _spread(scene.num_writes, count):
        name = f"write {number}"
        if record.has("kill inside a write", name):
            continue
        folder = scene.case(f"write-{number}")
        run(scene.command(), folder, at_write(number, end_by_kill, folder))
        record.add(_continued(scene, "kill inside a write", name, folder))


def signals(scene: Scene, record: Record, count: int) -> None:
    """Send SIGTERM, SIGHUP or Ctrl-C at a random time. The exit status must be the documented one."""
    for number in range(count):
        which = list(STATUS)[number % len(STATUS)]
        name = f"{which.name} {number}"
        if record.has("signal", name):
            continue
        draw, folder = random.Random(name), scene.case(f"signal-{number}")
        running = Running(scene.command(), folder)
        _wait(running, draw.uniform(0.05, 1.0) * scene.seconds)
        running.kill(which)
        ended = running.wait()
        found = _interrupted(ended, which)
        case = _continued(scene, "signal", name, folder)
        record.add(case if found == RIGHT else Case(kind="signal", name=name, verdict=found, about=_about(ended)))


def full_disks(scene: Scene, record: Record, count: int) -> None:
    """Let the disk be full from one write on, or let no file grow beyond a size."""
    for number in _spread(scene.num_writes, count - count // 3):
        name = f"from write {number} on"
        if record.has("full disk", name):
            continue
        folder = scene.case(f"disk-{number}")
        ended = run(scene.command(), folder, at_write(number, full_disk, folder / RUN))
        record.add(_after_full_disk(scene, name, folder, ended))
    for number in range(count // 3):
        size = 2 ** (4 + number % 16) + number
        name = f"files of {size} bytes"
        if record.has("full disk", name):
            continue
        folder = scene.case(f"disk-size-{size}")
        ended = run(scene.command(), folder, small_files(size))
        record.add(_after_full_disk(scene, name, folder, ended))


def _after_full_disk(scene: Scene, name: str, folder: object, ended: Ended) -> Case:
    kind = "full disk"
    if ended.has_traceback or ended.status not in (0, 2):
        verdict = HANG if ended.status is None else TRACEBACK if ended.has_traceback else UNCLEAR
        return Case(kind=kind, name=name, verdict=verdict, about=_about(ended))
    return _continued(scene, kind, name, folder)


def _continued(scene: Scene, kind: str, name: str, folder: object) -> Case:
    """Repeat the command, and compare its result with the right one."""
    from pathlib import Path

    assert isinstance(folder, Path)
    ended = run(scene.command(), folder)
    if ended.status is None:
        verdict = HANG
    elif ended.has_traceback:
        verdict = TRACEBACK
    elif ended.status:
        verdict = LOST
    else:
        verdict = RIGHT if result_of(folder / RUN) == scene.result else WRONG
    return Case(kind=kind, name=name, verdict=verdict, about=_about(ended) if verdict != RIGHT else "")


def _interrupted(ended: Ended, which: signal.Signals) -> str:
    """The verdict on a command that got a signal."""
    if ended.status is None:
        return HANG
    if ended.has_traceback:
        return TRACEBACK
    # before Python has set up its handlers, the signal ends the process; after the end, nothing is left to interrupt
    return RIGHT if ended.status in (STATUS[which], 0) else UNCLEAR


def _wait(running: Running, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not running.has_ended():
        time.sleep(0.002)


def _spread(total: int, count: int) -> Iterator[int]:
    """`count` numbers from 1 to `total`, evenly spread."""
    for index in range(min(count, total)):
        yield 1 + index * total // min(count, total)


def _about(ended: Ended) -> str:
    return f"status {ended.status}: {ended.message[-600:]}"
