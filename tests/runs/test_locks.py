"""One command at a time in one folder, and what is left of processes that were killed."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vitrim.errors import FolderInUse
from vitrim.runs import locks
from vitrim.runs.files import HOLDER, LOCK, RUN, partial_path, unknown_files, write_text
from vitrim.runs.folder import RunFolder
from vitrim.runs.fresh import is_fresh
from vitrim.runs.locks import lock_file, lock_folder, locking

WAIT = "import time\nprint('holds', flush=True)\ntime.sleep(100)"
HOLD = "from pathlib import Path\nfrom vitrim.runs.locks import lock_folder\nwith lock_folder(Path({!r})):\n    "
FORK = "import multiprocessing as m, time\n    child = m.get_context('fork').Process(target=time.sleep, args=(30,))"
DEAD = 2**22 + 1  # above the largest process number of Linux


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def holder(folder: Path, code: str = WAIT) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of a folder."""
    script = HOLD.format(str(folder)) + code.replace("\n", "\n    ")
    process = subprocess.Popen([sys.executable, "-c", script, "some", "words"], text=True, stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline().startswith("holds")
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_with_the_holder_and_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with holder(folder) as process:
        before = names(folder)
        message = rf"in use by process {process.pid} on .* since 20.*some words"
        with pytest.raises(FolderInUse, match=message), lock_folder(folder):
            pass
        with pytest.raises(FolderInUse), lock_folder(tmp_path / "other" / ".." / "run"):
            pass
        assert names(folder) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert before == names(folder)  # nothing has cleaned up
        with lock_folder(folder):
            assert json.loads((folder / HOLDER).read_text())["pid"] == os.getpid()
    assert names(folder) == set()


@pytest.mark.slow
def test_the_lock_does_not_stay_with_forked_processes(tmp_path: Path) -> None:
    code = f"{FORK}\n    child.start()\n    print('holds', child.pid, flush=True)\n    time.sleep(100)"
    script = HOLD.format(str(tmp_path / "run")) + code
    process = subprocess.Popen([sys.executable, "-c", script], text=True, stdout=subprocess.PIPE)
    assert process.stdout
    child = int(process.stdout.readline().split()[1])
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        with lock_folder(tmp_path / "run"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_forked_process_that_ends_does_not_release_the_lock(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "run"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        child.start()
        child.join()
        assert _refused_in_a_thread(tmp_path / "run")


def _refused_in_a_thread(folder: Path) -> str:
    """The message with which another thread is refused; empty if it is not."""
    found = []

    def enter() -> None:
        try:
            with lock_folder(folder):
                pass
        except FolderInUse as problem:
            found.append(str(problem))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return "".join(found)


def test_a_thread_may_lock_a_folder_again_and_another_thread_may_not(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        with lock_folder(tmp_path):
            assert _refused_in_a_thread(tmp_path)
        assert _refused_in_a_thread(tmp_path)
    assert not _refused_in_a_thread(tmp_path)


def test_a_folder_or_a_link_in_place_of_the_lock_is_named(tmp_path: Path) -> None:
    for place in (Path.mkdir, lambda path: path.symlink_to("nowhere")):
        place(tmp_path / ".vitrim.lock")
        with pytest.raises(FolderInUse, match=r"\.vitrim\.lock is not the lock.*Delete it"), lock_folder(tmp_path):
            pass
        (tmp_path / ".vitrim.lock").rmdir() if (tmp_path / ".vitrim.lock").is_dir() else (
            tmp_path / ".vitrim.lock"
        ).unlink()
        with lock_folder(tmp_path):
            pass


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_fails_before_its_first_result_leaves_nothing(kind: type[BaseException], tmp_path: Path) -> None:
    @locking("run_dir")
    def work(run_dir: Path | None, result: str = "") -> None:
        assert run_dir
        run = RunFolder(run_dir, {"command": "test"})
        write_text(run_dir / "recipe.toml", "")
        if result:
            run.once_json(result, lambda: 1)
        raise kind

    with pytest.raises(kind):
        work(tmp_path / "a" / "b")
    assert names(tmp_path) == set()
    (tmp_path / "given").mkdir()
    with pytest.raises(kind):
        work(run_dir=tmp_path / "given")
    assert names(tmp_path / "given") == set()
    with pytest.raises(kind):
        work(tmp_path / "a" / "b", "stages/first.json")
    assert names(tmp_path / "a" / "b") == {RUN, "digests.json", "recipe.toml", "stages"}
    with pytest.raises(AssertionError):
        work(None)


def test_files_that_were_there_before_a_failure_stay(tmp_path: Path) -> None:
    (tmp_path / RUN).write_text("{}")
    with pytest.raises(ValueError), lock_folder(tmp_path):
        (tmp_path / "recipe.toml").touch()
        raise ValueError
    assert names(tmp_path) == {RUN}


def test_partial_files_of_dead_processes_are_deleted_and_others_are_kept(tmp_path: Path) -> None:
    write_text(tmp_path / "note.txt", "mine")
    (tmp_path / "stages").mkdir()
    dead = [tmp_path / f".model.{DEAD}-0123abcd.partial", tmp_path / "stages" / ".a.json.partial"]
    dead += [tmp_path / f".run.json.{os.getpid()}-0123abcd.partial"]
    kept = [tmp_path / f".x.{os.getppid()}-0123abcd.partial", tmp_path / ".mine.partial.txt", tmp_path / "a.partial"]
    for path in (*dead, *kept):
        path.mkdir()
        (path / "inside").touch()
    with lock_folder(tmp_path):
        assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in kept)
    assert set(unknown_files(tmp_path)) == {"note.txt", "stages", ".mine.partial.txt", "a.partial"}


def test_two_writers_of_one_file_have_partial_files_of_their_own(tmp_path: Path) -> None:
    first, second = partial_path(tmp_path / "x.json"), partial_path(tmp_path / "x.json")
    assert first != second and str(os.getpid()) in first.name
    long = tmp_path / ("n" * 250)
    write_text(long, "text")
    assert long.read_text() == "text"


def test_a_folder_in_use_by_a_killed_process_is_fresh(tmp_path: Path) -> None:
    for name in (LOCK, HOLDER, RUN, f".run.json.{DEAD}-0123abcd.partial"):
        (tmp_path / name).touch()
    assert is_fresh(tmp_path)


def test_a_file_is_written_by_one_command_at_a_time(tmp_path: Path) -> None:
    with lock_file(tmp_path / "model.onnx"):
        with pytest.raises(FolderInUse, match=r"model\.onnx is in use"), lock_file(tmp_path / "model.onnx"):
            pass
        with lock_file(tmp_path / "other.onnx"):
            pass
    assert names(tmp_path) == set()


def test_without_locks_of_the_file_system_a_warning_is_printed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class NoLock(locks.FileLock):
        def acquire(self, *arguments: object, **options: object) -> object:
            raise OSError(38, "Function not implemented")

    monkeypatch.setattr("vitrim.runs.locks.FileLock", NoLock)
    for _ in range(2):
        with lock_folder(tmp_path / "run"):
            pass
    assert capsys.readouterr().err.count("without locks") == 1


def test_what_the_holder_wrote_is_shown_without_control_characters(tmp_path: Path) -> None:
    with lock_folder(tmp_path):
        (tmp_path / HOLDER).write_text(json.dumps({"pid": "\x1b[2J", "command": "x" * 9999}))
        message = _refused_in_a_thread(tmp_path)
    assert message.isprintable() and "[2J" in message and len(message) < 600
