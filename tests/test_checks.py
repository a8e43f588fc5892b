"""Numbers: one rule says what a number is, for options, `--set`, recipes and Python, and absurd ones are refused."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vitrim.checks import MAX_SEED, check_types, checked, number_in, whole_in
from vitrim.costs.latency import LatencySettings
from vitrim.data.choice import Choice
from vitrim.errors import SettingError, UserError
from vitrim.recipe import Recipe, load_recipe, to_table, to_toml, value_in
from vitrim.training.settings import TrainingSettings

NO_WHOLE_NUMBERS = [
    "1.5",
    "1e3",
    "1_000",
    "0x10",
    "0b1",
    "True",
    "\u0663",
    "nan",
    "inf",
    "1e999",
    "",
    " ",
    "1 0",
    "--1",
    "1,5",
]
ABSURD: dict[str, list[Any]] = {
    "epochs": [10**9, 10**30, 10**5000],
    "batch_size": [10**12],
    "num_workers": [10**6],
    "learning_rate": [1e300, 10**400],
    "weight_decay": [1e12],
    "warmup_epochs": [-(10**5000)],
}


@pytest.mark.parametrize("text", NO_WHOLE_NUMBERS)
def test_only_digits_are_a_whole_number(text: str) -> None:
    assert whole_in(text) is None
    with pytest.raises(SettingError, match="seed is"):
        load_recipe(None, [f"seed={text}"])


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("+5", 5), ("-0", 0), (" 5 ", 5), ("-12", -12), ("007", 7)])
def test_a_sign_and_spaces_do_not_matter(text: str, number: int) -> None:
    assert whole_in(text) == value_in(text) == number


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "1e999", "0x1", "1_0", "\u0663", "", "1.2.3", "1e", ".", "9" * 5000]
)
def test_a_number_is_finite_and_decimal(text: str) -> None:
    assert number_in(text) is None
    assert not isinstance(value_in(text), float)


@pytest.mark.parametrize("text", ["0.5", ".5", "5.", "5e-1", "+0.5", "50E-2"])
def test_numbers_are_written_in_the_usual_ways(text: str) -> None:
    assert number_in(text) == value_in(text) == (5 if text == "5." else 0.5)


def test_values_of_set_are_toml_but_not_dates_and_not_several_lines() -> None:
    assert value_in('"a b"') == "a b" and value_in("[1, 2]") == [1, 2] and value_in("true") is True
    for text in ("2020-01-01", "1\nseed = 2", "[" * 100_000, "[2020-01-01]"):
        assert value_in(text) == text


def test_numbers_of_numpy_become_those_of_python() -> None:
    settings = TrainingSettings(epochs=np.int64(3), learning_rate=np.float32(0.5), weight_decay=1)
    assert [type(value) for value in (settings.epochs, settings.learning_rate, settings.weight_decay)] == [
        int,
        float,
        float,
    ]
    assert settings == TrainingSettings(epochs=3, learning_rate=0.5, weight_decay=1.0)
    assert to_toml(Recipe(seed=np.int64(2))) == to_toml(Recipe(seed=2))


@pytest.mark.parametrize(
    "value", [3.0, "3", True, np.float64(3), np.bool_(True), None, [3], np.array([3]), torch.tensor(3)]
)
def test_other_types_are_no_whole_number(value: Any) -> None:
    with pytest.raises(SettingError, match=r"epochs is .*; expected a whole number\."):
        TrainingSettings(epochs=value)


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_numbers_are_refused_in_a_short_sentence(name: str) -> None:
    for value in ABSURD[name]:
        with pytest.raises(SettingError, match=f"{name} is .* expected") as found:
            TrainingSettings(**{name: value})
        assert len(str(found.value)) < 200


def test_every_setting_of_a_recipe_has_a_largest_value() -> None:
    def refused(table: dict[str, Any], where: str) -> list[str]:
        found = []
        for key, value in table.items():
            if isinstance(value, dict):
                found += refused(value, f"{where}{key}.")
            elif not isinstance(value, bool):
                for absurd in (10**40, -(10**40)):
                    with pytest.raises(UserError, match=key):
                        load_recipe(None, [f"{where}{key}={absurd}"])
                found.append(key)
        return found

    assert len(refused(to_table(Recipe()), "")) > 50


def test_the_largest_seed_fits_the_seeds_of_torch() -> None:
    from vitrim.data.seeds import mixed_seed

    torch.Generator().manual_seed(mixed_seed(MAX_SEED, 10**9, 10**4))
    for seed in (-1, MAX_SEED + 1, 2**64):
        with pytest.raises(SettingError, match="seed is"):
            Recipe(seed=seed)
        if seed > 0:
            with pytest.raises(SettingError, match="seed is"):
                Choice(split=None, limit_per_class=None, holdout=0.0, seed=seed)


def test_recipes_with_absurd_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    for text in (f"seed = {'9' * 5000}", f"seed = {'[' * 100_000}", f"seed = 0x{'f' * 5000}", "x" * 2_000_000, ""):
        path.write_text(text)
        with pytest.raises(SettingError) as found:
            load_recipe(path)
        assert len(str(found.value)) < 400


def test_a_union_accepts_each_of_its_types() -> None:
    assert checked("auto", int | str, "x") == "auto"
    assert checked(None, int | None, "x") is None
    with pytest.raises(SettingError, match=r"x is 1\.5; expected a whole number or nothing"):
        checked(1.5, int | None, "x")


def test_a_limit_of_a_field_replaces_the_general_one() -> None:
    check_types(LatencySettings(rounds=10), rounds=10)
    with pytest.raises(SettingError, match="rounds is 11; expected at most 10"):
        check_types(dataclasses.replace(LatencySettings(), rounds=11), rounds=10)
