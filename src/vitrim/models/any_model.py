"""What any model says about itself: its name, how its images are prepared, its classes.

Used for teachers, which no adapter need know: timm's `pretrained_cfg`, transformers' configuration and image processor.
Models that are pruned are described by their adapters.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

from vitrim.runs.files import read_json

PROCESSOR = "preprocessor_config.json"
RESAMPLING = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
GENERATED_LABEL = "LABEL_"  # prefix of the class names that transformers makes up


def name_of(model: nn.Module) -> str:
    """The architecture that timm noted, else the folder or repository of transformers, else the class."""
    found = _pretrained_cfg(model).get("architecture") or getattr(_config(model), "_name_or_path", "")
    return str(found or type(model).__name__)


def recorded_preprocessing(model: nn.Module) -> tuple[dict[str, Any], str]:
    """How the model says that its images are prepared.

    Returns:
        Some of the values of `Preprocessing`, none if the model says nothing; and where they were found, for messages.
    """
    if settings := _timm_settings(_pretrained_cfg(model)):
        return settings, "as its pretrained_cfg says"
    if (processor := _image_processor(model)) is not None:
        return _processor_settings(processor), f"as its {PROCESSOR} says"
    if type(model).__module__.startswith("torchvision.models."):
        return {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}, "as for all weights of torchvision"
    return {}, ""


def recorded_classes(model: nn.Module) -> tuple[str, ...]:
    """Names of the outputs, in order; empty if the model has none, or only those that transformers makes up."""
    if names := _pretrained_cfg(model).get("label_names"):
        return tuple(str(name) for name in names)
    found = getattr(_config(model), "id2label", None) or {}
    names = [str(found.get(index, GENERATED_LABEL)) for index in range(len(found))]
    return () if any(name.startswith(GENERATED_LABEL) for name in names) else tuple(names)


def _pretrained_cfg(model: nn.Module) -> dict[str, Any]:
    """timm's record of the weights. Anyone can set it on a model of their own."""
    found: Any = getattr(model, "pretrained_cfg", None)
    if hasattr(found, "to_dict"):
        found = found.to_dict()
    return dict(found) if isinstance(found, Mapping) else {}


def _config(model: nn.Module) -> Any:
    """The configuration of a model of transformers; None for other models."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "id2label") else None


def _timm_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`mean`, `std`, `input_size` and `interpolation` under the names of `Preprocessing`. One number stands for all."""
    settings: dict[str, Any] = {}
    for key in ("mean", "std"):
        if (value := config.get(key)) is not None:
            settings[key] = (float(value),) * 3 if isinstance(value, int | float) else tuple(float(v) for v in value)
    if size := config.get("input_size"):
        settings["img_size"] = (size, size) if isinstance(size, int) else tuple(size[-2:])
    if config.get("interpolation"):
        settings["interpolation"] = config["interpolation"]
    return settings


def _image_processor(model: nn.Module) -> dict[str, Any] | None:
    """The settings of the image processor beside the weights, in a folder or in the cache of the Hub."""
    name = getattr(_config(model), "_name_or_path", "")
    file: Any = Path(name) / PROCESSOR if name and Path(name).is_dir() else None
    hub: Any = sys.modules.get("transformers.utils.hub")
    if file is None and name and hub is not None:
        try:
            file = hub.cached_file(name, PROCESSOR, local_files_only=True)
        except OSError:
            file = None
    if file is None or not Path(file).is_file():
        return None
    found = read_json(Path(file))
    return found if isinstance(found, dict) else None


def _processor_settings(processor: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an image processor under the names of `Preprocessing`, whose pixels are divided by 255 first."""
    factor = processor.get("rescale_factor") or 1 / 255 if processor.get("do_rescale", True) else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.get("do_normalize", True):
        mean, std = (list(processor.get(f"image_{key}") or default) for key, default in (("mean", mean), ("std", std)))
    settings: dict[str, Any] = {
        "mean": tuple(value / (255 * factor) for value in mean),
        "std": tuple(value / (255 * factor) for value in std),
    }
    if processor.get("resample") in RESAMPLING:
        settings["interpolation"] = RESAMPLING[processor["resample"]]
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = crop or (processor.get("size") if processor.get("do_resize", True) else None)
    if isinstance(size, Mapping):
        size = (size["height"], size["width"]) if "height" in size else size.get("shortest_edge")
    if size:
        settings["img_size"] = (size, size) if isinstance(size, int) else tuple(size)
    return settings
