"""What the value of a setting may be: its type, and the largest number that makes sense.

The same rules hold for options of the command line, `--set`, recipes and Python. The range that follows from what a
setting means is checked in its own class. Standard library only.
"""

import dataclasses
import math
import numbers
import re
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vitrim.errors import SettingError, shown

MAX_WHOLE = 1_000_000_000  # of settings without a limit of their own: larger numbers are mistakes
MAX_NUMBER = 1e9
MAX_SEED = 2**32 - 1  # larger seeds of a step would not fit the 64 bits of torch's seeds
MAX_EPOCHS = 1_000_000
MAX_BATCH = 2**20  # images
MAX_IMG_SIZE = 16_384  # pixels of a side
MAX_WORKERS = 1024
MAX_ROUNDS = 100_000  # timed passes
MAX_DIGITS = 40
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def whole_in(text: str) -> int | None:
    """The whole number that a text is: digits with or without a sign, and spaces around them. None for other texts."""
    text = text.strip(" \t")
    return int(text) if len(text) <= MAX_DIGITS and _WHOLE.fullmatch(text) else None


def number_in(text: str) -> float | None:
    """The number that a text is, such as `0.5`, `.5` or `1e-3`. None for other texts, also for `nan` and `inf`."""
    text = text.strip(" \t")
    number = float(text) if len(text) <= 10 * MAX_DIGITS and _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


def checked(value: Any, hint: Any, name: str) -> Any:
    """Return a value if its type is right.

    A whole number is converted where a number is expected. A bool is no number, and 3.0 is no whole number. Numbers of
    numpy become Python's. A list becomes a tuple where a tuple of numbers is expected.

    Args:
        value: of any type.
        hint: type of a field of a settings class.
        name: of the setting, for the message.

    Raises:
        SettingError: the type is wrong, or the number is infinite or not a number.
    """
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if isinstance(value, str) and value in get_args(option):
                return value
        elif option is int:
            if isinstance(value, numbers.Integral) and not isinstance(value, bool):
                return int(value)
        elif get_origin(option) is tuple:
            if isinstance(value, list | tuple):
                kind = get_args(option)[0]
                return tuple(checked(item, kind, f"{name}[{index}]") for index, item in enumerate(value))
        elif option is float:
            if (number := _finite(value)) is not None:
                return number
        elif isinstance(option, type) and isinstance(value, option):
            return value
    raise SettingError(f"{name} is {shown(value)}; expected {' or '.join(map(_in_words, options))}.")


def check_types(settings: Any, **max_values: float) -> None:
    """Check the type of every field of a settings class, and that no number is absurd. Call it in `__post_init__`.

    Args:
        settings: a frozen dataclass. Numbers of numpy in it become Python's.
        max_values: the largest value of a field, by its name; else `MAX_WHOLE` or `MAX_NUMBER`.

    Raises:
        SettingError: a type is wrong, or a number is too large.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        found = checked(value, hint, name)
        if found is not value:
            object.__setattr__(settings, name, found)
        if isinstance(found, int | float) and not isinstance(found, bool):
            check_size(name, found, max_values.get(name))


def check_size(name: str, value: float, maximum: float | None = None) -> None:
    """Raise SettingError if a number is far from what makes sense, in either direction.

    Args:
        name: of the setting.
        value: a finite number.
        maximum: of its amount; by default `MAX_WHOLE` or `MAX_NUMBER`.
    """
    if maximum is None:
        maximum = MAX_WHOLE if isinstance(value, int) else MAX_NUMBER
    if abs(value) > maximum:
        largest = f"{maximum:,}" if isinstance(maximum, int) else f"{maximum:g}"
        raise SettingError(f"{name} is {shown(value)}; expected at {f'most {largest}' if value > 0 else 'least 0'}.")


def check_whole(name: str, value: Any, minimum: int, maximum: int = MAX_WHOLE) -> int:
    """Return a whole number that is no field of a settings class.

    Raises:
        SettingError: it is no whole number, or out of range.
    """
    found: int = checked(value, int, name)
    if found < minimum:
        raise SettingError(f"{name} is {found}; expected at least {minimum}.")
    check_size(name, found, maximum)
    return found


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _finite(value: Any) -> float | None:
    """The value as a float; None if it is no number, infinite or not a number."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _in_words(option: Any) -> str:
    if get_origin(option) is Literal:
        values = [repr(value) for value in get_args(option)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(option) is tuple:
        return "a list of numbers, such as [0.7, 0.5]"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", NoneType: "nothing"}
    return names.get(option, getattr(option, "__name__", str(option)))
