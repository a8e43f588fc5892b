"""`python -m benchmarks.speed` measures each section once, keeps what it cannot measure, and says what it found."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import speed
from benchmarks.costs.document import line_of, settings_of, summary
from benchmarks.costs.ratios import Ratio
from benchmarks.speed import SECTIONS, Found, main

POINTS = [
    {"along": along, "name": f"ViT-{x}", "x": x, "seconds": 0.3 * x, "step_seconds": 0.2 * x}
    | {"peak_bytes": 9_000_000 * x, "step_peak_bytes": 8_000_000 * x, "model_bytes": 4_000_000 * x}
    for along in ("size", "images")
    for x in (10, 100)
]
PROFILE = {"ViT-S, eager": "2.00 ms a step\n 50.0 %  a_kernel"}


def ratio(value: float = 1.0, **changes: Any) -> Ratio:
    about = {"section": "scoring", "measure": "time", "against": "a pass", "setting": "ViT-S, 2 threads"}
    return Ratio(**{"value": value, "low": value, "high": value, **about, **changes})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of sections, each when it is measured; measuring is made up, and there is no GPU."""
    names: list[str] = []

    def measure(name: str) -> Callable[[bool], Found]:
        def made_up(smoke: bool) -> Found:
            names.append(name)
            ratios = [
                ratio(np.float64(1.1), section=name, bound=1.2),  # numpy's verdict is no JSON
                ratio(0.5, section=name, bound=0.9, at_least=True, low=0.4, high=0.6),
                ratio(12.5, section=name, against="", unit="%"),
            ]
            points, texts = POINTS if name == "growth" else (), PROFILE if name == "gpu" else {}
            return Found(ratios=ratios, points=points, texts=texts)

        return made_up

    monkeypatch.setattr(speed, "MEASURES", {name: measure(name) for name in SECTIONS})
    monkeypatch.setattr(speed, "has_gpu", lambda: False)
    monkeypatch.setattr("benchmarks.cell.commit", lambda: "abc1234+")
    return names


