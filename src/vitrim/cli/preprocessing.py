"""The options that state how images are prepared for a model. This file imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter

from vitrim.checks import number_in
from vitrim.cli.values import NUMBER
from vitrim.errors import SettingError, shown


@dataclass(frozen=True, kw_only=True)
class PreprocessingOptions:
    """How images are prepared, where the model does not say it, or says something else than its training used."""

    mean: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="mean of the pixels in 0..1, one number or one per channel, e.g. 0.485,0.456,0.406 (default: as the "
            "model says)",
        ),
    ] = None
    std: Annotated[
        str | None,
        Parameter(
            allow_leading_hyphen=True,
            help="standard deviation of the pixels in 0..1, as --mean (default: as the model says)",
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        NUMBER,
        Parameter(help="side of the central crop as a fraction of the resized image (default: as the model says)"),
    ] = None
    interpolation: Annotated[
        str | None,
        Parameter(help="how images are resized: bilinear, bicubic, nearest, lanczos, ... (default: as the model says)"),
    ] = None


def preprocessing_settings(options: PreprocessingOptions) -> dict[str, Any]:
    """The options that were given, as arguments of `vitrim.set_preprocessing`.

    Raises:
        SettingError: a text is not a list of numbers.
    """
    stated = {
        "mean": None if options.mean is None else _numbers("mean", options.mean),
        "std": None if options.std is None else _numbers("std", options.std),
        "crop_pct": options.crop_pct,
        "interpolation": options.interpolation,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _numbers(name: str, text: str) -> list[float]:
    numbers = [number_in(number) for number in text.strip("[]() ").replace(",", " ").split()]
    found = [number for number in numbers if number is not None]
    if not found or len(found) < len(numbers):
        raise SettingError(
            f"{name} is {shown(text)}; expected one number or one per channel, such as 0.5 or 0.485,0.456,0.406."
        )
    return found
