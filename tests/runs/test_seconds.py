"""Laws of the seconds of a run: they survive a kill, nothing is counted twice, and damage is no error."""

import time
from pathlib import Path

import pytest

from vitrim.runs.digests import Digests
from vitrim.runs.seconds import StepSeconds, read_seconds


def steps(folder: Path) -> StepSeconds:
    (folder / "stages").mkdir(exist_ok=True)
    return StepSeconds(folder / "stages" / "seconds.json", Digests(folder))


def test_seconds_of_an_interrupted_run_are_kept(tmp_path: Path) -> None:
    first, second = steps(tmp_path), steps(tmp_path)
    with first.measuring("a"):
        time.sleep(0.02)
    with pytest.raises(KeyboardInterrupt), second.measuring("b"):
        raise KeyboardInterrupt
    with second.measuring("c"):
        pass
    found = read_seconds(second.file)
    assert list(found) == ["a", "c"] and found["a"] >= 0.02 > found["c"]


def test_a_result_that_is_made_inside_of_another_one_is_counted_once(tmp_path: Path) -> None:
    found = steps(tmp_path)
    with found.measuring("outer"), found.measuring("inner"):
        time.sleep(0.05)
    seconds = read_seconds(found.file)
    assert seconds["inner"] >= 0.05 > seconds["outer"]


def test_a_damaged_file_is_begun_again(tmp_path: Path) -> None:
    found = steps(tmp_path)
    for text in ("{", "[]", '{"seconds": {"a": "x"}}', '{"seconds": {"a": 1}}'):  # the last one is not what was noted
        with found.measuring("a"):
            pass
        found.file.write_text(text)
        assert read_seconds(found.file) == {}
    with found.measuring("b"):
        pass
    assert list(read_seconds(found.file)) == ["b"]


def test_a_folder_without_stages_gets_no_file(tmp_path: Path) -> None:
    found = StepSeconds(tmp_path / "stages" / "seconds.json", Digests(tmp_path))
    with found.measuring("a"):
        pass
    assert list(tmp_path.iterdir()) == [] and read_seconds(found.file) == {}
