"""The section `busy`: other programs compute only while it measures, and each line has its ratio."""

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.costs import busy
from benchmarks.costs.busy import IMAGES, busy_programs, measure_images, measure_threads
from benchmarks.costs.ratios import Ratio


def test_other_programs_end_when_the_measurement_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(busy.subprocess, "Popen", lambda *a, **o: started.append(popen(*a, **o)) or started[-1])
    with pytest.raises(ZeroDivisionError), busy_programs(2):
        assert [program.poll() for program in started] == [None, None]
        raise ZeroDivisionError
    assert all(program.poll() is not None for program in started)


@pytest.mark.slow
@pytest.mark.parametrize(("measure", "per_count"), [(measure_images, len(IMAGES)), (measure_threads, 1)])
def test_each_line_is_measured_beside_each_number_of_programs(
    measure: Callable[..., Iterator[list[Ratio]]], per_count: int
) -> None:
    rows: list[Any] = [row for rows in measure(smoke=True, busy=(0, 1)) for row in rows]
    assert len(rows) == len({row.measure for row in rows}) == 2 * per_count
    assert all(row.value > 0 and row.setting and row.section == "busy" for row in rows)
    assert sum("quiet machine" in row.measure for row in rows) == per_count
