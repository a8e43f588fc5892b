"""Recipes and settings: any text, table or value makes settings that can be written and read, or a UserError."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, mutated, python_values, texts, tried, values
from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import UserError
from vitrim.importance.criteria import ImportanceSettings
from vitrim.losses import DistillationSettings
from vitrim.recipe import (
    DepthSettings,
    HeadSettings,
    Recipe,
    TrainRecipe,
    from_table,
    load_recipe,
    to_table,
    to_toml,
)
from vitrim.recovery.recover import RecoverySettings
from vitrim.training.settings import TrainingSettings

KINDS: list[Any] = [Recipe, TrainRecipe]
SETTINGS: list[Any] = [
    *(Recipe, TrainRecipe, Budget, LatencySettings, AugmentationSettings, ImportanceSettings, DistillationSettings),
    *(DepthSettings, HeadSettings, RecoverySettings, TrainingSettings),
]


def assert_message(problem: UserError) -> None:
    """One line without control characters, of a length that a person reads."""
    text = str(problem)
    assert (text and text.isprintable()) or "\u3000" in text or "\xa0" in text, ascii(text)
    assert len(text) < 3500


def assert_reads_back(recipe: Any, path: Path) -> None:
    assert from_table(type(recipe), to_table(recipe)) == recipe
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert load_recipe(path, kind=type(recipe)) == recipe
    assert all(type(value) in (int, float, bool, str, dict) for value in to_table(recipe).values())


@pytest.mark.parametrize("kind", KINDS)
@tried(60)
@given(data=st.data())
def test_any_table_makes_a_recipe_or_a_user_error(kind: Any, data: st.DataObject, tmp_path: Path) -> None:
    table = data.draw(mutated(to_table(kind()), values))
    try:
        recipe = from_table(kind, table) if isinstance(table, dict) else kind()
    except UserError as problem:
        assert_message(problem)
    else:
        assert_reads_back(recipe, tmp_path / "recipe.toml")


@tried(60)
@given(data=st.data())
def test_any_file_makes_a_recipe_or_a_user_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    text = data.draw(st.one_of(damaged(to_toml(Recipe())), damaged(to_toml(TrainRecipe())), st.text()))
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for kind in (*KINDS, None):
        try:
            recipe = load_recipe(path, kind=kind)
        except UserError as problem:
            assert_message(problem)
        else:
            assert_reads_back(recipe, tmp_path / "again.toml")


@tried(60)
@given(
    key=st.one_of(st.sampled_from(["seed", "budget.params", "depth.blocks", "heads", "width_training.compile"]), texts),
    value=st.one_of(texts, values.map(str)),
)
def test_any_change_makes_a_recipe_or_a_user_error(key: str, value: str, tmp_path: Path) -> None:
    try:
        recipe = load_recipe(None, [f"{key}={value}"])
    except UserError as problem:
        assert_message(problem)
    else:
        assert_reads_back(recipe, tmp_path / "recipe.toml")


@pytest.mark.parametrize("kind", SETTINGS)
@tried(60)
@given(data=st.data())
def test_any_python_value_makes_valid_settings_or_a_user_error(kind: Any, data: st.DataObject, tmp_path: Path) -> None:
    names = [item.name for item in dataclasses.fields(kind)]
    chosen = data.draw(st.dictionaries(st.sampled_from(names), python_values, min_size=1, max_size=2))
    try:
        settings = kind(**chosen)
    except UserError as problem:
        assert_message(problem)
    else:
        assert from_table(kind, to_table(settings)) == settings
        assert from_table(kind, tomllib.loads(tomli_w.dumps(to_table(settings)))) == settings
