"""The command `python -m benchmarks.speed`: it measures each section once, and keeps sections of other machines."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from benchmarks import speed
from benchmarks.costs.found import Found, Parts
from benchmarks.speed import SECTIONS, main
from builders.ratios import growth_points, ratio
from builders.records import exit_status

PROFILE = {"ViT-S, eager": "2.00 ms per step\n 50.0 %  a_kernel"}
GPU = ("gpu-scoring", "gpu-latency", "gpu-training")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, drawn_once: None) -> list[str]:
    """The names of sections in the order of measuring. The measurements are made up, and there is no GPU."""
    names: list[str] = []

    def measure(name: str) -> Callable[[bool], Parts]:
        def made_up() -> Iterator[Found]:
            names.append(name)
            ratios = [
                ratio(np.float64(1.1), section=name, limit=1.2),  # JSON has no type for numpy's bool
                ratio(0.5, section=name, limit=0.9, at_least=True, low=0.4, high=0.6),
                ratio(12.5, section=name, against="", unit="%"),
            ]
            points, texts = (
                growth_points("size", "images") if name == "growth" else (),
                PROFILE if name == "gpu-training" else {},
            )
            yield Found(ratios=ratios, points=points, texts=texts)

        return lambda smoke: {"all": made_up}

    monkeypatch.setattr(speed, "MEASURES", {name: measure(name) for name in SECTIONS})
    monkeypatch.setattr(speed, "has_gpu", lambda: False)
    monkeypatch.setattr("benchmarks.cell.commit", lambda: "abc1234+")
    return names


@pytest.fixture
def with_gpu(measured: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The sections of a GPU are measured too, even if this machine has no GPU."""
    environment = {"device": "NVIDIA H100", "cpu": "AMD EPYC", "cores": 2, "threads": 2, "dtype": "float32"}
    monkeypatch.setattr(
        "vitrim.runs.environment.environment", lambda device: environment | {"versions": {"torch": "2.14.1"}}
    )
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr(speed, "has_gpu", lambda: True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# Measuring


def test_a_measured_section_is_not_measured_again(tmp_path: Path, measured: list[str]) -> None:
    assert exit_status(main, "growth", "scoring", "-o", tmp_path) == 0
    assert measured == ["scoring", "growth"]  # in the order of the tables
    before = contents(tmp_path)
    assert exit_status(main, "-o", tmp_path) == 0
    assert measured[2:] == ["distillation", "latency", "budget", "busy"]
    assert before.items() <= contents(tmp_path).items()


def test_sections_measured_before_an_error_are_kept(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(smoke: bool) -> Parts:
        raise ZeroDivisionError

    monkeypatch.setitem(speed.MEASURES, "distillation", fail)
    with pytest.raises(ZeroDivisionError):
        main(["-o", str(tmp_path)])
    assert list(contents(tmp_path)) == ["scoring.json"]


def test_results_before_an_interruption_are_kept_and_complete_parts_are_not_measured_again(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, docs, interrupted = tmp_path / "out", tmp_path / "docs", True

    def part(name: str) -> Callable[[], Iterator[Found]]:
        def measure() -> Iterator[Found]:
            measured.append(name)
            yield Found(ratios=[ratio(1.0, measure=f"{name}, time")])
            if name == "second" and interrupted:
                raise KeyboardInterrupt
            yield Found(ratios=[ratio(2.0, measure=f"{name}, bytes")])

        return measure

    names = ("first", "second", "third")
    monkeypatch.setitem(speed.MEASURES, "scoring", lambda smoke: {name: part(name) for name in names})
    assert exit_status(main, "scoring", "-o", out) != 0
    assert list(contents(out)) == ["scoring.part.json"]
    assert exit_status(main, "scoring", "-o", out, "--docs", docs, "--no-measure") == 0
    assert "not complete" in " ".join(capsys.readouterr().out.split())  # a title of any width
    text = (docs / "performance.md").read_text()
    assert "**This section is not complete" in text and "second, time" in text and "second, bytes" not in text

    interrupted = False
    assert exit_status(main, "scoring", "-o", out, "--docs", docs) == 0
    assert measured == ["first", "second", "second", "third"]
    assert list(contents(out)) == ["scoring.json"]
    rows = json.loads(contents(out)["scoring.json"])["ratios"]
    assert [row["measure"] for row in rows] == [f"{name}, {what}" for name in names for what in ("time", "bytes")]
    assert "not complete" not in (docs / "performance.md").read_text()


def test_an_interrupted_section_of_another_commit_is_measured_from_its_beginning(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(smoke: bool) -> Parts:
        def fail() -> Iterator[Found]:
            raise ZeroDivisionError
            yield

        return {**made_up(smoke), "second": fail}

    made_up = speed.MEASURES["scoring"]
    monkeypatch.setitem(speed.MEASURES, "scoring", parts)
    for commit in ("abc1234+", "abc1234+", "def5678"):
        monkeypatch.setattr("benchmarks.cell.commit", lambda commit=commit: commit)
        with pytest.raises(ZeroDivisionError):
            main(["scoring", "-o", str(tmp_path)])
    assert measured == ["scoring", "scoring"]


def test_a_smoke_run_measures_the_sections_of_a_gpu_without_one(tmp_path: Path, measured: list[str]) -> None:
    assert exit_status(main, *GPU, "-o", tmp_path, "--smoke") == 0
    assert measured == list(GPU)


def test_a_record_has_command_commit_date_and_environment(tmp_path: Path, measured: list[str]) -> None:
    assert exit_status(main, "scoring", "-o", tmp_path, "--smoke") == 0
    record = json.loads((tmp_path / "scoring.json").read_text())
    assert (record["command"], record["commit"]) == ("python -m benchmarks.speed scoring --smoke", "abc1234+")
    assert record["smoke"] and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", record["date"])
    assert record["environment"].keys() == {"device", "cpu", "cores", "threads", "versions"}
    assert [row["holds"] for row in record["ratios"]] == [True, False, None]


def test_smoke_runs_and_full_runs_are_not_mixed(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    assert exit_status(main, "scoring", "-o", out, "--docs", docs) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    assert exit_status(main, "-o", out, "--smoke") == 2
    assert exit_status(main, "-o", tmp_path / "other", "--docs", docs, "--smoke") == 2
    assert capsys.readouterr().err.count("The folders hold scoring of a full run, but this is a smoke run") == 2
    assert (contents(tmp_path), measured) == (before, ["scoring"])


# What is printed


def test_values_outside_their_limits_are_printed_and_are_no_failure(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(main, "scoring", "budget", "-o", tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(
        "2 values are within the limit, 2 are not: scoring: time, divided by a pass (0.500 [0.400"
    )
    assert [
        cell.strip() for cell in next(line for line in printed.splitlines() if "0.600" in line).split("│")[1:-1]
    ] == [*("time", "a pass", "0.500 [0.400, 0.600]", "at least 0.9", "no")]


def test_the_output_says_that_there_is_no_gpu(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(main, "scoring", *GPU, "-o", tmp_path / "out", "--docs", tmp_path / "docs") == 0
    assert measured == ["scoring"]
    printed = capsys.readouterr().out.splitlines()
    text = (tmp_path / "docs" / "performance.md").read_text()
    for name in GPU:
        assert f"{name}: not measured, because this machine has no GPU" in printed
        assert f"* {name}, because no GPU was available." in text
        assert f"`python -m benchmarks.speed {name} --docs docs`" in text
    assert "* latency. To measure it: `python -m benchmarks.speed latency --docs docs`" in text


# Documents


def test_documents_are_the_same_when_they_are_made_again(tmp_path: Path, measured: list[str], with_gpu: None) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    assert exit_status(main, "-o", out, "--docs", docs) == 0
    before = contents(docs)
    assert before.keys() == {"performance.json", "performance.md", "plots/growth.svg"}
    assert measured == list(SECTIONS)
    assert exit_status(main, "-o", out, "--docs", tmp_path / "other") == 0
    assert (
        exit_status(main, "-o", tmp_path / "none", "--docs", docs, "--no-measure") == 0
    )  # from performance.json alone
    assert before == contents(docs) == contents(tmp_path / "other")
    assert measured == list(SECTIONS)


def test_sections_of_another_machine_are_kept(
    tmp_path: Path, measured: list[str], with_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = tmp_path / "docs"
    assert exit_status(main, "gpu-training", "scoring", "-o", tmp_path / "there", "--docs", docs) == 0
    theirs = {record["section"]: record for record in json.loads((docs / "performance.json").read_text())}
    monkeypatch.setattr(speed, "has_gpu", lambda: False)
    changed = {"all": lambda: [Found(ratios=[ratio(7.0)])]}
    monkeypatch.setattr(speed, "MEASURES", dict.fromkeys(SECTIONS, lambda smoke: changed))
    assert exit_status(main, "scoring", "-o", tmp_path / "here", "--docs", docs) == 0
    ours = {record["section"]: record for record in json.loads((docs / "performance.json").read_text())}
    assert ours["gpu-training"] == theirs["gpu-training"]
    assert [row["value"] for row in ours["scoring"]["ratios"]] == [7.0]
    text = (docs / "performance.md").read_text()
    assert "Hardware: NVIDIA H100; AMD EPYC, 2 cores, 2 threads" in text and "gpu-training, because" not in text


def test_the_document_shows_lines_profiles_points_commit_and_command(
    tmp_path: Path, measured: list[str], with_gpu: None
) -> None:
    assert exit_status(main, "-o", tmp_path, "--docs", tmp_path / "docs") == 0
    text = (tmp_path / "docs" / "performance.md").read_text()
    assert "| time | a pass | 0.500 [0.400, 0.600] | at least 0.9 | **no** | 1 |\n" in text
    assert "| size | ViT-10 | 10 | 3.000 s | 2.000 s | 1.500 | 90.0 MB | 80.0 MB | 40.0 MB |\n" in text
    assert "ViT-S, eager\n\n    2.00 ms per step\n     50.0 %  a_kernel\n" in text
    assert "Commit abc1234+, 2" in text and "\n    python -m benchmarks.speed growth\n" in text
    assert "](plots/growth.svg)" in text and "Not measured" not in text
    assert [line for line in text.splitlines() if line.endswith(" ")] == [] and "\n\n\n" not in text


def test_the_document_of_a_smoke_run_says_so(tmp_path: Path, measured: list[str]) -> None:
    assert exit_status(main, "scoring", "-o", tmp_path, "--docs", tmp_path / "docs", "--smoke") == 0
    assert "The figures mean nothing." in (tmp_path / "docs" / "performance.md").read_text()
