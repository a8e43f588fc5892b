"""Laws of the report of `train`: one model, read by a repeated command, and made later for earlier runs."""

from pathlib import Path

import pytest

from builders.runs import digits, digits_model, files_in, short_training, stop
from vitrim import pipeline
from vitrim.pipeline import fit
from vitrim.recipe import TrainRecipe
from vitrim.reports.details import read
from vitrim.runs.files import read_json

RECIPE = TrainRecipe(training=short_training(epochs=2))
NEW = {"report.json", "report.md", "report.html", "details.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "run"
    fit(digits_model(), digits(), RECIPE, folder)
    return folder


def test_a_training_has_a_report_of_one_model(trained: Path) -> None:
    report, evaluation = read_json(trained / "report.json"), read_json(trained / "evaluation.json")
    (row,) = report["models"]
    assert row["top1"] == evaluation["top1"] and report["stages"] == [] and report["latency"] is None
    assert report["verdict"] == f"Accuracy {row['top1']:.1f} % on 50 images."
    assert (trained / "report.md").read_text().startswith(f"# {report['title']}\n\n**{report['verdict']}**")
    details = read(trained)
    assert not {"changed", "blocks", "confusions"} & details.keys()
    assert all("top1" not in one for one in details["classes"]) and details["calibration"].keys() == {"dense"}
    assert 0 < len(details["mistakes"]) <= 24 and [one["stage"] for one in details["curves"]] == ["train"]


def test_a_repeated_training_reads_its_report(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_in(trained)
    monkeypatch.setattr(pipeline, "evaluate", stop)
    monkeypatch.setattr(pipeline, "train", stop)
    fit(digits_model(), digits(), RECIPE, trained)
    assert files_in(trained) == before


def test_a_training_of_an_earlier_version_gets_a_report_without_an_evaluation(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(trained)
    for name in (*NEW, "digests.json"):
        (trained / name).unlink()
    monkeypatch.setattr(pipeline, "evaluate", stop)
    fit(digits_model(), digits(), RECIPE, trained)
    after = files_in(trained)
    assert after.keys() == before.keys() and after["details.json"] == before["details.json"]
