"""The torture test itself: it notices what goes wrong, and a rerun goes on."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from tools.torture.corruption import DAMAGES
from tools.torture.runner import Ended, at_write, end_by_kill, full_disk, run
from tools.torture.verdict import BAD, HANG, RIGHT, TRACEBACK, UNCLEAR, WRONG, Case, Record, refusal

REFUSED = Ended(status=2, output="", errors="vitrim: There is no file x.\n", seconds=1.0)


@pytest.mark.parametrize(
    ("ended", "verdict"),
    [
        (REFUSED, RIGHT),
        (replace(REFUSED, status=0), WRONG),
        (replace(REFUSED, status=None), HANG),
        (replace(REFUSED, status=1), UNCLEAR),
        (replace(REFUSED, status=-9), UNCLEAR),
        (replace(REFUSED, errors="There is no file x.\n"), UNCLEAR),
        (replace(REFUSED, errors="Traceback (most recent call last):\nvitrim: no\n"), TRACEBACK),
    ],
)
def test_only_a_sentence_and_the_right_status_refuse(ended: Ended, verdict: str) -> None:
    assert refusal(ended) == verdict


def test_a_record_goes_on_where_it_stopped_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(tmp_path / "new" / "cases.jsonl")
    record.add(Case(kind="kill", name="1", verdict=RIGHT))
    assert record.is_good() and capsys.readouterr().out == ""
    record.add(Case(kind="kill", name="2", verdict=WRONG, about="why"))
    again = Record(tmp_path / "new" / "cases.jsonl")
    assert again.has("kill", "2") and not again.has("kill", "3") and not again.is_good()
    assert "| kill | 2 | 1 | 1 | 0 |" in again.table()
    assert "why" in capsys.readouterr().out
    assert all(word in again.table() for word in BAD)


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_changes_the_file(damage: object, tmp_path: Path) -> None:
    import random

    file, before = tmp_path / "a.json", b'{"a": 123}'
    file.write_bytes(before)
    (tmp_path / "b.json").write_bytes(b"another")
    damage(file, random.Random(0))  # type: ignore[operator]
    assert not file.is_file() or file.read_bytes() != before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_faults_strike_at_the_write_that_was_named(tmp_path: Path) -> None:
    ended = run(["--version"], tmp_path / "plain")
    assert ended.status == 0 and ended.output.startswith("vitrim ")

    def writing(number: int, action: object) -> Ended:
        folder = tmp_path / str(number)
        words = ["plan", "missing", "--data", "digits", "--keep", "0.5"]

        def fault() -> None:
            at_write(number, action, folder)()  # type: ignore[arg-type]
            for name in ("one", "two", "three"):
                (folder / name).write_text(name)

        return run(words, folder, fault)

    killed = writing(2, end_by_kill)
    assert killed.status == -signal.SIGKILL
    assert (tmp_path / "2" / "one").read_text() == "one" and not (tmp_path / "2" / "two").exists()
    full = writing(3, full_disk)
    assert full.status == 1 and "No space left on device" in full.errors
    assert (tmp_path / "3" / "two").exists()
