"""Turn the text of an option into a value: times, ranges of pixels, arguments of an architecture."""

import math
import re
from collections.abc import Sequence
from typing import Any, get_args

from cyclopts import Parameter, Token

from vitrim.checks import number_in, whole_in
from vitrim.errors import SettingError, shown


def whole_number(kind: Any, tokens: Sequence[Token]) -> Any:
    """Convert the value of an option to a whole number, or to a word that the option accepts, such as `auto`.

    cyclopts itself would round `1.9`, and accept `1_000` and the digits of all scripts.

    Raises:
        ValueError: it is neither.
    """
    text = tokens[0].value
    found = text if text in words_of(kind) else whole_in(text)
    if found is None:
        raise ValueError("no whole number")
    return found


def finite_number(kind: Any, tokens: Sequence[Token]) -> float:
    """Convert the value of an option to a number.

    Raises:
        ValueError: it is none, infinite or not a number.
    """
    if (found := number_in(tokens[0].value)) is None:
        raise ValueError("no number")
    return found


class Numbers(tuple[float, ...]):
    """One number, or several that were written with commas: `0.7`, `0.9,0.7`."""


def finite_numbers(kind: Any, tokens: Sequence[Token]) -> Numbers:
    """Convert the value of an option to numbers.

    Raises:
        ValueError: one of them is no number, infinite or not a number.
    """
    found = [number_in(part) for part in tokens[0].value.split(",")]
    if any(number is None for number in found):
        raise ValueError("no numbers")
    return Numbers(number for number in found if number is not None)


def words_of(kind: Any) -> tuple[str, ...]:
    """The words that an option of this type accepts besides numbers."""
    return tuple(word for part in (kind, *get_args(kind)) for word in get_args(part) if isinstance(word, str))


class ImageSize(tuple[int, int]):
    """Height and width: `480x640`, or one number for both."""


def image_size(kind: Any, tokens: Sequence[Token]) -> ImageSize:
    """Convert the value of an option to a height and a width.

    Raises:
        ValueError: it is neither one whole number nor two with an `x`.
    """
    sides = [whole_in(part) for part in tokens[0].value.split("x")]
    if len(sides) > 2 or any(side is None for side in sides):
        raise ValueError("no size of an image")
    return ImageSize(side for side in (sides * 2)[:2] if side is not None)


IMAGE_SIZE = Parameter(converter=image_size, n_tokens=1, accepts_keys=False)
WHOLE = Parameter(converter=whole_number)
NUMBER = Parameter(converter=finite_number)
NUMBERS = Parameter(converter=finite_numbers, n_tokens=1, accepts_keys=False)


def refuse_empty(options: Any) -> None:
    """Refuse empty texts in a group of options: most would be taken for options that were not given.

    Raises:
        SettingError: a text is empty.
    """
    for name, value in vars(options).items():
        if value == "" or (isinstance(value, list) and "" in value):
            option = {"settings": "set"}.get(name, name).replace("_", "-")
            raise SettingError(f"--{option} is empty; give a value, or leave the option out.")


def several_milliseconds(text: str) -> list[float]:
    """Convert `12ms` or `12ms,9ms` to milliseconds.

    Raises:
        SettingError: a part is not a time above 0.
    """
    return [milliseconds(part) for part in text.split(",")] if "," in text else [milliseconds(text)]


def milliseconds(text: str) -> float:
    """Convert `12ms`, `12`, `0.5s` or `800us` to milliseconds.

    Raises:
        SettingError: the text is not a time above 0.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *(us|ms|s)?", text.strip())
    time = float(found[1]) * {"us": 1e-3, "s": 1e3}.get(found[2], 1.0) if found else 0.0
    if not 0 < time < math.inf:
        hint = " min needs --max-drop." if text.strip() == "min" else ""
        raise SettingError(f"--latency is {shown(text)}; expected a time above 0, such as 12ms.{hint}")
    return time


def value_range(text: str) -> tuple[float, float]:
    """Convert `0,4095` to two numbers.

    Raises:
        SettingError: the text is not two numbers.
    """
    numbers = [number_in(number) for number in text.split(",")]
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise SettingError(
            f"--value-range is {shown(text)}; expected the values of black and white, such as 0,4095 or -1000,1000."
        )
    return numbers[0], numbers[1]


def model_args(pairs: list[str]) -> dict[str, Any]:
    """Turn `KEY=VALUE` pairs into arguments of the architecture. A value is TOML; a bare word is a string.

    Raises:
        SettingError: a pair has no `=`.
    """
    from vitrim.recipe import set_in

    table: dict[str, Any] = {}
    for pair in pairs:
        set_in(table, pair)
    return table
