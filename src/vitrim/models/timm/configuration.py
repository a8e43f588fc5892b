"""timm's configuration of a model (`pretrained_cfg`): image size, preprocessing, classes."""

from typing import Any

from torch import nn

from vitrim.models.origin import Origin

PREPROCESSING = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # keys of `pretrained_cfg`
OF_OTHER_SIZES = ("test_input_size", "test_crop_pct", "test_pool_size", "min_input_size")  # of published weights


def true_configuration(model: nn.Module, origin: Origin, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """timm's configuration of a model, with the image size, preprocessing and classes that the origin states.

    A model that was just built has the configuration of the published weights of its architecture.

    Args:
        image_shape: channels, height and width of the images that the model takes.
    """
    config = dict(getattr(model, "pretrained_cfg", None) or {})
    preprocessing, (channels, *size) = origin.preprocessing, image_shape
    input_size = (channels, *(preprocessing.get("img_size") or size))
    if input_size != tuple(config.get("input_size") or ()):
        config = {name: value for name, value in config.items() if name not in OF_OTHER_SIZES}
    if origin.classes or config.get("num_classes") != origin.model_args["num_classes"]:
        config["label_names"] = list(origin.classes) or None
    settings = {name: preprocessing[name] for name in PREPROCESSING if name in preprocessing}
    return {**config, "input_size": input_size, "num_classes": origin.model_args["num_classes"], **settings}