@pytest.fixture
def with_gpu(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The section of the GPU is measured, too, though this machine may have none."""
    environment = {"device": "NVIDIA H100", "cpu": "AMD EPYC", "cores": 2, "threads": 2, "dtype": "float32"}
    monkeypatch.setattr(
        "vitrim.runs.environment.environment", lambda device: environment | {"versions": {"torch": "2.14.1"}}
    )
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr(speed, "has_gpu", lambda: True)


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return left.value.code


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# Measuring


def test_what_was_measured_is_not_measured_again(tmp_path: Path, measured: list[str]) -> None:
    assert call("growth", "scoring", "-o", tmp_path) == 0
    assert measured == ["scoring", "growth"]  # in the order of the tables
    before = contents(tmp_path)
    assert call("-o", tmp_path) == 0
    assert measured[2:] == ["distillation", "latency", "budget"]
    assert before.items() <= contents(tmp_path).items()


def test_what_was_measured_before_a_fault_is_kept(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(smoke: bool) -> Found:
        raise ZeroDivisionError

    monkeypatch.setitem(speed.MEASURES, "distillation", fail)
    with pytest.raises(ZeroDivisionError):
        main(["-o", str(tmp_path)])
    assert list(contents(tmp_path)) == ["scoring.json"]


def test_a_record_says_what_must_be_known(tmp_path: Path, measured: list[str]) -> None:
    assert call("scoring", "-o", tmp_path, "--smoke") == 0
    record = json.loads((tmp_path / "scoring.json").read_text())
    assert (record["command"], record["commit"]) == ("python -m benchmarks.speed scoring --smoke", "abc1234+")
    assert record["smoke"] and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", record["date"])
    assert record["environment"].keys() == {"device", "cpu", "cores", "threads", "versions"}
    assert [row["holds"] for row in record["ratios"]] == [True, False, None]


def test_smoke_figures_do_not_mix_with_others(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    assert call("scoring", "-o", out, "--docs", docs) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert call("-o", out, "--smoke") == 2
    assert call("-o", tmp_path / "other", "--docs", docs, "--smoke") == 2
    assert capsys.readouterr().err.count("scoring there is of a whole run, and this is a smoke run") == 2
    assert (contents(tmp_path), measured) == (before, ["scoring"])


# What is printed


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (ratio(1.1, bound=1.15), ["time", "a pass", "1.100", "at most 1.15", "yes"]),
        (ratio(1.2, bound=1.15, low=1.1, high=1.3), ["time", "a pass", "1.200 [1.100, 1.300]", "at most 1.15", "no"]),
        (ratio(0.96, bound=0.95, at_least=True), ["time", "a pass", "0.960", "at least 0.95", "yes"]),
        (ratio(0.94, bound=0.95, at_least=True), ["time", "a pass", "0.940", "at least 0.95", "no"]),
        (ratio(1234.5, against="", unit="images/s"), ["time", "-", "1,234 images/s", "-", "-"]),
        (ratio(0.00432, against="", unit="s", bound=1.0), ["time", "-", "0.0043 s", "at most 1 s", "yes"]),
    ],
)
def test_a_line_shows_value_bound_and_verdict(row: Ratio, line: list[str]) -> None:
    assert line_of(row) == line


def test_the_summary_counts_bounds_and_names_those_that_do_not_hold() -> None:
    rows = [ratio(1.0, bound=1.2), ratio(1.1, bound=1.2), ratio(9.0), ratio(1.3, bound=1.2, measure="bytes")]
    records = [{"ratios": [row.to_dict() for row in some]} for some in (rows[:1], rows[1:])]
    assert summary(records) == "2 bounds hold, 1 does not: scoring: bytes against a pass (1.300, at most 1.2)"
    assert summary(records[:1]) == "1 bound holds"


def test_bounds_that_do_not_hold_are_printed_and_no_failure(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("scoring", "budget", "-o", tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("2 bounds hold, 2 do not: scoring: time against a pass (0.500 [0.400")
    assert [
        cell.strip() for cell in next(line for line in printed.splitlines() if "0.600" in line).split("│")[1:-1]
    ] == [*("time", "a pass", "0.500 [0.400, 0.600]", "at least 0.9", "no")]


def test_without_a_gpu_that_is_said(tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("scoring", "gpu", "-o", tmp_path / "out", "--docs", tmp_path / "docs") == 0
    assert measured == ["scoring"]
    assert "gpu: not measured for want of a GPU" in capsys.readouterr().out.splitlines()
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "* gpu, for want of a GPU: `python -m benchmarks.speed gpu --docs docs` on a machine with one" in text
    assert "* latency: `python -m benchmarks.speed latency --docs docs`" in text


# Documents


def test_documents_are_made_again_byte_for_byte(tmp_path: Path, measured: list[str], with_gpu: None) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    assert call("-o", out, "--docs", docs) == 0
    before = contents(docs)
    assert before.keys() == {"performance.json", "performance.md", "plots/growth.svg"}
    assert measured == list(SECTIONS)
    assert call("-o", out, "--docs", tmp_path / "other") == 0
    assert call("-o", tmp_path / "none", "--docs", docs, "--no-measure") == 0  # from performance.json alone
    assert before == contents(docs) == contents(tmp_path / "other")
    assert measured == list(SECTIONS)


def test_sections_that_were_measured_elsewhere_stay(
    tmp_path: Path, measured: list[str], with_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    assert call("gpu", "scoring", "-o", tmp_path / "there", "--docs", docs) == 0
    theirs = {record["section"]: record for record in json.loads((docs / "performance.json").read_text())}
    monkeypatch.setattr(speed, "has_gpu", lambda: False)
    changed = Found(ratios=[ratio(7.0)])
    monkeypatch.setattr(speed, "MEASURES", dict.fromkeys(SECTIONS, lambda smoke: changed))
    assert call("scoring", "-o", tmp_path / "here", "--docs", docs) == 0
    ours = {record["section"]: record for record in json.loads((docs / "performance.json").read_text())}
    assert ours["gpu"] == theirs["gpu"]
    assert [row["value"] for row in ours["scoring"]["ratios"]] == [7.0]
    text = (docs / "performance.md").read_text()
    assert "Hardware: NVIDIA H100; AMD EPYC, 2 cores, 2 threads" in text and "for want of a GPU" not in text


def test_the_document_shows_lines_profiles_points_and_how_they_came(
    tmp_path: Path, measured: list[str], with_gpu: None
) -> None:
    assert call("-o", tmp_path, "--docs", tmp_path / "docs") == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "| time | a pass | 0.500 [0.400, 0.600] | at least 0.9 | **no** | 1 |\n" in text
    assert "| size | ViT-10 | 10 | 3.000 s | 2.000 s | 1.500 | 90.0 MB | 80.0 MB | 40.0 MB |\n" in text
    assert "ViT-S, eager\n\n    2.00 ms a step\n     50.0 %  a_kernel\n" in text
    assert "Commit abc1234+, 2" in text and "\n    python -m benchmarks.speed growth\n" in text
    assert "](plots/growth.svg)" in text and "Not measured" not in text
    assert [line for line in text.splitlines() if line.endswith(" ")] == [] and "\n\n\n" not in text


def test_a_smoke_run_is_named_as_such(tmp_path: Path, measured: list[str]) -> None:
    assert call("scoring", "-o", tmp_path, "--docs", tmp_path / "docs", "--smoke") == 0
    assert "The figures mean nothing." in (tmp_path / "docs" / "performance.md").read_text()


def test_a_long_setting_is_said_once() -> None:
    long = "and so on, " * 9
    settings = [
        *("ViT-S, 2 threads, 5 rounds; fisher", f"ViT-S, 2 threads, 5 rounds; {long}", "ViT-S, 2 threads, 5 rounds"),
        *(f"ViT-S, 2 threads, 5 rounds; {long}", "ViT-L, 2 threads, 3 rounds", "2 threads"),
    ]
    labels, notes = settings_of([ratio(setting=setting) for setting in settings])
    assert labels == ["1; fisher", "1a", "1", "1a", "2", "3"]
    assert notes == [
        *(("all", "2 threads"), ("1", "ViT-S, 5 rounds"), ("1a", long), ("2", "ViT-L, 3 rounds")),
        ("3", "nothing further"),
    ]
