"""Progress lines and times."""

import sys
import time

import pytest
from rich.console import Console

from vitrim.runs import progress
from vitrim.runs.progress import advancing, duration, log, track


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (40, "40 s"),
        (59.7, "1 min"),
        (150, "2 min"),
        (3599, "1 h"),
        (11100, "3 h 5 min"),
        (2e5, "2 d 8 h"),
    ],
)
def test_a_duration_is_said_in_one_or_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_of_a_log_have_date_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    log("scored")
    line = capsys.readouterr().err
    assert time.strptime(line[:19], "%Y-%m-%d %H:%M:%S") and line[19:] == " scored\n"


def test_a_log_says_how_far_a_task_is_and_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    with advancing("distilling", 1100, done=100) as advance:
        for _ in range(10):
            clock.now += 60
            advance(100)
    lines = [line[20:] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "distilling: 200 of 1,100, about 9 min left"
    assert lines[1] == "distilling: 300 of 1,100, about 8 min left"
    assert len(lines) == 4  # the time between lines doubles, and a task that is done needs none


def test_a_short_task_prints_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(range(3), "short")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_a_bar_says_a_time_from_the_second_step_on_also_for_long_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(progress, "is_interactive", lambda: True)
    console = Console(stderr=True, force_terminal=True, width=120, get_time=lambda: clock.now)
    monkeypatch.setattr(progress, "console", lambda: console)
    assert sys.stderr is not None
    with advancing("removing blocks", 10) as advance:
        for _ in range(2):
            clock.now += 35
            advance(1)
    assert "0:04:40" in capsys.readouterr().err
