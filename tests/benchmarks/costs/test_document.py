"""The lines, the summary and the settings of `performance.md`."""

import pytest

from benchmarks.costs.document import line_of, settings_of, summary
from benchmarks.costs.ratios import Ratio
from builders.ratios import ratio


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (ratio(1.1, limit=1.15), ["time", "a pass", "1.100", "at most 1.15", "yes"]),
        (ratio(1.2, limit=1.15, low=1.1, high=1.3), ["time", "a pass", "1.200 [1.100, 1.300]", "at most 1.15", "no"]),
        (ratio(0.96, limit=0.95, at_least=True), ["time", "a pass", "0.960", "at least 0.95", "yes"]),
        (ratio(0.94, limit=0.95, at_least=True), ["time", "a pass", "0.940", "at least 0.95", "no"]),
        (ratio(1234.5, against="", unit="images/s"), ["time", "-", "1,234 images/s", "-", "-"]),
        (ratio(0.00432, against="", unit="s", limit=1.0), ["time", "-", "0.0043 s", "at most 1 s", "yes"]),
    ],
)
def test_a_line_shows_value_limit_and_verdict(row: Ratio, line: list[str]) -> None:
    assert line_of(row) == line


def test_the_summary_counts_values_within_their_limits_and_names_the_others() -> None:
    rows = [ratio(1.0, limit=1.2), ratio(1.1, limit=1.2), ratio(9.0), ratio(1.3, limit=1.2, measure="bytes")]
    records = [{"ratios": [row.to_dict() for row in some]} for some in (rows[:1], rows[1:])]
    assert summary(records) == (
        "2 values are within the limit, 1 is not: scoring: bytes, divided by a pass (1.300, at most 1.2)"
    )
    assert summary(records[:1]) == "1 value is within the limit"


def test_a_long_setting_is_written_once() -> None:
    long = "and so on, " * 9
    settings = [
        *("ViT-S, 2 threads, 5 rounds; fisher", f"ViT-S, 2 threads, 5 rounds; {long}", "ViT-S, 2 threads, 5 rounds"),
        *(f"ViT-S, 2 threads, 5 rounds; {long}", "ViT-L, 2 threads, 3 rounds", "2 threads"),
    ]
    labels, notes = settings_of([ratio(setting=setting) for setting in settings])
    assert labels == ["1; fisher", "1a", "1", "1a", "2", "3"]
    assert notes == [
        *(("all", "2 threads"), ("1", "ViT-S, 5 rounds"), ("1a", long), ("2", "ViT-L, 3 rounds")),
        ("3", "no other setting"),
    ]
