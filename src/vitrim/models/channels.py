"""The image channels of a model, and mean and standard deviation for as many."""

from collections.abc import Sequence
from typing import Any

from torch import nn


def input_channels(model: nn.Module, default: int) -> int:
    """Channels of the images that a model takes: of its first convolution, or `default` if there is none."""
    convolutions = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    first = next(convolutions, None)
    return default if first is None else first.in_channels


def with_channels(settings: dict[str, Any], channels: int) -> dict[str, Any]:
    """The preprocessing with one mean and one standard deviation for each channel of the model.

    Libraries keep the three numbers for red, green and blue if a model is built with other channels. Channels without a
    number of their own get the average of these.

    Args:
        settings: with `mean` and `std`.
        channels: of the model's images.
    """
    if "mean" not in settings:  # `refused`: the images of this model cannot be prepared
        return settings
    return {**settings, "mean": _fit(settings["mean"], channels), "std": _fit(settings["std"], channels)}


def _fit(values: Sequence[float], channels: int) -> list[float]:
    if len(values) == channels:
        return list(values)
    average = sum(values) / len(values)
    own = list(values) if 1 < len(values) < channels else []
    return own + [average] * (channels - len(own))
