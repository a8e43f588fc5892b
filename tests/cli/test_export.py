"""The option `--int8` may have a value, and is a flag without one."""

import pytest

from vitrim.cli.export import with_kind


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("export MODEL --int8", "export MODEL --int8=dynamic"),
        ("export --int8 MODEL --data digits", "export --int8=dynamic MODEL --data digits"),
        ("export MODEL --int8 --data digits", "export MODEL --int8=dynamic --data digits"),
        ("export MODEL --int8 static", "export MODEL --int8 static"),
        ("export MODEL --int8=static", "export MODEL --int8=static"),
        ("export MODEL", "export MODEL"),
    ],
)
def test_int8_without_a_value_is_dynamic_and_does_not_take_the_next_word(words: str, expected: str) -> None:
    assert with_kind(words.split()) == expected.split()
