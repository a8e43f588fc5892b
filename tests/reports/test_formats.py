"""Laws of numbers as text: signs, units, and nothing for what is no number."""

from typing import Any

import pytest

from vitrim.reports import formats


@pytest.mark.parametrize("value", [None, "3", True, float("nan"), float("inf"), [1]], ids=repr)
def test_what_is_no_number_is_a_dash(value: Any) -> None:
    for text in (formats.decimal, formats.percents, formats.fraction, formats.signed, formats.count, formats.duration):
        assert text(value) == formats.NOTHING
    assert formats.size(value) == formats.milliseconds(value) == formats.NOTHING
    assert formats.change(value, 3) == formats.change(3, value) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.34, "+0.3"), (-0.36, "\u22120.4"), (0.0, "0.0"), (-0.01, "0.0"), (-1234.5, "\u22121,234.5")]
)
def test_a_change_has_a_sign_unless_it_is_rounded_to_nothing(value: float, text: str) -> None:
    assert formats.signed(value) == text


def test_a_size_is_compared_with_the_dense_model() -> None:
    assert formats.change(60, 100) == "\u221240\u00a0%"
    assert formats.change(100, 100) == "0\u00a0%"
    assert formats.change(60, 0) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0\u00a0s"), (12.3, "12\u00a0s"), (59.7, "1\u00a0min 0\u00a0s"), (4012, "1\u00a0h 6\u00a0min")],
)
def test_a_time_has_its_largest_units(seconds: float, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize("limit", [5, 24, 61])
def test_a_short_name_keeps_both_ends(limit: int) -> None:
    name = "abc" * 100 + "xyz"
    found = formats.short(name, limit)
    assert len(found) == limit and found.startswith("ab") and found.endswith("yz")
    assert formats.short("a\nb\u202e", limit=40) == "a\\nb\\u202e"


def test_nested_settings_have_keys_with_dots() -> None:
    assert dict(formats.flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None})) == {"a.b": 1, "a.c.d": [2], "e": None}
