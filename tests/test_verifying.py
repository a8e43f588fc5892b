"""Laws of `verify`: a finished run holds, and each change to it is found."""

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.runs import digits, digits_model, save_digits_model, short_recipe, short_training
from vitrim.cli import run as run_command
from vitrim.errors import SettingError
from vitrim.exporting.export import export
from vitrim.pipeline import compress, fit
from vitrim.programs.program import ProgramSettings
from vitrim.recipe import TrainRecipe
from vitrim.runs.digests import DIGESTS, Digests, Version, sha256_of
from vitrim.saving.checkpoint import load, save
from vitrim.verifying import verify


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verifying") / "run"
    compress(digits_model(), digits(), short_recipe(), folder)
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def failing(folder: Path) -> list[str]:
    return [check.name for check in verify(folder, digits()) if check.holds is False]


def test_a_finished_run_of_compress_holds_and_is_not_changed(finished: Path) -> None:
    before = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    checks = verify(finished, digits())
    assert all(check.holds for check in checks)
    names = {check.name for check in checks}
    assert names >= {"files", "model", "plan", "parameters", "multiply-adds", "bytes of the weights", "images", "top-1"}
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == before


def test_a_finished_run_of_train_holds(tmp_path: Path) -> None:
    fit(digits_model(), digits(), TrainRecipe(training=short_training(epochs=1)), tmp_path)
    checks = verify(tmp_path, digits())
    cost = ["parameters", "multiply-adds", "bytes of the weights"]
    assert [check.name for check in checks if check.holds] == ["files", "model", *cost, "images", "top-1"]
    assert len(checks) == 7


def edit_report(key: str, value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        report = json.loads((folder / "report.json").read_text())
        report["models"][-1][key] = value
        (folder / "report.json").write_text(json.dumps(report))
        (folder / DIGESTS).unlink()  # as someone does who wants the number to be believed

    return change


def other_weights(folder: Path) -> None:
    model = load(folder / "model")
    torch.manual_seed(0)
    for weights in model.head.parameters():
        torch.nn.init.normal_(weights)
    save(model, folder / "model")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (edit_report("top1", 99.0), "top-1"),
        (edit_report("params", 7), "parameters"),
        (edit_report("macs", 7), "multiply-adds"),
        (edit_report("file_bytes", 7), "bytes of the weights"),
        (other_weights, "top-1"),
        (lambda folder: (folder / "plan.json").write_text("{}"), "plan"),
        (lambda folder: (folder / "plan.json").unlink(), "files"),
        (lambda folder: (folder / "report.md").write_text("better"), "files"),
        (lambda folder: (folder / "report.html").write_text("better"), "files"),
        (lambda folder: (folder / "details.json").write_text("{}"), "files"),
        (lambda folder: (folder / "report.json").write_text("[]"), "report"),
        (lambda folder: (folder / "model" / "model.safetensors").write_bytes(b""), "model"),
    ],
)
def test_each_change_is_found(change: Callable[[Path], None], expected: str, run: Path) -> None:
    change(run)
    assert expected in failing(run)


def test_other_images_are_found(run: Path) -> None:
    checks = verify(run, digits(num_validation=40))
    assert [check.name for check in checks if check.holds is False] == ["images"]
    assert "top-1" not in {check.name for check in checks}
    data = digits()
    others = replace(data, classes=tuple(f"class {name}" for name in data.classes))
    check = next(check for check in verify(run, others) if check.name == "images")
    assert check.holds is False and "had as many images of digits, but other names of classes" in check.text


def test_stages_may_be_deleted_after_a_run(run: Path) -> None:
    shutil.rmtree(run / "stages")
    assert failing(run) == []


def test_exported_files_are_compared_with_the_model_and_strange_ones_are_not_opened(run: Path) -> None:
    pytest.importorskip("onnxruntime")
    export(load(run / "model"), run / "model" / "model.onnx")
    (run / "model" / "strange.pt2").write_bytes(b"anything")
    checks = {check.name: check for check in verify(run, digits())}
    assert checks["model/model.onnx"].holds is True
    assert "largest difference" in checks["model/model.onnx"].text
    assert checks["model/strange.pt2"].holds is None
    (run / "model" / "model.onnx").write_bytes((run / "model" / "model.onnx").read_bytes()[:-9])
    assert {"files", "model/model.onnx"} <= set(failing(run))


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [None, (30, 41)])
def test_a_file_that_prepares_images_itself_is_compared_with_the_model(
    run: Path, image_size: tuple[int, int] | None
) -> None:
    pytest.importorskip("onnxruntime")
    settings = ProgramSettings(with_preprocessing=True, image_size=image_size)
    export(load(run / "model"), run / "model" / "pixels.onnx", program=settings)
    check = next(check for check in verify(run, digits()) if check.name == "model/pixels.onnx")
    assert check.holds is True and "of the largest output" in check.text


@pytest.mark.deploy
def test_a_second_file_of_an_export_is_part_of_it(run: Path) -> None:
    export(load(run / "model"), run / "model" / "model.xml", format="openvino")
    check = {check.name: check for check in verify(run, digits())}["model/model.xml"]
    assert check.holds is True and "largest difference" in check.text
    weights = run / "model" / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\1\2\3")
    assert {"files", "model/model.xml"} <= set(failing(run))


def test_code_in_a_file_of_torch_export_is_not_run(run: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (run / "executed",)

    file = run / "model" / "model.pt2"
    export(load(run / "model"), file, format="torch-export")
    assert next(check for check in verify(run, digits()) if check.name == "model/model.pt2").holds is True
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, pickle.dumps(Hostile()) if "sample_inputs" in name else content)
    Digests(file.parent).note(file.name, Version(sha256=sha256_of(file)))  # as whoever made the folder may do
    assert failing(run) == []
    assert not (run / "executed").exists()


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="no folder"):
        verify(tmp_path / "missing", digits())
    model = save_digits_model(tmp_path / "model")
    with pytest.raises(SettingError, match="has no run"):
        verify(model, digits())
    (model / "run.json").write_text("{}")
    with pytest.raises(SettingError, match="not finished"):
        verify(model, digits())


def test_the_exit_status_says_whether_a_run_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", "vit_tiny_patch16_224", "--img-size=8", "--patch-size=2", "--data=digits", f"-o={run}"]
    words += [f"--model-arg={pair}" for pair in ("embed_dim=16", "depth=1", "num_heads=2")]
    assert run_command([*words, "--epochs=1", "--limit-per-class=9"]) == 0
    verifying = ["verify", str(run), "--data=digits", "--limit-per-class=9"]
    assert run_command(verifying) == 0
    assert "checks hold" in capsys.readouterr().out
    evaluation = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**evaluation, "top1": 100.0}))
    assert run_command(verifying) == 1
    assert "DOES NOT HOLD" in capsys.readouterr().out
    assert run_command(["verify", str(tmp_path / "none"), "--data=digits"]) == 2
