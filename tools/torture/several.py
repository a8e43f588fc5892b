"""Two processes of one training, one of which is killed, and streams that cannot be written, in new Pythons."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tools.torture.runner import PYTHON, Ended, run
from tools.torture.scene import RUN, Scene, result_of
from tools.torture.verdict import HANG, LOST, RIGHT, TRACEBACK, UNCLEAR, WRONG, Case, Record

MAX_PARTNER, MAX_ORPHAN = 120.0, 60.0  # seconds after which a missing partner is reported, and an orphan has ended
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "vitrim"]


def killed_processes(scene: Scene, record: Record, count: int) -> None:
    """Kill one worker, both, or the agent of a training with two processes."""
    kind = "two processes, one killed"
    for number in range(count):
        which = ("first worker", "second worker", "agent")[number % 3]
        name = f"{which} {number}"
        if record.has(kind, name):
            continue
        folder = scene.case(f"several-{number}")
        verdict, about = _kill_one(scene, folder, which, random.Random(name))
        record.add(Case(kind=kind, name=name, verdict=verdict, about=about))


def _kill_one(scene: Scene, folder: Path, which: str, draw: random.Random) -> tuple[str, str]:
    log = folder / "log"
    with log.open("wb") as stream:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        agent = subprocess.Popen(
            [*TORCHRUN, *scene.command()], cwd=folder, stdout=stream, stderr=stream, env=environment
        )
    workers = _workers(agent, folder)
    time.sleep(draw.uniform(0, scene.seconds))
    alive = psutil.Process(agent.pid).children() if agent.poll() is None else []
    target = agent.pid if which == "agent" else (workers[0 if which == "first worker" else 1] if workers else 0)
    if not alive or not target:
        agent.wait()
        return (RIGHT, "") if result_of(folder / RUN) else (LOST, log.read_text(errors="replace")[-600:])
    os.kill(target, signal.SIGKILL)
    began, allowed = time.monotonic(), MAX_ORPHAN if which == "agent" else MAX_PARTNER
    while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in alive):
        if time.monotonic() - began > allowed:
            for one in alive:
                one.kill()
            return HANG, f"workers still ran after {allowed:.0f} s"
        time.sleep(0.2)
    agent.wait()
    ended = run(scene.command(), folder)
    if ended.status or ended.has_traceback:
        return LOST, ended.message
    return (RIGHT, "") if result_of(folder / RUN) else (WRONG, "no result")


def _workers(agent: "subprocess.Popen[bytes]", folder: Path) -> list[int]:
    """The processes of the training, once the run has begun; none if it has ended before."""
    until = time.monotonic() + 120
    while time.monotonic() < until and agent.poll() is None:
        children = psutil.Process(agent.pid).children()
        if len(children) >= 2 and (folder / RUN / "run.json").exists():
            return sorted(child.pid for child in children)[:2]
        time.sleep(0.1)
    return []


STREAMS = {
    "standard output closed": "{command} >&-",
    "standard error closed": "{command} 2>&-",
    "both closed": "{command} >&- 2>&-",
    "standard output full": "{command} >/dev/full",
    "standard error full": "{command} 2>/dev/full",
    "both full": "{command} >/dev/full 2>&1",
    "output read by head -1": "{command} | head -1",
    "output read by nobody": "{command} | true",
    "errors read by nobody": "{command} 2>&1 >/dev/null | true",
    "ASCII terminal": "LC_ALL=C PYTHONIOENCODING=ascii {command}",
    "standard input closed": "{command} <&-",
}
READING = ("inspect", "evaluate", "plan")


def streams(scene: Scene, record: Record, count: int) -> None:
    """Run commands with streams that are closed, full or read by nobody. A run goes on and has its result."""
    cases = [(name, what) for name in STREAMS for what in ("compress", *READING)]
    for name, what in cases[:count]:
        if record.has("streams", f"{what}, {name}"):
            continue
        folder = scene.case("streams")
        words = _words(scene, what)
        script = f"set -o pipefail; {STREAMS[name].format(command=shlex.join([*PYTHON, *words]))}"
        record.add(_judged(scene, what, name, folder, _shell(script, folder)))


def _judged(scene: Scene, what: str, name: str, folder: Path, ended: Ended) -> Case:
    verdict = RIGHT
    if ended.status is None:
        verdict = HANG
    elif ended.has_traceback or "Exception ignored" in ended.errors:
        verdict = TRACEBACK
    elif what == "compress" and result_of(folder / RUN) != scene.result:
        verdict = LOST
    elif (what == "compress" and ended.status not in (0, 141)) or ended.status not in (0, 1, 2, 141):
        verdict = UNCLEAR
    about = "" if verdict == RIGHT else f"status {ended.status}: {ended.message[-400:]}"
    return Case(kind="streams", name=f"{what}, {name}", verdict=verdict, about=about)


def _words(scene: Scene, what: str) -> list[str]:
    if what == "compress":
        return scene.command()
    words = [what, str(scene.dense)] + ([] if what == "inspect" else ["--data", "digits"])
    return [*words, "--keep", "0.5"] if what == "plan" else words


def _shell(script: str, folder: Path) -> Ended:
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, timeout=180, env=environment)
    except subprocess.TimeoutExpired:
        return Ended(status=None, output="", errors="", seconds=time.monotonic() - began)
    texts = [text.decode(errors="replace") for text in (done.stdout, done.stderr)]
    return Ended(status=done.returncode, output=texts[0], errors=texts[1], seconds=time.monotonic() - began)
