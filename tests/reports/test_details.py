"""Laws of details.json: it agrees with the report, is made once, is made again if damaged, and old runs have less."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from builders.runs import FinishedRun, digits, stop
from vitrim import compress_run
from vitrim.pipeline import compress
from vitrim.reports import details as of_details
from vitrim.reports.details import DETAILS, parse, read
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import DIGESTS


@pytest.fixture
def run(finished_run: Any, tmp_path: Path) -> FinishedRun:
    """A finished run whose folder may be changed."""
    found: FinishedRun = finished_run("depth")
    folder = shutil.copytree(found.folder, tmp_path / "run")
    return FinishedRun(
        **{name: getattr(found, name) for name in ("dense", "dense_before", "recipe", "result")}, folder=folder
    )


def again(run: FinishedRun) -> dict[str, Any]:
    compress(run.dense, digits(), run.recipe, run.folder)
    return read(run.folder)


def test_the_details_agree_with_the_report(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    details, (dense, small) = read(run.folder), run.result.report["models"]
    assert details["num_images"] == sum(row["num_images"] for row in details["classes"]) == 50
    for key, model in (("dense_top1", dense), ("top1", small)):
        right = sum(row["num_images"] * row[key] for row in details["classes"])
        assert right / 50 == pytest.approx(model["top1"], abs=1e-3)
    changed = details["changed"]
    difference = changed["num_now_right"] - changed["num_now_wrong"]
    assert 100 * difference / 50 == pytest.approx(small["difference"])
    for name, model in (("dense", dense), ("small", small)):
        bins = details["calibration"][name]["bins"]
        assert sum(row["count"] * row["accuracy"] for row in bins) == pytest.approx(50 * model["top1"] / 100, abs=0.01)
    kept = [row["name"] for row in details["blocks"] if row["is_kept"]]
    assert len(kept) == len(run.result.plan.blocks) == 3
    assert [curve["stage"] for curve in details["curves"]] == ["width", "depth"]
    assert {"distil after the width cut", "distil after the depth cut"} <= {row["name"] for row in details["seconds"]}
    assert json.loads((run.folder / DETAILS).read_text()) == details


def test_a_finished_run_reads_its_details(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(run.folder)
    shutil.rmtree(run.folder / "stages")
    monkeypatch.setattr(of_details, "_of_compress", stop)
    assert again(run) == before


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format": 1, "classes": {}}'])
def test_details_that_are_damaged_or_missing_are_made_again(content: bytes | None, run: FinishedRun) -> None:
    before = read(run.folder)
    (run.folder / DETAILS).unlink() if content is None else (run.folder / DETAILS).write_bytes(content)
    assert read(run.folder) == {}
    assert again(run) == before and check_folder(run.folder) == []


def test_details_of_a_run_whose_stages_were_deleted_have_what_is_left(run: FinishedRun) -> None:
    before = read(run.folder)
    shutil.rmtree(run.folder / "stages")
    (run.folder / DETAILS).unlink()
    after = again(run)
    assert {"blocks", "curves"} <= after.keys() and "classes" not in after
    assert after["blocks"] == before["blocks"] and not (run.folder / "stages").exists()


def test_a_run_of_an_earlier_version_has_accuracies_and_the_map(run: FinishedRun) -> None:
    """Its evaluations have no predictions, and its report has no verdict."""
    (run.folder / DETAILS).unlink()
    (run.folder / DIGESTS).unlink()
    for file in (run.folder / "stages").glob("evaluation-*.json"):
        values = json.loads(file.read_text())
        file.write_text(json.dumps({key: values[key] for key in values.keys() - {"predicted", "confidence"}}))
    details = again(run)
    assert {"classes", "blocks"} <= details.keys()
    assert not {"confusions", "changed", "calibration"} & details.keys()


def test_a_run_that_ends_before_its_details_makes_them_later(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read(run.folder)
    for name in (DETAILS, "report.json", "report.html", "report.md"):
        (run.folder / name).unlink()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(compress_run, "details_of_compress", lambda *_: exec("raise RuntimeError"))
        again(run)
    after = again(run)
    assert {**after, "seconds": []} == {**before, "seconds": []} and check_folder(run.folder) == []


@pytest.mark.parametrize("other", [[], {}, {"format": 2}, {"format": 1, "changed": []}, {"format": 1, "blocks": "x"}])
def test_other_forms_are_refused(other: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse(other)
