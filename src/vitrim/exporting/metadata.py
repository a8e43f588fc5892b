"""The metadata of an exported file: how to prepare images, what the outputs are, and where the model comes from."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from vitrim.costs.counting import count_cost
from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import SettingError, UnsupportedModel
from vitrim.models import origin_of
from vitrim.runs.environment import versions


def metadata_of(model: nn.Module, classes: tuple[str, ...]) -> dict[str, Any]:
    """Classes, preprocessing, architecture, plan and cost of a model, as plain values for JSON.

    Args:
        classes: names of the outputs; if empty, those that the model carries.
    """
    cost = count_cost(model)
    built: dict[str, Any] = {}
    with suppress(UnsupportedModel):  # how the model was built may be unknown; it can be exported nevertheless
        origin = origin_of(model)
        built = {
            "classes": list(classes or origin.classes) or None,
            "library": origin.library,
            "architecture": origin.architecture,
            "model_args": origin.model_args,
            "plan": origin.plan.to_dict() if origin.plan else None,
        }
    try:
        preprocessing = _prepared(preprocessing_of(model))
    except SettingError as error:  # the file is right nevertheless
        preprocessing = {"preprocessing": {"refused": str(error)}}
    return {
        **built,
        **preprocessing,
        "params": cost.params,
        "macs": cost.macs,
        "versions": versions(),
    }


def batch_of(metadata: Mapping[str, Any]) -> int | None:
    """The fixed number of images of each forward pass of a file; None for any number.

    Files of earlier versions have no `batch` in their metadata, but an `input` such as `float32 (8, 3, 224, 224)`. An
    `input` such as `RGB image (256, 256)` is one image.
    """
    if "batch" in metadata:
        batch: int | None = metadata["batch"]
        return batch
    text = str(metadata.get("input", ""))
    fixed = re.match(r"(?:float32|float16|uint8) \((\d+),", text)
    return int(fixed[1]) if fixed else 1 if " image (" in text else None


def _prepared(preprocessing: Preprocessing) -> dict[str, Any]:
    """How images are prepared, as values and in words, with the size of the images that are used as they are."""
    size = preprocessing.unchanged_size
    return {
        "preprocessing": {**preprocessing.to_dict(), "unchanged_size": list(size) if size else None},
        "preprocessing_in_words": f"{preprocessing.text()}; a pixel in 0..255 becomes (pixel / 255 - mean) / std",
    }
