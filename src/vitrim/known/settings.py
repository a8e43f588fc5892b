"""The shipped recipes and their settings, as plain values. Making a recipe of them is in `vitrim.recipe`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "recipes"


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def recipe_settings(recipe: str) -> dict[str, Any]:
    """The settings of a shipped recipe with their values, by keys such as `width_training.weight_decay`."""

    def flat(table: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            found |= flat(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
        return found

    return flat(tomllib.loads((FOLDER / f"{recipe}.toml").read_text(encoding="utf-8")))
