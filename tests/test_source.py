"""Laws of the checks before a run: what cannot be done is refused before anything is computed or written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.runs import digits, digits_model, short_recipe, short_training
from vitrim.errors import BudgetError, CheckpointMismatch, DataError, SaveMismatch, SettingError, UserError
from vitrim.importance.criteria import score
from vitrim.pipeline import compress, fit
from vitrim.recipe import TrainRecipe
from vitrim.saving.checkpoint import fingerprint, load
from vitrim.source import Source, check


@pytest.mark.parametrize("blocks", [0, 1, "auto"])
def test_a_budget_below_the_smallest_model_is_refused(blocks: Any, tmp_path: Path) -> None:
    recipe = short_recipe(keep=0.05, blocks=blocks)
    with pytest.raises(
        BudgetError, match=r"smallest possible model with \d blocks needs [\d.]+ % of the parameters and [\d.]+ % of"
    ):
        compress(digits_model(), digits(), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_blocks_than_there_are_cannot_be_removed() -> None:
    with pytest.raises(SettingError, match=r"depth\.blocks is 3, but the model has 3"):
        check(Source.of(digits_model()), short_recipe(blocks=3))


def test_a_model_that_could_not_be_saved_is_refused_before_any_work(tmp_path: Path) -> None:
    dense = digits_model()
    dense.blocks[1].mlp.register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(SaveMismatch, match=r"output of `blocks\.1` would be another one.*hooks on `blocks\.1\.mlp`"):
        compress(dense, digits(), short_recipe(), tmp_path / "compressed")
    with pytest.raises(SaveMismatch, match="hooks on"):
        fit(dense, digits(), TrainRecipe(training=short_training()), tmp_path / "trained")
    assert not list(tmp_path.iterdir())


def test_a_run_ends_with_the_pooling_that_was_set_on_the_model(tmp_path: Path) -> None:
    dense = digits_model(depth=2)
    dense.reset_classifier(10, global_pool="avg")
    settings = short_training(epochs=0)
    recipe = short_recipe(keep=0.8, width_training=settings, depth_training=settings)
    found = compress(dense, digits(), recipe, tmp_path)
    assert found.model.global_pool == load(tmp_path).global_pool == "avg"
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        features = found.model.forward_features(images)[:, 1:].mean(dim=1)  # without the class token
        assert torch.allclose(found.model(images), found.model.head(features), atol=1e-6)
        assert torch.equal(load(tmp_path)(images), found.model(images))


def test_data_with_more_classes_than_outputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="10 classes, but the model has 7 outputs"):
        compress(digits_model(num_classes=7), digits(), short_recipe(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scores_of_another_model_or_criterion_are_refused(tmp_path: Path) -> None:
    dense, data = digits_model(), digits()
    own = score(dense, [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))])
    other_criterion = short_recipe(importance=replace(short_recipe().importance, criterion="taylor"))
    with pytest.raises(SettingError, match="made by fisher; the recipe asks for taylor"):
        compress(dense, data, other_criterion, tmp_path / "run", scores=own)
    other_model = replace(own, weights=fingerprint(digits_model(seed=1)))
    with pytest.raises(SettingError, match="other weights"):
        compress(dense, data, short_recipe(), tmp_path / "run", scores=other_model)
    with pytest.raises(SettingError, match=r"made from 2 images; importance\.num_images asks for 40"):
        compress(dense, data, short_recipe(), tmp_path / "run", scores=replace(own, weights=fingerprint(dense)))
    with pytest.raises(CheckpointMismatch, match="blocks is infinite or not a number"):
        compress(dense, data, short_recipe(), tmp_path / "run", scores=replace(own, blocks=own.blocks * np.nan))
    assert not (tmp_path / "run").exists()


def test_a_training_batch_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="batch_size is 33"):
        recipe = short_recipe(width_training=short_training(batch_size=33))
        compress(digits_model(), digits(), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "recipe", [short_recipe(blocks=3), short_recipe(keep=0.05)], ids=["too many blocks", "too small a budget"]
)
def test_checks_that_need_no_images_are_made_without_them(recipe: Any) -> None:
    with pytest.raises(UserError):
        check(Source.of(digits_model()), recipe)
    check(Source.of(digits_model()), short_recipe())
