"""Recipes: TOML round trips keep every setting, and unknown or wrong settings are refused by name."""

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.runs import short_recipe
from vitrim.costs.budget import Budget
from vitrim.errors import SettingError, UserError
from vitrim.recipe import (
    SHIPPED,
    DepthSettings,
    Recipe,
    TrainRecipe,
    from_table,
    load_recipe,
    set_in,
    to_table,
    to_toml,
)
from vitrim.training.settings import TrainingSettings

TRAIN_RECIPES = {"train", "demo-train"}
ALL_SHIPPED = sorted(path.stem for path in SHIPPED.glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def kind_of(name: str) -> type[Any]:
    return TrainRecipe if name in TRAIN_RECIPES else Recipe


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        TrainRecipe(),
        short_recipe(blocks=2, seed=3),
        Recipe(width_training=TrainingSettings(learning_rate=1e-05, precision="bf16", compile=True)),
        *(load_recipe(name, kind=kind_of(name)) for name in ALL_SHIPPED),
    ],
)
def test_a_recipe_written_as_toml_is_read_back_equal(recipe: Any, tmp_path: Path) -> None:
    path = write(tmp_path, to_toml(recipe))
    assert load_recipe(path) == load_recipe(path, kind=type(recipe)) == recipe
    assert from_table(type(recipe), to_table(recipe)) == recipe


def test_without_a_file_all_settings_have_their_defaults() -> None:
    assert load_recipe(None) == Recipe()
    assert load_recipe(None, kind=TrainRecipe) == TrainRecipe()
    assert load_recipe(None, ["seed=4"]) == Recipe(seed=4)


