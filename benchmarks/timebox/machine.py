"""The calls on a rented machine that keeps its files and processes between commands. docs/gpu.md shows them.

    python3 call0/repo/benchmarks/timebox/machine.py start call0 -- --model vit-s --data tiny-imagenet
    python3 ROOT/repo/benchmarks/timebox/machine.py part call1
    python3 ROOT/repo/benchmarks/timebox/machine.py run call2 --seconds 650 --wait 560 --to OUT
    python3 ROOT/repo/benchmarks/timebox/machine.py wait --wait 200 --to OUT

This file is run as a script before anything is installed, so it uses the standard library only. It copies files,
installs wheels, starts processes and waits for them. What they do belongs to the other files.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

ROOT = Path("/tmp/timebox")
SHOWN = ("epoch", "top-1", "plan", "speed", "feed", "left out", "finished", "Error", "benchmarks.timebox:")


class Machine:
    """The folder in which everything lies on the machine.

    ROOT/repo        the code
    ROOT/site        installed wheels
    ROOT/parts       parts of the archive that have arrived
    ROOT/weights     pieces of weights that have arrived
    ROOT/arrays      decoded images
    ROOT/out         the run, as `python -m benchmarks.timebox -o ROOT/out` writes it, and the logs
    """

    def __init__(self, root: Path) -> None:
        """Use the folder `root`, which need not exist."""
        self.root, self.out = root, root / "out"
        self.options_file = root / "options.json"
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    # Files

    def install(self, call: Path) -> None:
        """Copy the code, and install the wheels that the machine lacks."""
        shutil.copytree(call / "repo", self.root / "repo", dirs_exist_ok=True)
        needed = sorted((call / "wheels" / "need").glob("*.whl"))
        others = [wheel for wheel in sorted((call / "wheels" / "maybe").glob("*.whl")) if not _is_installed(wheel)]
        if needed or others:
            options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
            target = ["--target", str(self.root / "site")]
            wheels = [str(wheel) for wheel in (*needed, *others)]
            subprocess.run([sys.executable, "-m", "pip", "install", *options, *target, *wheels], check=True)

    def receive(self, call: Path) -> None:
        """Copy parts and weights. Each file appears whole, because other processes wait for it."""
        for kind in ("parts", "weights"):
            for file in sorted((call / kind).glob("*")):
                folder = self.root / kind
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / ".arriving")
                os.replace(folder / ".arriving", folder / file.name)

    # Processes

    def start(self, name: str, *arguments: str) -> None:
        """Start `python -m benchmarks.timebox` in the background. It outlives this call and writes `out/NAME.log`."""
        self.out.mkdir(parents=True, exist_ok=True)
        with (self.out / f"{name}.log").open("ab") as log:
            self._started[name] = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.timebox", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.root,
                start_new_session=True,
            )
        (self.root / f"{name}.pid").write_text(str(self._started[name].pid))

    def stop(self, name: str) -> None:
        """Stop a process that `start` started, and its children."""
        if self.is_alive(name):
            os.killpg(int((self.root / f"{name}.pid").read_text()), signal.SIGKILL)
        if name in self._started:
            self._started.pop(name).wait()

    def is_alive(self, name: str) -> bool:
        """Return whether a process that `start` started still runs. A killed process that nobody waits for does not."""
        try:
            pid = (self.root / f"{name}.pid").read_text()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return False
        return "State:\tZ" not in status and "State:\tX" not in status

    def environment(self) -> dict[str, str]:
        """Return the environment of the processes."""
        paths = (self.root / "site", self.root / "repo" / "src", self.root / "repo")
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "PYTHONUNBUFFERED": "1",
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "inductor"),
            "HF_HUB_OFFLINE": "1",
        }

    # The calls

    def work(self) -> None:
        """Start the run, or continue it."""
        options = json.loads(self.options_file.read_text())
        self.start("work", *options["run"], "-o", str(self.out))

    def set_deadline(self, seconds: float) -> None:
        """Write the deadline, for which the run waits. A deadline that is already written stays."""
        file = self.out / "deadline.json"
        if not file.is_file():
            arriving = file.with_name(".deadline.json")
            arriving.write_text(json.dumps({"deadline": time.time() + seconds, "seconds": seconds}) + "\n")
            os.replace(arriving, file)

    def is_finished(self) -> bool:
        """Return whether the run has finished."""
        file = self.out / "state.json"
        return file.is_file() and json.loads(file.read_text())["finished"]

    def wait(self, seconds: float) -> None:
        """Wait for the run and print what happens. A run that was killed is started again, but not one that failed."""
        until, log = time.time() + seconds, self.out / "work.log"
        shown, starts = log.stat().st_size if log.is_file() else 0, 0
        while not self.is_finished() and time.time() < until:
            if not self.is_alive("work"):
                if starts == 1:
                    print("The run has failed; work.log tells why.", flush=True)
                    break
                self.work()
                starts += 1
            time.sleep(min(1.0, max(0.0, until - time.time())))
            shown = _print_new(log, shown)
        _print_new(log, shown)
        print("The run has finished." if self.is_finished() else "The run goes on.", flush=True)

    def pack(self, to: Path, arguments: Sequence[str]) -> None:
        """Write the results so far into a few small files."""
        command = [sys.executable, "-m", "benchmarks.timebox", "pack", str(self.out), str(to.absolute()), *arguments]
        subprocess.run(command, check=True, env=self.environment(), cwd=self.root)
        print((to / "summary.json").read_text()[:6000], flush=True)


def _is_installed(wheel: Path) -> bool:
    """Return whether the machine has the version of a wheel."""
    name, copied = wheel.name.split("-")[:2]
    try:
        return version(name) == copied
    except PackageNotFoundError:
        return False


def _print_new(log: Path, shown: int) -> int:
    """Print the lines of a log after the byte `shown` that tell of progress. Return where the next call begins."""
    if not log.is_file():
        return shown
    with log.open("rb") as file:
        file.seek(shown)
        text = file.read().rpartition(b"\n")
    for line in text[0].decode(errors="replace").splitlines():
        if any(word in line for word in SHOWN):
            print(line[:200], flush=True)
    return shown + len(text[0]) + len(text[1])


def start(machine: Machine, call: Path, parts: Sequence[str], options: Sequence[str]) -> None:
    """Install, and start what can run before the deadline is known: decoding, the measurement of speeds, imports.

    Args:
        machine: where.
        call: folder that was copied.
        parts: names of all parts of the archive, in their order; empty if the images come from elsewhere.
        options: of `python -m benchmarks.timebox`.
    """
    machine.root.mkdir(parents=True, exist_ok=True)
    machine.install(call)
    machine.receive(call)
    run = list(options)
    if parts:
        run += ["--arrays", str(machine.root / "arrays")]
        paths = [str(machine.root / "parts" / part) for part in parts]
        machine.start("feed", "feed", *paths, "-o", str(machine.root / "arrays"))
    machine.options_file.write_text(json.dumps({"run": run}) + "\n")
    machine.start("speeds", "speeds", "-o", str(machine.out), *_of_speeds(options))
    machine.work()


def _of_speeds(options: Sequence[str]) -> list[str]:
    """Return those options of a run that the measurement of speeds has, too."""
    return [word for name, value in pairwise(options) if name in ("--model", "--data") for word in (name, value)]


def run(machine: Machine, call: Path, seconds: float) -> None:
    """Receive the last files, end the measurement of speeds, and set the deadline."""
    machine.receive(call)
    machine.stop("speeds")  # what it has measured is kept
    machine.set_deadline(seconds)


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the arguments of a call. Those after `--` are returned as they are, for the benchmark or for `pack`."""
    split = list(words).index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("start", "part", "run", "wait"))
    parser.add_argument("call", type=Path, nargs="?", help="folder that was copied, made by `prepare`")
    parser.add_argument("--root", type=Path, default=ROOT, help=f"folder for everything (default: {ROOT})")
    parser.add_argument(
        "--parts", nargs="*", default=(), help="start: names of all parts of the archive, in their order"
    )
    parser.add_argument("--seconds", type=float, default=0.0, help="run: seconds until the deadline")
    parser.add_argument("--wait", type=float, default=0.0, help="run, wait: seconds to wait for the run")
    parser.add_argument("--to", type=Path, help="run, wait: folder for the packed files")
    found = parser.parse_args(list(words[:split]))
    if found.call is None and found.what != "wait":
        parser.error(f"{found.what} needs the folder that was copied")
    if found.what == "run" and found.seconds <= 0:
        parser.error("run needs --seconds, the time until the deadline")
    return found, list(words[split + 1 :])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one call."""
    found, rest = parse(sys.argv[1:] if arguments is None else arguments)
    machine = Machine(found.root.absolute())
    if found.what == "start":
        start(machine, found.call, found.parts, rest)
    elif found.what == "part":
        machine.receive(found.call)
    elif found.what == "run":
        run(machine, found.call, found.seconds)
    if found.what in ("run", "wait"):
        machine.wait(found.wait)
        if found.to:
            machine.pack(found.to, rest)


if __name__ == "__main__":
    main()
