"""Laws of the report: its keys, and that texts and tables say what the numbers say."""

import json
from typing import Any

import pytest

from builders.runs import FinishedRun
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.costs.latency import LatencySettings
from vitrim.report import latency_line, latency_row, table_rows, to_markdown


@pytest.mark.parametrize("name", ["depth", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_report_has_the_keys_of_the_format(name: str, finished_run: Any) -> None:
    run: FinishedRun = finished_run(name)
    report = json.loads((run.folder / "report.json").read_text())
    assert report == run.result.report
    assert {"models", "stages", "environment", "recipe"} <= report.keys()
    columns = {"name", "keep", "top1", "top1_low", "top1_high", "params", "macs", "latency_ms", "file_bytes"}
    dense, small = report["models"]
    assert columns <= dense.keys() and columns <= small.keys()
    assert (dense["name"], dense["keep"], small["keep"]) == ("dense", 1.0, 0.6)
    for row in (dense, small):
        assert 0 <= row["top1_low"] <= row["top1"] <= row["top1_high"] <= 100
    assert small["file_bytes"] == (run.folder / "model" / "model.safetensors").stat().st_size
    assert small["params"] == count_cost(run.result.model).params
    assert all({"name", "top1", "params", "macs"} <= stage.keys() for stage in report["stages"])
    names = [stage["name"] for stage in report["stages"]]
    assert names[:4] == ["dense", "width cut", "width recover", "width distil"]
    assert names[4:] in ([], ["depth cut", "depth recover", "depth distil"])


def test_the_text_has_every_model_stage_and_difference(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    report, text = run.result.report, (run.folder / "report.md").read_text()
    assert text == to_markdown(report)
    header, rows = table_rows(report)
    assert f"| {' | '.join(header)} |" in text
    for row in rows:
        assert f"| {' | '.join(row)} |" in text
    for stage in report["stages"]:
        assert f"| {stage['name']} | {stage['top1']:.2f} % |" in text
    small = report["models"][1]
    interval = f"[{small['difference_low']:+.2f}, {small['difference_high']:+.2f}]"
    assert (
        f"{small['name']}: top-1 differs from the dense model by {small['difference']:+.2f} percentage points" in text
    )
    assert interval in text
    assert "Latency on" not in text  # there was no budget in milliseconds


@pytest.mark.parametrize(("measured_ms", "is_right"), [(10.2, True), (9.6, True), (11.0, False), (9.0, False)])
def test_the_latency_line_says_if_the_prediction_is_wrong(
    measured_ms: float, is_right: bool, finished_run: Any
) -> None:
    settings = LatencySettings(on="cpu", batch_size=4)
    report = {**finished_run("depth").result.report, "latency": latency_row(settings, 12.0, 10.0, measured_ms)}
    assert report["latency"]["difference"] == pytest.approx(measured_ms / 10 - 1)
    line = latency_line(report)
    assert line.startswith(f"Latency on cpu, batch 4: budget 12 ms, predicted 10 ms, measured {measured_ms:.4g} ms (")
    assert ("wrong by more than 5 %" in line) != is_right
    assert line in to_markdown(report)


def test_a_report_of_version_0_1_0_has_the_same_latency_line(finished_run: Any) -> None:
    row = latency_row(LatencySettings(), 12.0, 10.0, 10.2)
    report = {**finished_run("depth").result.report, "latency": row}
    old = {**report, "latency": {key: value for key, value in row.items() if key != "predicted_ms"}}
    assert old["latency"]["promised_ms"] == 10.0
    assert latency_line(old) == latency_line(report)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (Budget(params=0.7, macs=0.7), "70 %"),
        (Budget(params=0.7, macs=0.5), "70 % of parameters, 50 % of multiply-adds"),
        (Budget(params=1, macs=0.5), "50 % of multiply-adds"),
        (Budget(params=1, macs=1, latency_ms=12), "12 ms"),
        (Budget(params=0.6, macs=0.6, latency_ms=12), "60 %, 12 ms"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_is_named_after_its_budget(budget: Budget, name: str) -> None:
    assert budget.label == name
