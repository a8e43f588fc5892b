"""Text from outside in messages: one line, nothing hidden, and of a length that a person reads."""

import pytest

from vitrim.errors import MAX_MESSAGE, MAX_WORD, DataError, UserError, cut_name, shown, visible

ODD = {
    "a\nb": r"a\nb",
    "\x1b[31mred": r"\x1b[31mred",
    "\udcffx": r"\xffx",
    "\ud800": r"\ud800",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u200b": r"\u200b",
    "\0": r"\x00",
    "\x7f\x9b": r"\x7f\x9b",
    "\u2028": r"\u2028",
}


@pytest.mark.parametrize("text", ODD)
def test_control_characters_are_escaped(text: str) -> None:
    assert visible(text) == ODD[text]
    assert str(DataError(f"The file {text} is broken.")) == f"The file {ODD[text]} is broken."
    visible(text).encode("utf-8")


@pytest.mark.parametrize("text", ["caf\u00e9", "\u732b \u72ac", "a\u3000b", "\U0001f600", "[red]|<b>%s{x}", ""])
def test_other_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == cut_name(text) == text


@pytest.mark.parametrize("character", ["x", "\n", "\x1b", "\U0001f600", "x "])
def test_long_text_is_cut(character: str) -> None:
    assert len(visible(1_000_000 * character)) <= MAX_MESSAGE
    assert len(str(UserError(1_000_000 * character))) <= MAX_MESSAGE
    assert len(cut_name(1000 * character)) <= 60


def test_the_beginning_and_the_end_of_a_long_path_are_shown() -> None:
    path = "/data/" + 1000 * "x" + "/image.png"
    assert visible(path).startswith("/data/x") and visible(path).endswith("x/image.png")
    assert len(visible(path)) == MAX_WORD


def test_escaping_twice_changes_nothing() -> None:
    for text in [*ODD, 10_000 * "x", 10_000 * "x y"]:
        assert visible(visible(text)) == visible(text)


def test_any_value_is_shown_briefly() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, -(10**5000), 10**6 * "x", deep, {"a": 10**5000}, list(range(10**5)), b"x" * 10**6):
        assert 0 < len(shown(value)) < 300
    while deep:  # Python ends where it frees a list of so many levels at once
        deep = deep.pop()  # type: ignore[assignment]


@pytest.mark.parametrize("value", ["a", "", 3, 1.5, None, True, [1, 2], {"a": 1}])
def test_small_values_are_shown_as_python_writes_them(value: object) -> None:
    assert shown(value) == repr(value)
