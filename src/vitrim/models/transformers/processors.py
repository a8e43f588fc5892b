"""Reads the image processor of a model of transformers: how images are resized, cropped and normalised.

The result has timm's names, and `steps`: the exact steps of the processor (`vitrim.data.processor`). What vitrim cannot
do as transformers does is refused by name.
"""

import math
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from vitrim.asking import UNFORESEEN, asking, reason
from vitrim.errors import SettingError
from vitrim.models.downloads import from_network, hub_url
from vitrim.models.sizes import short
from vitrim.runs.progress import log

RESAMPLING = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
KINDS = (  # beginnings of the names of the processors whose steps are known
    *("ViT", "DeiT", "Bit", "CLIP", "Siglip", "Beit", "Pvt", "MobileNetV1", "MobileNetV2"),  # the usual steps
    *("ConvNext", "Levit", "PoolFormer", "EfficientNet", "MobileViT", "DINOv3ViT"),
)
HEAD = "ImageProcessor"
SIZES = ("size", "crop_size", "pad_size")  # keys that hold numbers of pixels
NUMBERS = ("rescale_factor", "crop_pct", "resample", "size_divisor")
MAX_SIDE = 10_000  # pixels
NO_CROP_FROM = 384  # pixels; from here on, ConvNext's processor resizes to a square without a crop
LEVIT_CROP_PCT = 224 / 256
MAX_SMALL_SIDE = 96  # as in `vitrim.data.preprocessing`


class _Refused(Exception):
    """Why vitrim cannot do what a processor does; names the key."""


def processor_file(name: str, *, from_hub: bool) -> dict[str, Any] | None:
    """The keys of the image processor beside the weights; None if there is none.

    Args:
        name: a folder, or a repository of the Hub.
        from_hub: the weights came from the Hub.
    """
    if from_hub:
        return _from_hub(name)
    return _read(name) if name and Path(name).is_dir() else None


@cache  # once for each model
def log_defaults(name: str, model_class: str, settings: str) -> None:
    """Say which preprocessing is assumed for weights without an image processor."""
    log(f"{name} has no preprocessor_config.json; assumed for {model_class}: {settings}")


@cache
def _from_hub(name: str) -> dict[str, Any] | None:
    with from_network(f"transformers:{name}", hub_url(name, "preprocessor_config.json"), ""):
        return _read(name)


def _read(name: str) -> dict[str, Any] | None:
    mixin = import_module("transformers.image_processing_base").ImageProcessingMixin
    keys: Any
    with asking("transformers", f"read the image processor in {name}", advice="Repair or remove its file."):
        try:
            keys = mixin.get_image_processor_dict(name)[0]
        except OSError as error:
            if isinstance(error.__cause__, ValueError) or "not a valid JSON" in str(error):
                raise SettingError(f"The image processor in {name} is not valid JSON: repair or remove it.") from error
            return None
    if not isinstance(keys, dict):
        raise SettingError(f"The image processor in {name} is not a JSON object: repair or remove it.")
    found: dict[str, Any] = keys
    return found


def processor_settings(
    keys: Mapping[str, Any], *, model_type: str, img_size: tuple[int, int], num_channels: int, any_size: bool
) -> dict[str, Any]:
    """The preprocessing that a processor describes.

    Args:
        keys: of its file.
        model_type: of the dense model; names the processor if the file does not.
        img_size: height and width of the images in the configuration of the model.
        num_channels: of the images.
        any_size: whether the model accepts images of another size than `img_size`.

    Returns:
        The keys of `vitrim.data.preprocessing.Preprocessing`; or `refused`, a sentence.
    """
    name = _class_name(keys, model_type)
    try:
        _check_kinds(keys)
        kind = name.removesuffix("Fast").removesuffix("Pil").removesuffix(HEAD)
        if kind not in KINDS:
            raise _Refused(f"it is a {name}, and vitrim knows only {', '.join(KINDS)} + {HEAD}")
        processor = _processor(kind + HEAD, keys)
        steps, size = _steps(kind, processor)
        if size is not None and size != img_size and not any_size:
            raise _Refused(f"it makes images of {size[0]}x{size[1]}, but the model takes {img_size[0]}x{img_size[1]}")
        mean, std = _mean_and_std(kind, processor, num_channels)
        crop_pct, crop_mode = _in_words_of_timm(steps)
        return {
            "img_size": list(size or img_size),
            "mean": mean,
            "std": std,
            "interpolation": _interpolation(processor, steps),
            "crop_pct": crop_pct,
            "crop_mode": crop_mode,
            "steps": steps,
        }
    except _Refused as refusal:
        return {
            "refused": f"vitrim cannot prepare images as this model's image processor does: {refusal}. Change the "
            "processor (preprocessor_config.json), or prepare the images yourself and pass batches in Python."
        }


