"""Laws of damaged files in a run: one costs no run, and a repaired one changes nothing until the run ends."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from builders.images import image_folder, save_image
from builders.models import same_tensors
from builders.runs import Stopped, digits_model, short_training, stop
from vitrim import pipeline
from vitrim.data import loading
from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.files import run_record
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.errors import FolderInUse
from vitrim.pipeline import fit
from vitrim.recipe import TrainRecipe
from vitrim.training.loop import TrainingLoop
from vitrim.training.train import train

SETTINGS = short_training(
    epochs=2, batch_size=4, num_workers=0, checkpoint_minutes=0.0, augmentation=AugmentationSettings()
)
TRAIN, VALIDATION = "train/cat/02.png", "val/dog/01.png"
RECORD = "unreadable.json"


@pytest.fixture(params=["header only", "memory"])
def load(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], ImageData]:
    """Loads a folder as a set so large that only headers are checked, or into memory."""
    if request.param == "header only":
        monkeypatch.setattr(loading, "MAX_DECODED_AT_START", 0)
    return lambda root: load_data(root, memory_bytes=1 << 20 if request.param == "memory" else 0)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", {"train": 5, "val": 3})


def damage(root: Path, name: str) -> Callable[[], object]:
    """Truncate a file, and return a function that repairs it."""
    content = (root / name).read_bytes()
    (root / name).write_bytes(content[:80])  # the header is complete
    return lambda: (root / name).write_bytes(content)


def dense() -> nn.Module:
    return digits_model(depth=1, num_classes=3)


def interrupted(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], steps: int) -> None:
    """Start a training, and stop it after some updates."""
    update = TrainingLoop.update

    def stopping(self: TrainingLoop, *arguments: Any) -> None:
        if self.step == steps:
            raise Stopped
        update(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(TrainingLoop, "update", stopping)
        run()


def test_a_run_with_damaged_files_ends_the_same_after_they_were_repaired(
    root: Path, tmp_path: Path, load: Callable[[Path], ImageData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "MAX_CHANGED", 0.1)
    repairs = [damage(root, TRAIN), damage(root, VALIDATION)]
    recipe = TrainRecipe(training=SETTINGS)
    expected = fit(dense(), load(root), recipe, tmp_path / "whole")
    interrupted(monkeypatch, lambda: fit(dense(), load(root), recipe, tmp_path / "run"), steps=4)
    for repair in repairs:
        repair()
    assert same_tensors(fit(dense(), load(root), recipe, tmp_path / "run"), expected)
    evaluations = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("whole", "run")]
    assert evaluations[0] == evaluations[1] and evaluations[0]["num_images"] == 8
    unused = fit(dense(), load(root), recipe, tmp_path / "new")
    assert not same_tensors(unused, expected)
    assert json.loads((tmp_path / "new" / "evaluation.json").read_text())["num_images"] == 9


def test_a_file_that_breaks_while_a_large_set_is_trained_on_is_named_and_costs_no_run(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "MAX_DECODED_AT_START", 0)
    monkeypatch.setattr(run_record, "MAX_CHANGED", 0.1)
    data, recipe = load_data(root, memory_bytes=0), TrainRecipe(training=replace(SETTINGS, evaluate_every=2))
    data.fingerprint()
    repairs = [damage(root, TRAIN), damage(root, VALIDATION)]  # after the folder was read
    interrupted(monkeypatch, lambda: fit(dense(), data, recipe, tmp_path / "run"), steps=4)
    record = json.loads((tmp_path / "run" / RECORD).read_text())
    assert record["left out"] == [] and set(record["replaced"]) == {TRAIN}
    repairs[0]()
    capsys.readouterr()
    found = fit(dense(), load_data(root, memory_bytes=0), recipe, tmp_path / "run")
    err = capsys.readouterr().err
    assert "train: 1 training image could not be decoded" in err and str(Path("cat", "02.png")) in err
    assert (
        "1 file has another size than when this run began, so it is not used any more" in err
        and str(Path("dog", "01.png")) in err
    )
    assert "1 of 9 images cannot be decoded and are not counted: " + str(Path("dog", "01.png")) in err
    assert same_tensors(found, fit(dense(), load_data(root, memory_bytes=0), recipe, tmp_path / "run"))


def test_a_set_of_which_many_files_changed_is_another_set(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(training=SETTINGS)
    fit(dense(), load_data(root, memory_bytes=0), recipe, tmp_path / "run")
    save_image(root / TRAIN, seed=9, size=(9, 9))
    with pytest.raises(FolderInUse, match=r"data\.fingerprint was"):
        fit(dense(), load_data(root, memory_bytes=0), recipe, tmp_path / "run")


def test_a_file_that_a_run_uses_and_that_cannot_be_decoded_any_more_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = TrainRecipe(training=SETTINGS)
    interrupted(monkeypatch, lambda: fit(dense(), load_data(root), recipe, tmp_path / "run"), steps=2)
    repair = damage(root, TRAIN)
    message = r"training images was 15, now 14.* 1 file cannot be decoded now that this run uses: cat.02\.png"
    with pytest.raises(FolderInUse, match=message):
        fit(dense(), load_data(root), recipe, tmp_path / "run")
    repair()
    fit(dense(), load_data(root), recipe, tmp_path / "run")


def test_train_alone_also_continues(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repair = damage(root, TRAIN)

    def trained(name: str) -> nn.Module:
        return train(dense(), load_data(root), SETTINGS, run_dir=tmp_path / name)

    expected = trained("whole")
    interrupted(monkeypatch, lambda: trained("run"), steps=4)
    repair()
    assert same_tensors(trained("run"), expected)


def test_a_run_that_ended_before_its_first_result_leaves_no_record(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, run = TrainRecipe(training=SETTINGS), tmp_path / "run"
    repair = damage(root, TRAIN)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(pipeline, "train", stop)
        fit(dense(), load_data(root), recipe, run)
    assert not run.exists()
    repair()
    fit(dense(), load_data(root), recipe, run)
    assert json.loads((run / RECORD).read_text()) == {"left out": [], "replaced": {}}
    assert json.loads((run / "run.json").read_text())["data"]["training images"] == 15


def test_another_refusal_names_no_file(root: Path, tmp_path: Path) -> None:
    damage(root, TRAIN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(FolderInUse, match=r"no vitrim run; choose another folder with -o\.$"):
        fit(dense(), load_data(root), TrainRecipe(training=SETTINGS), tmp_path / "mine")
