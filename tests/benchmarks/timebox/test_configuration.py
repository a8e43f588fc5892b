"""The configuration that a schedule makes: a cell that `benchmarks.run` accepts, named after its epochs."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.config import CellConfig, dense_recipe, recipe_for
from benchmarks.timebox.configuration import DATA_SETS, MODELS, Start, cell_table, data_set_of, to_text, work_for
from benchmarks.timebox.schedule import Rate, Speeds, make_dense_schedule, make_schedule
from vitrim.errors import SettingError
from vitrim.recipe import from_table

SPEEDS = Speeds(
    dense=Rate(images_per_second=12_000),
    distil=Rate(images_per_second=10_000),
    dense_compiled=Rate(images_per_second=30_000),
    distil_compiled=Rate(images_per_second=25_000),
)


def config_of(model, source, schedule, start=None) -> CellConfig:
    table = cell_table(model, source, data_set_of(source, 16), schedule, start)
    return from_table(CellConfig, tomllib.loads(to_text(table, schedule, "a GPU")))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("source", [*DATA_SETS, "/data/birds"])
def test_every_model_and_data_set_makes_a_cell_with_the_epochs_of_the_schedule(model, source):
    schedule = make_schedule(2000, SPEEDS, work_for(model, num_images=50_000, num_validation=5_000))
    config = config_of(model, source, schedule)
    assert dense_recipe(config, 0).training.epochs == schedule.dense_epochs
    recipe = recipe_for(config, "vitrim", keep=0.7, seed=0)
    assert recipe.width_training.epochs + recipe.depth_training.epochs == schedule.student_epochs
    assert recipe.width_training.compile == schedule.compile_students


def test_the_tables_tell_that_the_schedule_is_short_and_how_many_epochs_it_has():
    schedule = make_schedule(2000, SPEEDS, work_for("vit-s", num_images=50_000, num_validation=5_000))
    config = config_of("vit-s", "tiny-imagenet", schedule)
    epochs = f"{schedule.dense_epochs} dense and {schedule.student_epochs} student epochs"
    assert config.model_name == f"ViT-S/8 (short schedule: {epochs})"
    assert config.name == f"vit-s-tiny-imagenet-short-{schedule.dense_epochs}-{schedule.student_epochs}"


def test_weights_of_an_earlier_run_are_not_trained_and_their_epochs_are_told():
    work = work_for("vit-b", num_images=50_000, num_validation=5_000, dense_ratio=0.0)
    schedule = make_schedule(2000, SPEEDS, work)
    for epochs, text in ((61, "61 dense"), (None, "unknown dense")):
        config = config_of("vit-b", "tiny-imagenet", schedule, Start(weights=Path("w.safetensors"), epochs=epochs))
        assert dense_recipe(config, 0).training.epochs == 0
        assert config.model.weights == "w.safetensors" and text in config.model_name


def test_a_schedule_of_the_dense_model_makes_a_cell_too():
    schedule = make_dense_schedule(800, SPEEDS, work_for("vit-b", num_images=100_000, num_validation=10_000))
    config = config_of("vit-b", "tiny-imagenet", schedule)
    assert dense_recipe(config, 0).training.epochs == schedule.dense_epochs


def test_the_search_has_no_more_images_than_half_of_the_training_set():
    work = work_for("vit-s", num_images=1000, num_validation=100)
    assert work.search_images == 500 and work.num_calibration == 1000
    assert replace(work, num_images=2000).search_images == 500


@pytest.mark.parametrize("side", [None, 12])
def test_folders_without_one_size_that_patches_divide_are_refused(side):
    with pytest.raises(SettingError, match="multiple of 8"):
        data_set_of("/data/birds", side)
