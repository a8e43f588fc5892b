"""Opens a file of weights: which architecture it is for, and how its images are prepared."""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.errors import SettingError
from vitrim.models import adapter_of_library
from vitrim.models.sizes import short
from vitrim.models.timm.stored_arguments import refused_argument
from vitrim.runs.progress import log
from vitrim.runs.training_checkpoints import TrainingCheckpoint
from vitrim.saving.fitting import LIBRARIES, build_from, build_from_npz
from vitrim.saving.weight_files import read_weights

TIMM_SOURCES = ("hf-hub", "hf_hub", "local-dir", "local_dir")  # prefixes of timm itself
PROCESSOR = "preprocessor_config.json"  # of transformers
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


def open_checkpoint(path: Path, *, arch: str | None, arguments: Mapping[str, Any]) -> nn.Module:
    """Build the model of a file of weights.

    Args:
        path: of a file, or of the index of a model in several files.
        arch: its architecture, with a prefix of the library; None to use the one that the file states.
        arguments: of the architecture, as the user has set them.

    Raises:
        SettingError: no architecture is known, or the library cannot build it.
        CheckpointMismatch: the file cannot be read, or the weights do not fit the architecture.
    """
    if path.suffix == ".npz":
        if not arch:
            raise SettingError(f"{path} is a file of weights; name its architecture with arch (--arch).")
        library, architecture = library_in(arch)
        if library != "timm":
            raise SettingError(f"{path} is for an architecture of timm, but arch (--arch) is {arch}.")
        return build_from_npz(path, architecture, arguments)
    checkpoint = read_weights(path)
    for note in checkpoint.notes:
        log(f"{path}: {note}")
    stated = next((name for name in map(_known_architecture, checkpoint.architectures) if name), None)
    if not arch and not stated:
        others = f" It states {checkpoint.architectures[0]!r}, no name of timm." if checkpoint.architectures else ""
        raise SettingError(f"{path} is a file of weights; name its architecture with arch (--arch).{others}")
    if not arch:
        log(f"{path} states its architecture: {stated}")
    elif stated and library_in(arch) != library_in(stated):
        log(f"{path} states the architecture {stated}; {arch} is used, as it was given")
    library, architecture = library_in(arch or str(stated))
    if library == "timm" and stated and library_in(stated)[1].split(".")[0] == architecture.split(".")[0]:
        arguments = {**_stated_arguments(checkpoint, path, arguments), **arguments}
    model = build_from(checkpoint.tensors, library, architecture, arguments, str(path))
    _set_preprocessing(model, checkpoint, library, path)
    return model


def library_in(name: str) -> tuple[str, str]:
    """Split a name into library and name in this library. Without a prefix, the library is timm.

    Raises:
        SettingError: the prefix is not a library.
    """
    library, colon, rest = name.partition(":")
    if library in LIBRARIES and rest:
        return library, rest
    if library in LIBRARIES and colon:
        raise SettingError(f"The name of the model is missing after {name}")
    if colon and library not in TIMM_SOURCES:
        near = difflib.get_close_matches(library, LIBRARIES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(LIBRARIES)}."
        raise SettingError(f"Unknown library {library!r}; {hint}")
    return "timm", name


def _known_architecture(name: str) -> str | None:
    """The name with its library, if timm or torchvision has such an architecture."""
    libraries = [library for library, module in LIBRARIES.items() if module.is_architecture(name)]
    return f"{libraries[0]}:{name}" if libraries else None


def _stated_arguments(checkpoint: TrainingCheckpoint, path: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the architecture in the settings of timm's training script, without those that are known."""
    stated = checkpoint.settings.get("model_kwargs")
    found = dict(stated) if isinstance(stated, Mapping) else {}
    if pooling := checkpoint.settings.get("gp"):
        found.setdefault("global_pool", pooling)
    plain = {name: value for name, value in found.items() if isinstance(value, str | int | float | list | tuple)}
    plain = {name: value for name, value in plain.items() if name not in (*known, "num_classes")}
    for name in [name for name, value in plain.items() if refused_argument(name, value)]:
        del plain[name]
        log(f"{path} states {short(name)}, which is no size of an architecture; it is not used")
    if plain:
        log(f"{path} states {', '.join(f'{name}={value}' for name, value in plain.items())}; the model is built so")
    return plain


def _set_preprocessing(model: Any, checkpoint: TrainingCheckpoint, library: str, path: Path) -> None:
    """Record the preprocessing that timm's training script noted, and log which one is used."""
    stated = dict(_stated_preprocessing(checkpoint.settings)) if library == "timm" else {}
    if stated:
        model.pretrained_cfg = {**(getattr(model, "pretrained_cfg", None) or {}), **stated}
    beside = path.parent / PROCESSOR
    if library == "transformers":
        model.config._name_or_path = str(path.parent)  # where its adapter looks for the image processor
    used = adapter_of_library(library).preprocessing(model)
    if "refused" in used:
        log(str(used["refused"]))
        return
    numbers = ", ".join(f"{key} {' '.join(f'{value:.3g}' for value in used[key])}" for key in ("mean", "std"))
    others = f"{used['interpolation']}, crop {used['crop_pct']:.3g}"
    source = f"{', '.join(stated)} as the file states" if stated else "of the architecture, as the file states none"
    source = f"of {beside}" if library == "transformers" and beside.is_file() else source
    log(f"images are prepared with {numbers}, {others} ({source})")
    size = checkpoint.settings.get("img_size") or checkpoint.settings.get("input_size")
    if isinstance(size, int) and size not in used["img_size"]:
        log(f"{path} states images of {size} pixels, but the model is built for {used['img_size'][0]} (see --img-size)")


def _stated_preprocessing(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("mean", "std"):
        value = settings.get(name)
        if isinstance(value, list | tuple) and value and all(isinstance(number, int | float) for number in value):
            yield name, tuple(float(number) for number in value)
    if settings.get("interpolation") in INTERPOLATIONS:
        yield "interpolation", settings["interpolation"]
    crop = settings.get("crop_pct")
    if isinstance(crop, int | float) and crop > 0:
        yield "crop_pct", float(crop)
    if settings.get("crop_mode") in ("center", "squash", "border"):
        yield "crop_mode", settings["crop_mode"]