def test_the_kind_of_a_recipe_is_found_from_its_tables(tmp_path: Path) -> None:
    assert type(load_recipe()) is type(load_recipe("paper")) is Recipe
    assert type(load_recipe("train")) is type(load_recipe("demo-train")) is TrainRecipe
    assert type(load_recipe(write(tmp_path, "[training]\nepochs = 3"))) is TrainRecipe


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        (
            "train",
            Recipe,
            "The recipe train is for `vitrim train`; compress takes default, demo, paper or a TOML file.",
        ),
        (
            "demo",
            TrainRecipe,
            "The recipe demo is for `vitrim compress`; train takes train, demo-train or a TOML file.",
        ),
        ("papr", Recipe, "There is no recipe papr; did you mean paper? Expected default, demo, paper or a TOML file."),
        ("papr", TrainRecipe, "There is no recipe papr; expected train, demo-train or a TOML file."),
        ("nothing", None, "There is no recipe nothing; expected default, train, demo, demo-train, paper or a TOML"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused_with_the_names_that_do(name: str, kind: Any, said: str) -> None:
    with pytest.raises(SettingError) as found:
        load_recipe(name, kind=kind)
    assert said in str(found.value)


def test_a_file_without_tables_is_of_both_kinds(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 5")
    assert load_recipe(path, kind=Recipe) == Recipe(seed=5)
    assert load_recipe(path, kind=TrainRecipe) == TrainRecipe(seed=5)
    with pytest.raises(SettingError, match="no setting trainning; did you mean training"):
        load_recipe(write(tmp_path, "[trainning]"), kind=TrainRecipe)


def test_the_argument_order_of_earlier_versions_still_works() -> None:
    assert load_recipe(Recipe, "paper") == load_recipe("paper")
    assert load_recipe(TrainRecipe, "train", ["seed=4"]) == load_recipe("train", ["seed=4"])
    assert load_recipe(Recipe, None, ["seed=4"]) == Recipe(seed=4)


def test_a_missing_setting_has_the_default_of_the_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "[training]\nbatch_size = 64\n")
    assert load_recipe(path).training == replace(TrainRecipe().training, batch_size=64)


def test_a_file_is_preferred_to_a_shipped_recipe_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").write_text("seed = 77\n")
    assert load_recipe("default").seed == 77


def test_a_folder_with_the_name_of_a_shipped_recipe_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder has a subfolder `train`, and the default recipe of `vitrim train` has the same name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    assert load_recipe("train") == load_recipe(SHIPPED / "train.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[budget]\nparam = 0.5", "no setting budget.param; did you mean budget.params?"),
        ("sed = 1", "no setting sed; did you mean seed?"),
        ("[width_training.augmentation]\nmix_up = 0.1", "did you mean width_training.augmentation.mixup?"),
        ("[depth]\nqqqqqqq = 1", "no setting depth.qqqqqqq; expected one of blocks, max_share"),
        ("[budget]\nparams = 'half'", "budget.params is 'half'; expected a number"),
        ("[width_training]\nepochs = 1.5", "width_training.epochs is 1.5; expected a whole number"),
        ("[width_training]\nepochs = true", "width_training.epochs is True; expected a whole number"),
        ("[width_training]\ncompile = 1", "width_training.compile is 1; expected true or false"),
        ("[width_training]\nprecision = 'fp8'", "expected one of 'auto', 'fp32', 'bf16'"),
        ("[depth]\nblocks = 'some'", "depth.blocks is 'some'; expected a whole number or 'auto'"),
        ("[importance]\ncriterion = 'tailor'", "importance.criterion is 'tailor'; expected one of 'taylor'"),
        ("budget = 0.7", "budget is 0.7; expected a table"),
        ("[budget]\nparams = 1.5", "budget.params is 1.5; expected a fraction above 0 and at most 1, such as 0.7."),
        ("[budget]\nmacs = 30", "budget.macs is 30; expected a fraction above 0 and at most 1. For 30 %, write 0.3."),
        ("[budget]\nlatency_ms = -1", "budget.latency_ms is -1; expected"),
        ("[budget]\nmin_heads = 0", "budget.min_heads is 0; expected at least 1"),
        ("[budget]\nmultiple_of = 0", "budget.multiple_of is 0; expected at least 1, auto or measured"),
        ("[importance]\nsteps = 0", "importance.steps is 0; expected at least 1"),
        ("[recovery]\nridge = 0", "recovery.ridge is 0; expected"),
        ("[latency]\nrounds = 0", "latency.rounds is 0; expected at least 1"),
        ("[depth]\nmax_share = 1", "depth.max_share is 1.0; expected a fraction from 0 to below 1"),
        ("[depth]\nsearch_images = 1", "depth.search_images is 1; expected at least 2"),
        ("[width_training]\nbatch_size = 1", "width_training.batch_size is 1; expected a multiple of 2 (2 x processes"),
        (
            "[depth_training]\naccumulate = 3",
            "depth_training.batch_size is 128; expected a multiple of 6 (2 x processes",
        ),
        ("[training]\nbatch_size = 7", "training.batch_size is 7; expected a multiple of 2 (2 x processes"),
        ("[depth_training]\nlearning_rate = 0", "depth_training.learning_rate is 0 and min_learning_rate 1e-06"),
        ("[width_training.augmentation]\nmixup = -1", "width_training.augmentation.mixup is -1.0; it must be 0"),
        ("[depth_training.distillation]\ntemperature = 0", "depth_training.distillation.temperature is 0; expected"),
        ("[depth_training.distillation]\nsoft = -1", "depth_training.distillation.soft is -1, hard is 0"),
        ("seed = -1", "seed is -1; expected"),
        ("[budget]\nparams = nan", "budget.params is nan; expected a number"),
        ("[depth]\nblocks = -1", "depth.blocks is -1"),
        ("[budget\nparams = 1", "is not valid TOML"),
        ("seed = 1\nseed = 2", "is not valid TOML"),
    ],
)
def test_an_unknown_or_wrong_setting_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as found:
        load_recipe(write(tmp_path, text))
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        (section, f"{name} = {value}")
        for section in ("width_training", "importance", "latency", "recovery", "depth", "budget")
        for name, value in to_table(Recipe())[section].items()
        if isinstance(value, float)
        for value in ("nan", "inf")
    ],
)
def test_nan_and_infinity_are_refused(section: str, wrong: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        load_recipe(write(tmp_path, f"[{section}]\n{wrong}"))


def test_a_recipe_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(SettingError, match="not UTF-8"):
        load_recipe(path)


def test_a_whole_number_is_accepted_where_a_float_is_expected(tmp_path: Path) -> None:
    budget = load_recipe(write(tmp_path, "[budget]\nparams = 1\nmacs = 1")).budget
    assert budget == Budget(params=1.0, macs=1.0)
    assert type(budget.params) is float


def test_changes_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "seed = 1\n[budget]\nparams = 0.5\nmacs = 0.5\n")
    changes = ["budget.params=0.6", "depth.blocks=auto", "width_training.augmentation.crop=resized", "seed = 3"]
    found = load_recipe(path, [*changes, "seed=4"])
    assert (found.budget.params, found.budget.macs, found.seed) == (0.6, 0.5, 4)
    assert found.depth == DepthSettings(blocks="auto")
    assert found.width_training.augmentation.crop == "resized"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("budget.parms=0.5", "did you mean budget.params?"),
        ("seed.deep=1", "seed is not a table"),
        ("budget=0.5", "expected a table"),
        ("budget.params=", "expected a number"),
        ("seed=1 2", "expected a whole number"),
    ],
)
def test_an_unknown_or_wrong_change_is_refused(change: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as found:
        load_recipe(write(tmp_path, "seed = 1"), [change])
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e-05", 1e-5), ("true", True), ("[1, 2]", [1, 2]), ("avg", "avg"), ("'a b'", "a b"), ("a=b", "a=b")],
)
def test_the_value_of_a_change_is_read_as_toml_or_as_a_string(text: str, value: Any) -> None:
    table: dict[str, Any] = {}
    set_in(table, f"part.key={text}")
    assert table == {"part": {"key": value}}
    assert not isinstance(value, float) or math.isfinite(value)


def test_the_default_recipe_lists_every_setting_at_its_default() -> None:
    for kind, name in ((Recipe, "default"), (TrainRecipe, "train")):
        table = tomllib.loads((SHIPPED / f"{name}.toml").read_text())
        assert_listed(table, to_table(kind()))


def assert_listed(table: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Every setting has its default; only a setting that is off by default (0) may be left out."""
    assert table.keys() <= defaults.keys()
    for key, default in defaults.items():
        if isinstance(default, dict):
            assert_listed(table[key], default)
        else:
            assert table.get(key, 0) == default, key
