"""Laws of several processes: none waits for ever for one that is gone, and none outlives its starter."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from builders.torchrun import TORCHRUN, free_port, place_of, started
from vitrim.runs import partners, processes

SCRIPT = """
import sys, time
from vitrim.runs import partners, processes
partners.MAX_START_SECONDS, partners.MAX_SILENT_SECONDS = 20.0, 3.0
{before}
try:
    rank = processes.this_process().process_index
    print("here", rank, flush=True)
    {body}
    processes.wait_for_all()
    print("met", flush=True)
except partners.PartnerMissing as problem:
    print(problem, file=sys.stderr)
    sys.exit(2)
processes.end(0)
"""


def script(folder: Path, body: str, before: str = "") -> list[str]:
    file = folder / "script.py"
    file.write_text(SCRIPT.format(body=body, before=before))
    return [sys.executable, str(file)]


def both(stack: ExitStack, command: Sequence[str]) -> list[subprocess.Popen[str]]:
    """Start two processes without `torchrun`."""
    port = free_port()
    return [stack.enter_context(started(command, **place_of(rank, port))) for rank in (0, 1)]


def wait_until_here(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    while "here" not in process.stdout.readline():
        assert process.poll() is None


@pytest.mark.slow
def test_a_process_may_work_for_long_while_the_others_wait(tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = both(stack, script(tmp_path, "time.sleep(8 * (1 - rank))"))
        outputs = [process.communicate(timeout=100) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], outputs
    assert all("met" in out for out, _ in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_frozen_process_is_noticed_by_the_other_one(killed: int, kind: int, tmp_path: Path) -> None:
    with ExitStack() as stack:
        pair = both(stack, script(tmp_path, f"time.sleep(600 * (rank == {killed}))"))
        for process in pair:
            wait_until_here(process)
        pair[killed].send_signal(kind)
        _, err = pair[1 - killed].communicate(timeout=100)
        assert pair[1 - killed].returncode in (1, 2), err
    assert "no sign of life" in err or partners.is_lost_connection(RuntimeError(err)) or "is lost" in err


@pytest.mark.slow
def test_a_process_that_never_starts_is_named_in_one_sentence(tmp_path: Path) -> None:
    command = script(tmp_path, "pass", "partners.MAX_START_SECONDS = 2.0")
    for rank in (0, 1):
        with started(command, **place_of(rank, free_port())) as process:
            _, err = process.communicate(timeout=100)
        assert process.returncode == 2
        assert err.count("Not all of the 2 processes") == 1 and f"this is process {rank}" in err
        assert "Traceback" not in err


@pytest.mark.slow
def test_workers_of_a_killed_torchrun_end_by_themselves(tmp_path: Path) -> None:
    command = script(tmp_path, "time.sleep(600)")
    with started([*TORCHRUN, command[1]]) as process:
        wait_until_here(process)
        wait_until_here(process)
        workers = psutil.Process(process.pid).children(recursive=True)
        assert len(workers) == 2
        process.kill()
        _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


@pytest.mark.slow
def test_a_test_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    command = script(tmp_path, "time.sleep(600)")
    outer = tmp_path / "outer.py"
    outer.write_text(
        "import sys, time\nfrom builders.torchrun import TORCHRUN, started\n"
        f"with started([*TORCHRUN, {command[1]!r}]) as process:\n"
        "    process.stdout.readline(), process.stdout.readline()\n    print('here', flush=True)\n    time.sleep(600)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with started([sys.executable, str(outer)], PYTHONPATH=path) as process:
        wait_until_here(process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 3
        process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["True", "rank == 1"], ids=["on all", "on one"])
def test_an_error_under_torchrun_is_printed_once_and_ends_all(failing: str, tmp_path: Path) -> None:
    body = f"import vitrim.cli as c\n    if {failing}:\n        sys.exit(c.main(['inspect', 'no-such-model']))"
    began = time.monotonic()
    with started([*TORCHRUN, script(tmp_path, body)[1]]) as process:
        _, err = process.communicate(timeout=100)
    assert time.monotonic() - began < 100 and process.returncode == 1  # of torchrun
    assert err.count("vitrim: ") == 1 and err.count("no-such-model") >= 1
    assert "exitcode  : 2" in err and "exitcode  : 1 " not in err


def test_a_process_that_nobody_watches_over_may_lose_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    ended: list[str] = []
    partners.watch_parent(ended.append)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    time.sleep(0.1)
    assert ended == []


def test_an_orphan_of_torchrun_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setattr(partners, "SECONDS_BETWEEN_SIGNS", 0.05)
    monkeypatch.setattr(os, "getppid", os.getpid)  # the tests may be started by a process that has ended
    ended: list[str] = []
    partners.watch_parent(ended.append)
    time.sleep(0.2)
    assert ended == []
    monkeypatch.setattr(os, "getppid", lambda: 1)
    time.sleep(0.2)
    assert len(ended) == 1 and "torchrun" in ended[0]


def test_one_process_alone_meets_nobody_and_prints_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes.begin()
    assert processes.is_first_to_say("this") and processes.is_first_to_say("this")
    assert processes.explain_lost_connection(RuntimeError("gloo: connection closed by peer")) == ""
    processes.end(2)
