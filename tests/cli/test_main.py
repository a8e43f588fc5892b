"""How commands end: exit status, what is printed where, and which files are left. Some run as users run them."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import vitrim
from builders.command_line import SHOW_EXAMPLE, CommandFolder, call, call_in_new_process, error_line, start
from vitrim.cli.commands import COMMANDS


def test_status_0_and_nothing_on_standard_error_without_a_problem() -> None:
    status, out, err = call_in_new_process(["--version"])
    assert (status, out.strip(), err) == (0, f"vitrim {vitrim.__version__}", "")


def test_status_2_and_one_line_when_the_user_must_change_something(place: CommandFolder) -> None:
    status, out, err = call_in_new_process(place.compress("--kep", "0.5"))
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "--kep" in error_line(err) and error_line(err).endswith(SHOW_EXAMPLE)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_threads_that_wait_spin_for_a_short_time_unless_the_user_says_otherwise(
    stated: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in stated.items():
        monkeypatch.setenv(name, value)
    # torch reads the variables when it is imported; the command ends before that, and says what it finds
    spy = "import os, sys, types\ndef run_demo(folder):\n"
    spy += f"    print({{name: os.environ[name] for name in {names} if name in os.environ}})\n"
    spy += "    print('torch' in sys.modules)\n    raise KeyboardInterrupt\n"
    spy += "sys.modules['vitrim.cli.demo'] = types.SimpleNamespace(run_demo=run_demo)"
    _, out, _ = call_in_new_process(["demo"], spy)
    assert out.splitlines() == [str(expected), "False"]


def test_status_1_and_a_traceback_for_a_bug() -> None:
    bug = "import sys, types\n"
    bug += "sys.modules['vitrim.cli.demo'] = types.SimpleNamespace(run_demo=lambda folder: 1 / 0)"
    status, out, err = call_in_new_process(["demo"], bug)
    assert (status, out) == (1, "")
    assert "ZeroDivisionError" in err and "Please report it" in err


def test_a_system_error_that_the_user_cannot_fix_is_a_bug(
    place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: Any) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr("vitrim.models.describe", refuse)
    status, _, err = call(capsys, "inspect", place.dense)
    assert status == 1
    assert os.strerror(errno.EBADF) in err and "Please report it" in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_file_that_cannot_be_written_is_named(
    number: int, place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *arguments: Any, **options: Any) -> None:
        raise OSError(number, os.strerror(number))  # system calls on open files name no file

    monkeypatch.setattr(Path, "write_text", refuse)
    status, _, err = call(capsys, *place.compress())
    assert status == 2
    assert os.strerror(number) in error_line(err) and "run.json" in error_line(err)
    assert place.nothing_written()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A context in which this process cannot write more bytes to a file. Python ignores the signal that comes then."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_after_a_full_disk_the_same_command_continues(
    place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep truncated .pyc files
    with files_of_at_most(20_000):
        status, _, err = call(capsys, *place.compress("--depth", "0"))
    assert status == 2
    line = error_line(err)
    assert "File too large" in line and "model.safetensors" in line
    assert place.nothing_written()
    assert call(capsys, *place.compress("--depth", "0"))[0] == 0


@pytest.mark.slow
def test_after_ctrl_c_the_same_command_continues(place: CommandFolder, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--depth", "0", "--set", "width_training.checkpoint_minutes=0", "--epochs", "20"]
    # A shell that runs tests in the background makes its children ignore Ctrl-C.
    process = start(
        place.compress(*settings), "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    )
    checkpoint = place.out / "width.checkpoint.safetensors"
    for _ in range(6000):
        if checkpoint.exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    process.send_signal(2)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 2, err
    assert "Interrupted. Run the same command again" in error_line(err)
    assert not out and place.nothing_written() and checkpoint.exists()
    status, out, err = call(capsys, *place.compress(*settings))
    assert status == 0
    assert "resuming at step" in err, err
    assert (place.out / "report.json").exists() and not checkpoint.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_after_a_signal_of_a_batch_system_the_same_command_continues(
    name: str, status: int, place: CommandFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--depth", "0", "--epochs", "400"]
    process = start(place.compress(*settings), f"import signal\nsignal.signal(signal.{name}, signal.SIG_DFL)")
    for _ in range(6000):
        if (place.out / "metrics.jsonl").exists() or process.poll() is not None:
            break
        time.sleep(0.01)
    refused, _, err = call(capsys, *place.compress(*settings))
    assert refused == 2 and f"in use by process {process.pid}" in error_line(err)
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=100)
    assert process.returncode == status, err
    assert f"Ended by {name}. Run the same command again" in error_line(err)
    assert (place.out / "width.checkpoint.safetensors").exists() and not (place.out / ".vitrim.lock").exists()
    status, _, err = call(capsys, *place.compress(*settings))
    assert status == 0 and "resuming at step" in err


def test_help_is_fast_and_imports_no_model_library() -> None:
    code = "import resource, sys; from vitrim.cli import run; status = run(['--help'])\n"
    code += "used = resource.getrusage(resource.RUSAGE_SELF)\n"
    code += "heavy = {'torch', 'timm', 'numpy', 'transformers'} & sys.modules.keys()\n"
    code += "print(status, len(heavy), used.ru_utime + used.ru_stime, file=sys.stderr)"
    times = []
    for _ in range(3):  # the first run may have to compile the modules
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        status, num_heavy, seconds = done.stderr.split()
        assert (status, num_heavy) == ("0", "0")
        times.append(float(seconds))
    assert min(times) < 0.5
    assert all(command.__name__ in done.stdout for command in COMMANDS)


def test_a_lack_of_memory_names_the_options_that_help(
    place: CommandFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 9")

    monkeypatch.setattr("vitrim.models.describe", fail)
    status, _, err = call(capsys, "inspect", place.dense)
    assert status == 2
    assert "There is not enough memory" in error_line(err) and "--batch-size" in error_line(err)
