"""Reading records: arms have the same names everywhere, and incomplete records are skipped."""

from pathlib import Path

from benchmarks import config
from benchmarks.measurements import ARMS, read_measurements
from builders.records import write_arm, write_cell


def test_the_arms_are_those_of_the_runs() -> None:
    assert ARMS == config.ARMS


def test_an_incomplete_measurement_is_skipped_and_named(tmp_path: Path) -> None:
    write_cell(tmp_path, ("vitrim",), (0.7,))
    write_arm(tmp_path, "paper", 0.7, 0, evaluation=None)
    found, notes = read_measurements([tmp_path])
    assert len(found) == 2
    assert len(notes) == 1 and "keep-0.7/paper/arm.json is left out" in notes[0]
