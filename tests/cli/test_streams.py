"""Standard output and standard error that cannot be written: no traceback, and the command goes on."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FULL = Path("/dev/full")
TEXT = (
    "import sys\nfrom vitrim.cli.streams import forgiving\n"
    "with forgiving() as streams:\n    print('a ' * 99999)\n    print('\\u00d7 \\ud800', flush=True)\n"
    "    print('problem', file=sys.stderr)\n    found = streams.problem()\n"
    "open(sys.argv[1], 'w').write(found)"
)


def in_shell(tmp_path: Path, redirection: str, **environment: str) -> tuple[int, str, str, str]:
    """Run a program that prints in a shell. Returns its status, what it printed, and what it says was lost."""
    code, lost = tmp_path / "code.py", tmp_path / "lost"
    code.write_text(TEXT)
    command = f"{sys.executable} {code} {lost} {redirection}"
    if "|" in redirection:
        command = f"set -o pipefail; {command}"
    options: dict[str, Any] = {"capture_output": True, "timeout": 60, "env": {**os.environ, **environment}}
    done = subprocess.run(["bash", "-c", command], **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode(), lost.read_text()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "| true", "| head -c 5", "2>/dev/full"])
def test_nothing_is_said_when_nobody_reads(redirection: str, tmp_path: Path) -> None:
    status, _, err, lost = in_shell(tmp_path, redirection)
    assert (status, lost) == (0, "")
    assert err in ("problem\n", "")


@pytest.mark.skipif(not FULL.exists(), reason="Linux has this device")
def test_a_full_disk_is_noticed_and_raises_nothing(tmp_path: Path) -> None:
    status, _, err, lost = in_shell(tmp_path, "> /dev/full")
    assert (status, err, lost) == (0, "problem\n", "No space left on device")


def test_letters_that_an_encoding_lacks_are_escaped(tmp_path: Path) -> None:
    status, out, err, _ = in_shell(tmp_path, "", PYTHONIOENCODING="ascii")
    assert (status, err) == (0, "problem\n")
    assert out.endswith("\\xd7 \\ud800\n")


def test_a_file_of_the_command_does_not_become_a_closed_standard_output(tmp_path: Path) -> None:
    code = "import os, sys\nfrom vitrim.cli.streams import forgiving\n"
    code += f"with forgiving():\n    file = open({str(tmp_path / 'file')!r}, 'w')\n    os.write(1, b'lost')\n"
    code += "    os.write(2, b'lost')\n    file.write('kept')"
    subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" >&- 2>&-'], check=True, timeout=60)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_command_whose_result_is_lost_ends_with_2(tmp_path: Path) -> None:
    if not FULL.exists():
        pytest.skip("Linux has this device")
    command = f"{sys.executable} -m vitrim --help > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        "vitrim: Standard output cannot be written: No space left on device.\n",
    )
    done = subprocess.run(["bash", "-c", f"{sys.executable} -m vitrim --help | true"], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