def _check_kinds(keys: Mapping[str, Any]) -> None:
    """Raise `_Refused` for values that no processor has. transformers takes them, and fails later."""
    for name, value in keys.items():
        if name in SIZES and value is not None:
            sides = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if not all(side is None or (type(side) is int and 0 <= side <= MAX_SIDE) for side in sides):
                raise _Refused(f"its {name} is {short(value)}; expected numbers of pixels up to {MAX_SIDE:,}")
        elif name.startswith("do_") and not isinstance(value, bool | None):
            raise _Refused(f"its {name} is {short(value)}; expected true or false")
        elif name in NUMBERS and value is not None and not _is_number(value):
            raise _Refused(f"its {name} is {short(value)}; expected a number")
        elif name in ("image_mean", "image_std") and value is not None:
            numbers = value if isinstance(value, list) and value else [value]
            if not all(map(_is_number, numbers)):
                raise _Refused(f"its {name} is {short(value)}; expected numbers")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _class_name(keys: Mapping[str, Any], model_type: str) -> str:
    named = keys.get("image_processor_type") or keys.get("feature_extractor_type")
    if named:
        return str(named).replace("FeatureExtractor", HEAD)
    mapping = import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING_NAMES
    return str(
        (mapping.get(model_type) or {}).get("torchvision") or f"processor without image_processor_type ({model_type})"
    )


def _processor(name: str, keys: Mapping[str, Any]) -> Any:
    """transformers' object, which fills in the defaults of its class."""
    try:
        cls = getattr(import_module("transformers"), name)  # of `KINDS`
        return cls(**{key: value for key, value in keys.items() if not callable(getattr(cls, key, None))})
    except UNFORESEEN as error:
        raise _Refused(f"transformers' {name} does not accept it ({reason(error)})") from error


def _steps(kind: str, processor: Any) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """The steps before normalisation, and the size of all images after them, if it is the same for all."""
    size = _plain_size(processor.size) if processor.do_resize else None
    crop = _crop(processor) if processor.do_center_crop else None
    crop_pct: Any = getattr(processor, "crop_pct", None)
    if kind == "ConvNext" and size:
        edge = _edge(kind, size)
        if crop and crop != (edge, edge):
            raise _Refused("it crops twice (do_center_crop of a ConvNext processor)")
        crop = crop if edge >= NO_CROP_FROM else (edge, edge)
        size = {"height": edge, "width": edge} if edge >= NO_CROP_FROM else {"shortest_edge": int(edge / crop_pct)}
    elif kind == "Levit" and size and "height" not in size:
        size = {"shortest_edge": int(_edge(kind, size) / LEVIT_CROP_PCT)}
    elif kind == "PoolFormer" and size and crop_pct is not None:
        size = _poolformer_size(size, crop_pct)
    if processor.do_pad:
        _check_padding(processor, crop, size)
    final = crop or ((size["height"], size["width"]) if size and "height" in size else None)
    return {
        "size": size,
        "crop": list(crop) if crop else None,
        "bgr": kind == "MobileViT" and bool(processor.do_flip_channel_order),
        "as_float": kind == "DINOv3ViT" and bool(processor.do_rescale),
    }, final


def _plain_size(size: Any) -> dict[str, int]:
    """The sizes that transformers uses, in the order in which it looks for them."""
    found = {key: int(value) for key, value in dict(size or {}).items() if value}
    for keys in (
        ("shortest_edge", "longest_edge"),
        ("shortest_edge",),
        ("max_height", "max_width"),
        ("height", "width"),
    ):
        if all(key in found for key in keys):
            return {key: found[key] for key in keys}
    raise _Refused(f"its size has the keys {sorted(found)}; expected height and width, or shortest_edge")


def _crop(processor: Any) -> tuple[int, int]:
    crop = {key: value for key, value in dict(processor.crop_size or {}).items() if value}
    if not {"height", "width"} <= set(crop):
        raise _Refused(f"its crop_size has the keys {sorted(crop)}; expected height and width")
    return int(crop["height"]), int(crop["width"])


def _edge(kind: str, size: Mapping[str, int]) -> int:
    if "shortest_edge" not in size:
        raise _Refused(f"the size of a {kind} processor has the keys {sorted(size)}; expected shortest_edge")
    return size["shortest_edge"]


def _poolformer_size(size: Mapping[str, int], crop_pct: float) -> dict[str, int]:
    if "shortest_edge" in size:
        return {"shortest_edge": int(size["shortest_edge"] / crop_pct)}
    if size.get("height") is not None and size["height"] == size["width"]:
        return {"shortest_edge": int(size["height"] / crop_pct)}
    return {key: int(value / crop_pct) for key, value in size.items()}


def _check_padding(processor: Any, crop: tuple[int, int] | None, size: Mapping[str, int] | None) -> None:
    """Raise `_Refused` unless all images have the padded size already."""
    final = crop or ((size["height"], size["width"]) if size and "height" in size else None)
    padded = processor.pad_size and (processor.pad_size.height, processor.pad_size.width)
    if final is None or padded not in (None, final):
        raise _Refused("it pads images after they were normalised (do_pad)")


