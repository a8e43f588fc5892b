"""`set_preprocessing`: prepare images for a model in another way than its library says, as its training did."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import INTERPOLATIONS, MIN_CROP_PCT, MIN_STD, Preprocessing
from vitrim.data.processor import PILLOW_FILTERS
from vitrim.errors import SettingError, counted
from vitrim.models import STATED_ATTRIBUTE, adapter_for, origin_of, record_origin
from vitrim.models.wrappers import unwrapped

Numbers = float | Sequence[float]
SYNONYMS = {"cubic": "bicubic", "linear": "bilinear"}


def set_preprocessing(
    model: nn.Module,
    *,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    crop_pct: float | None = None,
    interpolation: str | None = None,
) -> nn.Module:
    """State how images are prepared for a model, in place. `save`, `export` and `compress` keep it with the model.

    What is not stated stays as it is. `batches(model, data)` says what is used.

    Args:
        model: of a supported library.
        mean: mean of the pixels in 0..1, one number or one for each channel. It is subtracted.
        std: standard deviation of the pixels in 0..1, as `mean`. The difference is divided by it.
        crop_pct: side of the central crop in evaluation, as a fraction of the resized image.
        interpolation: how images are resized; one of `vitrim.data.preprocessing.INTERPOLATIONS`.

    Returns:
        The same model.

    Raises:
        SettingError: a value is out of range, has the wrong number of channels, or contradicts the steps of the model's
            image processor.
        UnsupportedModel: the model does not tell how it was made, so nothing can be noted.
    """
    model = unwrapped(model)
    before = preprocessing_of(model)
    stated: dict[str, Any] = {
        "mean": None if mean is None else _per_channel("mean", mean, before.channels),
        "std": None if std is None else _per_channel("std", std, before.channels),
        "crop_pct": None if crop_pct is None else _fraction(crop_pct),
        "interpolation": None if interpolation is None else _known_interpolation(interpolation),
    }
    stated = {name: value for name, value in stated.items() if value is not None}
    _refuse_contradictions(before, stated)
    after = replace(before, **stated)
    if after != before:
        adapter_for(model).set_preprocessing(model, {name: after.to_dict()[name] for name in stated})
        record_origin(model, replace(origin_of(model), preprocessing=after.to_dict()))
        setattr(model, STATED_ATTRIBUTE, after.to_dict())
    return model


def _per_channel(name: str, values: Numbers, channels: int) -> tuple[float, ...]:
    numbers = tuple(map(float, values if isinstance(values, Sequence) else (values,)))
    text = ", ".join(f"{number:g}" for number in numbers)
    if len(numbers) not in (1, channels):
        raise SettingError(
            f"{name} is {text}, {counted(len(numbers), 'number')}; the model takes images of "
            f"{counted(channels, 'channel')}. Write one number, or one for each channel."
        )
    if all(0 <= number <= 1 and (number >= MIN_STD or name == "mean") for number in numbers):
        return numbers * channels if len(numbers) == 1 else numbers
    expected = "above 0 and at most 1" if name == "std" else "from 0 to 1"
    divided = ",".join(f"{number / 255:.4g}" for number in numbers)
    is_of_bytes = all(0 < number <= 255 for number in numbers)
    hint = f" Numbers for pixels in 0..255 are divided by 255: write {divided}." if is_of_bytes else ""
    raise SettingError(f"{name} is {text}; expected numbers {expected}, for pixels in 0..1.{hint}")


def _fraction(crop_pct: float) -> float:
    if MIN_CROP_PCT <= crop_pct <= 1:
        return float(crop_pct)
    if 0 < crop_pct < MIN_CROP_PCT:
        raise SettingError(f"crop_pct is {crop_pct:g}; expected a fraction of the side, at least {MIN_CROP_PCT}.")
    hint = f" For {crop_pct:g} %, write {crop_pct / 100:g}." if 1 < crop_pct <= 100 else ""
    raise SettingError(f"crop_pct is {crop_pct:g}; expected a fraction of the side, above 0 and at most 1.{hint}")


def _known_interpolation(name: str) -> str:
    if name in INTERPOLATIONS:
        return name
    near = [SYNONYMS[name]] if name in SYNONYMS else difflib.get_close_matches(name.lower(), INTERPOLATIONS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise SettingError(f"interpolation is {name!r}; expected one of {', '.join(INTERPOLATIONS)}.{hint}")


def _refuse_contradictions(before: Preprocessing, stated: dict[str, Any]) -> None:
    """Refuse what an image processor of transformers with other steps could not do."""
    steps = before.steps
    if steps is None:
        return
    where = "The model has an image processor of transformers (preprocessor_config.json)"
    if "crop_pct" in stated:
        raise SettingError(
            f"crop_pct is {stated['crop_pct']:g}, but the model's image processor states the steps: {before.text()}. "
            "Change its file, preprocessor_config.json, to resize or crop in another way."
        )
    if steps.bgr and ("mean" in stated or "std" in stated):
        raise SettingError(f"{where} that does not normalise, so mean and std cannot be set. Change its file.")
    allowed = ("nearest-exact", "bilinear", "bicubic") if steps.as_float else tuple(PILLOW_FILTERS)
    if stated.get("interpolation", allowed[0]) not in allowed:
        raise SettingError(
            f"interpolation is {stated['interpolation']!r}; {where[0].lower()}{where[1:]} that resizes by one of "
            f"{', '.join(allowed)}."
        )
