"""Folders that version 0.1.0 (commit 85de403) wrote are read as that version read them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from builders.models import same_tensors
from vitrim.cli import run
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.hooks import logits_of
from vitrim.pipeline import compress
from vitrim.recipe import HeadSettings, Recipe, load_recipe
from vitrim.saving.checkpoint import fingerprint, load
from vitrim.saving.opening import open_model

OLD = Path(__file__).parent / "fixtures" / "made-by-0.1.0"
MADE_AGAIN = {"run.json", "recipe.toml", "report.md", "report.html", "details.json", "digests.json"}


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", limit_per_class=6)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A copy of the old folders, to be written to."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def recipe_in(folder: Path) -> Recipe:
    """The recipe that the old version wrote, with what it did where it had no setting."""
    return load_recipe(str(folder / "recipe.toml"), ["heads.width=full", "importance.joint=false"], kind=Recipe)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fingerprint_of_random_weights() -> str:
    """Of the model that the old training began with. Each kind of processor rounds random weights in its own way."""
    torch.manual_seed(0)
    sizes = {"embed_dim": 16, "depth": 3, "num_heads": 4}
    return fingerprint(open_model("vit_tiny_patch16_224", num_classes=10, img_size=8, patch_size=4, model_args=sizes))


@pytest.mark.parametrize("name", ["timm-beit", "torchvision", "transformers"])
def test_a_model_folder_returns_the_same_logits(name: str) -> None:
    model, expected = load(OLD / "models" / name), load_file(OLD / "models" / name / "expected.safetensors")
    with torch.no_grad():
        logits = logits_of(model(expected["images"]))
    assert torch.allclose(logits, expected["logits"], rtol=1e-5, atol=1e-6)


def test_a_finished_training_is_read_and_not_repeated(runs: Path) -> None:
    record = runs / "dense" / "run.json"
    record.write_text(record.read_text().replace("e2406b202254940e", fingerprint_of_random_weights()))
    before = files(runs / "dense")
    arguments = [f"--model-arg={pair}" for pair in ("embed_dim=16", "depth=3", "num_heads=4")]
    arguments += [f"--set=training.{pair}" for pair in ("epochs=2", "batch_size=20", "augmentation.crop=none")]
    model = ["vit_tiny_patch16_224", "--img-size=8", "--patch-size=4"]
    images = ["--data=digits", "--limit-per-class=6"]
    assert run(["train", *model, *arguments, *images, "-o", str(runs / "dense")]) == 0
    after = files(runs / "dense")
    made = {"report.json", *MADE_AGAIN}  # versions before did not write a report of `train`
    assert {path for path in after if after[path] != before.get(path)} <= made


@pytest.mark.parametrize("name", ["finished", "milliseconds"])
def test_a_finished_run_is_read_and_not_repeated(name: str, runs: Path, data: ImageData) -> None:
    before = files(runs / name)
    result = compress(load(runs / "dense"), data, recipe_in(runs / name), runs / name)
    assert same_tensors(result.model, load(OLD / name))
    assert result.report == json.loads((OLD / name / "report.json").read_text())
    after = files(runs / name)
    assert {path for path in after if after[path] != before.get(path)} <= MADE_AGAIN
    report = (runs / name / "report.md").read_text()
    assert "% smaller and" in report and "accuracy" in report.partition("|")[0]


def test_an_interrupted_run_goes_on_from_its_checkpoint(
    runs: Path, data: ImageData, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends with the weights of the run that was not interrupted; another processor may round otherwise."""
    result = compress(load(runs / "dense"), data, recipe_in(runs / "interrupted"), runs / "interrupted")
    assert "width: resuming at step" in capsys.readouterr().err
    expected = load_file(OLD / "finished" / "model" / "model.safetensors")
    for name, tensor in result.model.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-3, atol=1e-4), name


def test_the_predicted_latency_of_an_old_plan_reaches_the_report(runs: Path, data: ImageData) -> None:
    folder = runs / "milliseconds"
    (folder / "report.json").unlink()  # the run was stopped in front of its report
    result = compress(load(runs / "dense"), data, recipe_in(folder), folder)
    noted = json.loads((folder / "promise.json").read_text())["promised_ms"]
    assert result.report["latency"]["predicted_ms"] == result.report["latency"]["promised_ms"] == noted


def test_an_old_run_goes_on_without_mirror_images_and_not_with_them(runs: Path, data: ImageData) -> None:
    recipe = recipe_in(runs / "finished")
    flipped = replace(recipe.width_training, distillation=replace(recipe.width_training.distillation, flip=True))
    with pytest.raises(ValueError, match=r"recipe.width_training.distillation.flip was false, now true"):
        compress(load(runs / "dense"), data, replace(recipe, width_training=flipped), runs / "finished")


def test_an_old_run_is_still_refused_for_another_recipe(runs: Path, data: ImageData) -> None:
    recipe = recipe_in(runs / "finished")
    with pytest.raises(ValueError, match=r"recipe.seed was 0, now 1"):
        compress(load(runs / "dense"), data, replace(recipe, seed=1), runs / "finished")
    with pytest.raises(ValueError, match=r'recipe.heads.width was "full", now "auto"'):
        compress(load(runs / "dense"), data, replace(recipe, heads=HeadSettings()), runs / "finished")
