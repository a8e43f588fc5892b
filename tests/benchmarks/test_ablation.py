"""The ablation's recipes."""

from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.ablation import recipes_between
from benchmarks.config import CONFIGS, load_config, recipe_for


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.toml")), ids=lambda file: file.stem)
def test_the_changes_of_the_ablation_lead_from_the_published_method_to_the_recipe_of_the_cell(file: Path) -> None:
    config = load_config(file)
    found = recipes_between(config, keep=0.5, seed=0)
    assert found[0][1] == recipe_for(config, "paper", keep=0.5, seed=0)
    assert found[-1][1] == recipe_for(config, "vitrim", keep=0.5, seed=0)
    assert all(earlier[1] != later[1] for earlier, later in pairwise(found))