def _interpolation(processor: Any, steps: Mapping[str, Any]) -> str:
    resample = processor.resample
    name = RESAMPLING.get(2 if resample is None else int(_number(resample, "resample")))
    if name is None:
        raise _Refused(f"its resample is {resample!r}; expected a number from 0 to 5")
    if steps["as_float"] and name in ("lanczos", "box", "hamming"):
        raise _Refused(f"it resizes numbers with fractions by {name} (resample {int(resample)})")
    return name


def _mean_and_std(kind: str, processor: Any, num_channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation for pixels in 0..1, which include `rescale_factor` and its offset.

    transformers computes `(pixel * factor - offset - mean) / std`; vitrim computes `(pixel / 255 - mean) / std`.
    """
    factor = _number(processor.rescale_factor, "rescale_factor") if processor.do_rescale else 1.0
    if not math.isfinite(factor) or factor <= 0:
        raise _Refused(f"its rescale_factor is {factor}; expected a positive number")
    normalises = bool(processor.do_normalize) and kind != "MobileViT"  # its processor never normalises
    mean = _per_channel(processor.image_mean if normalises else 0.0, num_channels, "image_mean")
    std = _per_channel(processor.image_std if normalises else 1.0, num_channels, "image_std")
    if kind == "EfficientNet":
        if processor.do_rescale and processor.rescale_offset:
            mean = [value + 1 for value in mean]
        if processor.include_top:  # divides by the standard deviation once more
            again = _per_channel(processor.image_std, num_channels, "image_std")
            std = [first * second for first, second in zip(std, again, strict=True)]
    scale = 1 / (255 * factor)
    if math.isclose(scale, 1, rel_tol=1e-6):
        scale = 1.0  # else 1/255 read from JSON changes the last digit of the mean
    return [value * scale for value in mean], [value * scale for value in std]


def _per_channel(values: Any, num_channels: int, name: str) -> list[float]:
    numbers = [_number(value, name) for value in (values if isinstance(values, list | tuple) else [values])]
    if len(numbers) not in (1, num_channels):
        raise _Refused(f"its {name} has {len(numbers)} numbers; expected {num_channels}")
    return numbers * num_channels if len(numbers) == 1 else numbers


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise _Refused(f"its {name} is {value!r}; expected a number") from None


def _in_words_of_timm(steps: Mapping[str, Any]) -> tuple[float, str]:
    """`crop_pct` and `crop_mode`, for those who do not know the steps."""
    size, crop = steps["size"], steps["crop"]
    if not size or not crop:
        return 1.0, "squash" if size and "height" in size else "center"
    edge = size.get("shortest_edge") or min(
        size.get("height", 0) or size["max_height"], size.get("width", 0) or size["max_width"]
    )
    return crop[0] / edge, "center"


def processor_keys(preprocessing: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keys of an image processor of transformers that prepares images in this way; None if none can.

    Args:
        preprocessing: the keys of `vitrim.data.preprocessing.Preprocessing`.
    """
    steps = preprocessing.get("steps") or _usual_steps(preprocessing)
    if steps is None:
        return None
    resample = next(number for number, name in RESAMPLING.items() if name == preprocessing["interpolation"])
    keys: dict[str, Any] = {
        "image_processor_type": "DINOv3ViTImageProcessor" if steps["as_float"] else "CLIPImageProcessor",
        "do_convert_rgb": len(preprocessing["mean"]) == 3,  # else a model of grey images would get three channels
        "do_resize": steps["size"] is not None,
        "resample": resample,
        "do_center_crop": steps["crop"] is not None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing["mean"]),
        "image_std": list(preprocessing["std"]),
    }
    if steps["bgr"]:  # this processor does not normalise
        factor = 1 / (255 * preprocessing["std"][0])
        keys |= {"image_processor_type": "MobileViTImageProcessor", "do_normalize": False, "rescale_factor": factor}
    if steps["size"]:
        keys["size"] = dict(steps["size"])
    if steps["crop"]:
        keys["crop_size"] = dict(zip(("height", "width"), steps["crop"], strict=True))
    return keys


def _usual_steps(preprocessing: Mapping[str, Any]) -> dict[str, Any] | None:
    """The steps of a family of models; None if no processor can do them, because small images are not to be cropped."""
    if "refused" in preprocessing or not preprocessing:
        return None
    (height, width), crop_pct = preprocessing["img_size"], preprocessing["crop_pct"]
    rest = {"bgr": False, "as_float": False}
    if preprocessing["crop_mode"] == "squash" and crop_pct == 1:
        return {"size": {"height": height, "width": width}, "crop": None, **rest}
    if preprocessing["crop_mode"] == "center" and height == width and (crop_pct == 1 or height > MAX_SMALL_SIDE):
        return {"size": {"shortest_edge": math.floor(height / crop_pct)}, "crop": [height, width], **rest}
    return None
