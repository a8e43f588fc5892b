"""Several sizes and the search of one: what their settings mean, and what is refused."""

import pytest

from vitrim.costs.budget import Budget
from vitrim.costs.sizes import SearchSettings, SizeSettings, folder_name, with_keep
from vitrim.errors import BudgetError, SettingError
from vitrim.recipe import Recipe, load_recipe, to_toml


def test_the_largest_size_comes_first_and_each_has_a_folder() -> None:
    budgets = SizeSettings(keeps=(0.3, 0.9, 0.5)).budgets(Budget())
    assert [(one.params, one.macs) for one in budgets] == [(0.9, 0.9), (0.5, 0.5), (0.3, 0.3)]
    assert [folder_name(one, in_ms=False) for one in budgets] == ["keep-0.9", "keep-0.5", "keep-0.3"]
    times = SizeSettings(latencies_ms=(2.5, 12.0)).budgets(Budget(params=1.0, macs=1.0))
    assert [folder_name(one, in_ms=True) for one in times] == ["latency-12ms", "latency-2.5ms"]


def test_a_cost_that_is_not_limited_stays_so() -> None:
    assert with_keep(Budget(params=0.7, macs=1.0), 0.5) == Budget(params=0.5, macs=1.0)
    assert with_keep(Budget(params=1.0, macs=0.7), 0.5) == Budget(params=1.0, macs=0.5)
    assert with_keep(Budget(params=1.0, macs=1.0), 0.5) == Budget(params=0.5, macs=0.5)


def test_the_fractions_of_a_search_go_down_in_equal_steps() -> None:
    fractions = SearchSettings(max_drop=1.0).fractions()
    assert fractions[0] == 0.95 and fractions[-1] == 0.25 and len(fractions) == 15
    assert SearchSettings(largest=0.62, smallest=0.5, step=0.05).fractions() == [0.62, 0.57, 0.52]
    assert SearchSettings(largest=0.5, smallest=0.5).fractions() == [0.5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keeps": (0.7, 0.0)}, "keeps has 0; expected a fraction"),
        ({"keeps": (70.0,)}, r"For 70 %, write 0\.7"),
        ({"keeps": (0.5, 0.5)}, r"keeps has 0\.5 twice"),
        ({"keeps": (0.5, 0.50000001)}, r"keeps has 0\.5 twice"),
        ({"keeps": (0.5,), "latencies_ms": (2.0,)}, "both given"),
        ({"keeps": tuple(n / 100 for n in range(1, 50))}, "has 49 sizes; expected at most 32"),
        ({"keeps": 0.5}, r"keeps is 0\.5; expected a list of numbers"),
        ({"keeps": ("a",)}, r"keeps\[0\] is 'a'; expected a number"),
        ({"latencies_ms": (0.0,)}, "latencies_ms has 0; expected milliseconds above 0"),
        ({"later_epochs": 0.0}, "later_epochs is 0; expected a fraction"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(values: dict, message: str) -> None:
    with pytest.raises((SettingError, BudgetError), match=message):
        SizeSettings(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_drop": -1.0}, "max_drop is -1; expected percentage points"),
        ({"max_drop": 100.0}, "max_drop is 100; expected"),
        ({"smallest": 0.9, "largest": 0.5}, r"largest is 0\.5, below search\.smallest, which is 0\.9"),
        ({"largest": 1.0}, "largest is 1; expected a fraction"),
        ({"step": 0.0}, "step is 0; expected"),
        ({"short_epochs": 2.0}, "short_epochs is 2; expected"),
        ({"objective": "speed"}, "objective is 'speed'; expected one of"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(values: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        SearchSettings(**values)


def test_sizes_and_a_search_exclude_each_other() -> None:
    with pytest.raises(SettingError, match=r"sizes and search\.max_drop are both given"):
        Recipe(sizes=SizeSettings(keeps=(0.5,)), search=SearchSettings(max_drop=1.0))


def test_sizes_are_read_from_toml_and_written_to_it(tmp_path) -> None:
    recipe = load_recipe("default", ["sizes.keeps=[0.9, 0.5]", "sizes.later_epochs=0.25"])
    assert recipe.sizes == SizeSettings(keeps=(0.9, 0.5), later_epochs=0.25)
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe
    assert recipe.label == "90 %, 50 %"
    assert load_recipe("default", ["search.max_drop=0.5"]).label == "drop 0.5"
