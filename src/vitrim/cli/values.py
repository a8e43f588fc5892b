"""Turn the text of an option into a value: times, ranges of pixels, arguments of an architecture."""

import re
from typing import Any

from vitrim.errors import SettingError


def milliseconds(text: str) -> float:
    """Convert `12ms`, `12`, `0.5s` or `800us` to milliseconds.

    Raises:
        SettingError: the text is not a time above 0.
    """
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) *(us|ms|s)?", text.strip())
    if not found or not float(found[1]):
        raise SettingError(f"--latency is {text!r}; expected a time above 0, such as 12ms.")
    return float(found[1]) * {"us": 1e-3, "s": 1e3}.get(found[2], 1.0)


def value_range(text: str) -> tuple[float, float]:
    """Convert `0,4095` to two numbers.

    Raises:
        SettingError: the text is not two numbers.
    """
    numbers = text.split(",")
    try:
        low, high = map(float, numbers)
    except ValueError:
        raise SettingError(
            f"--value-range is {text!r}; expected the values of black and white, such as 0,4095 or -1000,1000."
        ) from None
    return low, high


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
