"""Laws of latency in a report: what was missed is said, and no two numbers contradict each other."""

from typing import Any

import pytest

from vitrim.costs.latency import Latency, LatencySettings
from vitrim.reports.latency import latency_columns, latency_line, latency_row
from vitrim.reports.report import table_rows, to_markdown


def latency(ratio: float, spread: float | None = 0.01, median_ms: float = 1.0) -> Latency:
    """A latency whose interval is `ratio` plus and minus `spread`."""
    ends = (None, None) if spread is None else (ratio - spread, ratio + spread)
    about: dict[str, Any] = {
        "median_ms": median_ms,
        "p90_ms": median_ms,
        "batch_size": 4,
        "device": "cpu",
        "threads": 1,
    }
    return Latency(ratio=ratio, ratio_low=ends[0], ratio_high=ends[1], **about)


def with_latency(report: dict[str, Any], ratio: float, spread: float | None = 0.01, **changes: Any) -> dict[str, Any]:
    """The report of a run with a budget of 12 ms and a prediction of 10 ms, when the dense model took 20 ms."""
    row = latency_row(LatencySettings(on="cpu", batch_size=4), 12.0, 10.0, 20.0, latency(ratio, spread))
    dense, small = report["models"]
    return {
        **report,
        "models": [{**dense, "latency_ms": 20.0}, {**small, "name": "12 ms"}],
        "latency": {**row, **changes},
    }


@pytest.mark.parametrize(
    ("ratio", "spread", "missed"),
    [
        (0.51, 0.01, []),
        (0.48, 0.01, []),
        (0.55, 0.01, ["11 ms, 10 % above the prediction of 10 ms (outside the 95 % interval"]),
        (0.55, 0.06, ["11 ms, 10 % above the prediction of 10 ms (inside the 95 % interval"]),
        (0.45, None, ["9 ms, 10 % below the prediction of 10 ms."]),
        (
            0.65,
            0.06,
            [
                "13 ms, 8 % above the limit of 12 ms (inside the 95 % interval",
                "13 ms, 30 % above the prediction of 10 ms (outside the 95 % interval",
            ],
        ),
    ],
)
def test_the_latency_line_says_what_was_missed_and_whether_noise_explains_it(
    ratio: float, spread: float | None, missed: list[str], finished_run: Any
) -> None:
    report = with_latency(finished_run("depth").result.report, ratio, spread)
    assert report["latency"]["difference"] == pytest.approx(2 * ratio - 1)
    line = latency_line(report)
    assert line.startswith(f"Latency on cpu, batch 4: budget 12 ms, predicted 10 ms, measured {20 * ratio:.4g} ms")
    assert all(text in line for text in missed) and line.count("Measured") == len(missed)
    assert line in to_markdown(report)


@pytest.mark.parametrize(("ratio", "name"), [(0.61, "12 ms"), (0.65, "12 ms (measured 13 ms)")])
def test_a_model_is_not_called_by_a_latency_that_it_does_not_have(ratio: float, name: str, finished_run: Any) -> None:
    _, rows = table_rows(with_latency(finished_run("depth").result.report, ratio))
    assert [row[0] for row in rows] == ["dense", name]


def test_a_machine_that_became_slower_or_faster_is_not_taken_for_a_contradiction(finished_run: Any) -> None:
    report = finished_run("depth").result.report
    assert "when the plan was made" not in latency_line(with_latency(report, 0.5))
    line = latency_line(with_latency(report, 0.5, dense_ms=15.0))
    assert "The dense model took 15 ms when the plan was made, and 20 ms in the table above." in line


def test_a_report_of_version_0_1_0_has_a_latency_line_too(finished_run: Any) -> None:
    report = with_latency(finished_run("depth").result.report, 0.65)
    new = {"predicted_ms", "measured_low_ms", "measured_high_ms", "dense_ms"}
    old = {**report, "latency": {key: value for key, value in report["latency"].items() if key not in new}}
    assert old["latency"]["promised_ms"] == 10.0
    assert "Measured 13 ms, 30 % above the prediction of 10 ms." in latency_line(old)


def test_the_latencies_of_a_table_cannot_contradict_each_other(finished_run: Any) -> None:
    medians = {"dense": latency(1.0, 0.0, median_ms=2.01), "small": latency(0.78, 0.02, median_ms=3.2)}
    dense, small = latency_columns(list(medians.values()))  # the machine was busy in some rounds
    assert dense["latency_ms"] == 2.01 and small["latency_ms"] == pytest.approx(0.78 * 2.01)
    report = finished_run("depth").result.report
    rows = [{**row, **columns} for row, columns in zip(report["models"], (dense, small), strict=True)]
    header, cells = table_rows({**report, "models": rows})
    assert header[4] == f"latency, batch {report['recipe']['latency']['batch_size']}"
    assert [row[4] for row in cells] == ["2.01 ms", "x 0.78 [0.76, 0.80]"]
