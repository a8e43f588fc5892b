"""The command line: every command on the page about GPUs is one that the programs take."""

import re
from pathlib import Path

import pytest

from benchmarks.timebox.__main__ import app
from benchmarks.timebox.machine import parse

PAGE = Path(__file__).parents[3] / "docs" / "gpu.md"
NUMBERS = {"SECONDS": "600", "WAIT": "500"}


def commands(start: str) -> list[str]:
    """The commands on the page that begin so, without `start`. Some continue on the next line."""
    text = re.sub(r" \\\n +", " ", PAGE.read_text())
    return re.findall(rf"^ {{4,}}{re.escape(start)} (.+)$", text, re.M)


@pytest.mark.parametrize("command", commands("python -m benchmarks.timebox"))
def test_commands_of_the_benchmark_parse(command):
    _, bound, *_ = app.parse_args(command.split(), exit_on_error=False, print_error=False)
    assert bound.arguments


def machine_commands() -> list[str]:
    return re.findall(r"^ {4,}python3 \S+/machine\.py (.+)$", PAGE.read_text(), re.M)


@pytest.mark.parametrize("command", machine_commands())
def test_commands_on_the_machine_parse(command):
    options, rest = parse([NUMBERS.get(word, word) for word in command.split()])
    assert options.what in ("start", "part", "run", "wait")
    if rest:
        words = rest if options.what == "start" else ["pack", "run", "to", *rest]
        output = ["-o", "out"] if options.what == "start" else []
        _, bound, *_ = app.parse_args([*words, *output], exit_on_error=False, print_error=False)
        assert bound.arguments


def test_the_page_shows_all_calls_on_the_machine():
    assert [command.split()[0] for command in machine_commands()[:4]] == ["start", "part", "run", "wait"]
