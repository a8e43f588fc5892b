"""A cell with a better teacher: what the students learn, and how good it is alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import load_config
from benchmarks.run import app, status_of
from benchmarks.teacher import load_teachers, target_marks
from builders.cells import cell_file
from builders.runs import digits, digits_model
from vitrim.data.matching import Calibration
from vitrim.errors import SettingError
from vitrim.evaluation import evaluate
from vitrim.runs.files import read_tensors
from vitrim.saving.checkpoint import save
from vitrim.training.loop import TrainingLoop

SHORT: dict[str, Any] = {"student_epochs": 1, "vitrim": {"depth": {"blocks": 0}, "importance": {"steps": 1}}}
ARMS = ("vitrim", "random", "hard-labels", "dense-control", "dense-distilled")


def test_one_teacher_is_as_good_as_its_model() -> None:
    data, dense, other = digits(), digits_model(), digits_model(seed=1)
    expected = torch.from_numpy(evaluate(other, data).correct)
    assert torch.equal(target_marks([other], dense, data, flip=False), expected)
    assert torch.equal(target_marks([other, other], dense, data, flip=False), expected)
    assert torch.equal(target_marks([], dense, data, flip=False), torch.from_numpy(evaluate(dense, data).correct))


@pytest.mark.parametrize("flip", [False, True])
@torch.no_grad()
def test_the_target_is_the_mean_of_the_softmax_outputs(flip: bool) -> None:
    data, models = digits(), [digits_model(seed=seed) for seed in (1, 2)]
    total, labels = [], []
    for images, targets in Calibration(images=data.validation, model=models[0], batch_size=50):
        views = (images, images.flip(-1)) if flip else (images,)
        total.append(torch.stack([model(view).softmax(dim=1) for model in models for view in views]).mean(dim=0))
        labels.append(targets)
    expected = torch.cat(total).argmax(dim=1) == torch.cat(labels)
    assert torch.equal(target_marks(models, digits_model(), data, flip=flip), expected)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    file = cell_file(tmp_path, teacher={"models": ["../other/seed-0/dense"]})
    with pytest.raises(SettingError, match=r"teacher\.models names .*expected the folder of a model"):
        load_teachers(load_config(file).teacher, tmp_path / "out")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cell, one with the same dense model whose teacher is this model, and one with two models as the teacher."""
    folder = tmp_path_factory.mktemp("cells")
    dense = {"dense_seed": 0, "dense_from": "../plain/seed-0/dense"}
    teachers = {"same": ["../plain/seed-0/dense"], "two": ["../plain/seed-0/dense/model", "../other/model"]}
    settings: dict[str, dict[str, Any]] = {"plain": {"dense_seed": 0}}
    settings |= {name: {**dense, "name": name, "teacher": {"models": found}} for name, found in teachers.items()}
    save(digits_model(seed=1), folder / "other" / "model", classes=digits().classes)
    with pytest.MonkeyPatch.context() as patch:
        for name, changes in settings.items():
            file = cell_file(folder, arms=list(ARMS), **SHORT, **changes)
            if name != "plain":
                patch.setattr(TrainingLoop, "run", _without_dense(TrainingLoop.run))
            command = [file, "-o", str(folder / name), "--seeds", "1", "--keeps", "0.5"]
            assert status_of(app, command) == 0
            (folder / f"{name}.toml").write_text(Path(file).read_text())
    return {name: folder / name for name in settings}


def _without_dense(run: Any) -> Any:
    def checked(loop: TrainingLoop) -> Any:
        assert loop.job.settings.epochs == 1, "the dense model is trained again"
        return run(loop)

    return checked


def _weights(cell: Path, arm: str) -> dict[str, torch.Tensor]:
    place = arm if arm.startswith("dense") else f"keep-0.5/{arm}"
    return read_tensors(cell / "seed-1" / place / "model" / "model.safetensors")


def _are_equal(cells: dict[str, Path], names: tuple[str, str], arm: str) -> bool:
    one, other = (_weights(cells[name], arm) for name in names)
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_dense_model_as_the_teacher_changes_nothing_and_another_one_all_arms_with_a_teacher(
    cells: dict[str, Path], arm: str
) -> None:
    assert _are_equal(cells, ("plain", "same"), arm)
    assert _are_equal(cells, ("plain", "two"), arm) == (arm in ("hard-labels", "dense-control"))


@pytest.mark.slow
def test_records_say_how_good_the_teacher_is(cells: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    plain, two = (
        [json.loads(path.read_text()) for path in sorted(cells[name].rglob("arm.json"))] for name in ("plain", "two")
    )
    assert {(record["teacher"], record["top1_teacher"]) for record in plain} == {(None, None)}
    target = json.loads((cells["two"] / "seed-0" / "teacher.json").read_text())
    assert {(record["teacher"], record["top1_teacher"]) for record in two} == {("2 models", target["top1"])}
    assert target["top1_dense"] == pytest.approx(plain[0]["dense"]["top1"])
    assert {record["dense_folder"] for record in two} == {"../plain/seed-0/dense"}
    passes = {record["arm"]: record["train_macs_per_image"] for record in two}
    before = {record["arm"]: record["train_macs_per_image"] for record in plain}
    assert passes["dense-control"] == before["dense-control"] and passes["random"] > before["random"]
    command = [str(cells["two"].with_suffix(".toml")), "-o", str(cells["two"]), "--teacher-only"]
    assert status_of(app, command) == 0
    assert f"teacher {target['top1']:.2f} %, dense model" in capsys.readouterr().out


@pytest.mark.slow
def test_another_teacher_is_another_cell(cells: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(cells["same"].with_suffix(".toml")), "-o", str(cells["two"])]
    assert status_of(app, command) == 2
    assert "teacher.models" in capsys.readouterr().err
    command = [str(cells["plain"].with_suffix(".toml")), "-o", str(cells["plain"]), "--teacher-only"]
    assert status_of(app, command) == 2
    assert "--teacher-only needs a configuration with the table [teacher]" in capsys.readouterr().err
