"""Laws of the command that a report shows: it can be pasted into a shell, and a script is only named."""

import shlex
import sys

import pytest

from vitrim.runs.environment import command_line, program


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/usr/bin/vitrim", "train", "a b", "--data=$x"], ["vitrim", "train", "a b", "--data=$x"]),
        (["/lib/vitrim/__main__.py", "demo"], ["vitrim", "demo"]),
        (["/home/someone/my script.py", "--secret=1"], ["my", "script.py"]),
        (["-c"], []),
        ([""], []),
        ([], []),
        (["/usr/bin/ipython", "x"], []),
    ],
)
def test_a_command_is_shown_as_a_shell_reads_it(
    arguments: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert shlex.split(command_line()) == command
    assert program()
