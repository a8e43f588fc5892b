"""The model that a person means by a name, a folder or a file of weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.errors import SettingError
from vitrim.models import adapter_of_library
from vitrim.runs.files import read_tensors
from vitrim.saving.checkpoint import config_keys, load, load_weights

LIBRARIES = ("timm", "transformers", "torchvision")


def open_model(
    name: str,
    *,
    arch: str | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | None = None,
    patch_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model that a person means: a name, a folder, or a checkpoint file with `arch`.

    A name is timm's, or another library's after its own: `torchvision:vit_b_16`, `transformers:USER/NAME`,
    `timm:hf-hub:USER/NAME`. A folder is one that vitrim, transformers (`save_pretrained`) or timm wrote. Weights in
    half precision are read into float32: they are to be trained and measured.

    Args:
        num_classes: outputs of the model; by default what the library has, or what the checkpoint's head has.
        model_args: further arguments of the architecture, such as `embed_dim=192`.

    Raises:
        SettingError: options that do not go together, or a name that nothing goes by.
        CheckpointMismatch: the checkpoint does not fit; says where.
    """
    arguments = {"num_classes": num_classes, "img_size": img_size, "patch_size": patch_size, **(model_args or {})}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    path = Path(name)
    if path.is_dir():
        return _open_folder(path, [*arguments, *(["arch"] if arch else []), *(["pretrained"] if pretrained else [])])
    if path.is_file():
        if not arch:
            raise SettingError(f"{name} is a file of weights; say with --arch which timm architecture they are for.")
        tensors = read_tensors(path)
        if "head.weight" in tensors:
            arguments.setdefault("num_classes", len(tensors["head.weight"]))
        library, architecture = _library_in(arch)
        model = adapter_of_library(library).create(architecture, pretrained=False, **arguments)
        load_weights(model, tensors, name)
        return model.float().eval()
    if arch:
        raise SettingError(f"There is no checkpoint file {name}; --arch goes with a file of weights.")
    library, architecture = _library_in(name)
    if path.suffix in (".pth", ".pt", ".safetensors", ".bin") or (
        "/" in name and library == "timm" and ":" not in name
    ):
        raise SettingError(
            f"There is no file or folder {name}. Names of the hub begin with a library: timm:hf-hub:USER/NAME, "
            "transformers:USER/NAME."
        )
    return adapter_of_library(library).create(architecture, pretrained=pretrained, **arguments).float().eval()


def _library_in(name: str) -> tuple[str, str]:
    """A name's library and what the library calls it: `torchvision:vit_b_16`, else timm's."""
    library, _, rest = name.partition(":")
    return (library, rest) if library in LIBRARIES and rest else ("timm", name)


def _open_folder(path: Path, given: list[str]) -> nn.Module:
    """A folder of vitrim's, transformers' or timm's."""
    if given:
        raise SettingError(f"{path} is a folder that says itself what the model is; leave out {', '.join(given)}.")
    keys = config_keys(path)
    if "vitrim" not in keys and "model_type" in keys:
        return adapter_of_library("transformers").create(str(path)).float().eval()
    if "vitrim" not in keys and {"architecture", "pretrained_cfg"} <= keys:
        return adapter_of_library("timm").create(f"local-dir:{path}", pretrained=True).float().eval()
    return load(path).float()
