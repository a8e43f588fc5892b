"""Opens a model by name, folder or checkpoint file, from vitrim or from another library."""

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
    """Build or load a model in eval mode, in float32, on the CPU.

    Args:
        name: one of three. A name of timm, or of another library after its prefix: `torchvision:vit_b_16`,
            `transformers:USER/NAME`, `timm:hf-hub:USER/NAME`. A folder that vitrim, transformers (`save_pretrained`) or
            timm wrote. A checkpoint file, with `arch`.
        arch: architecture of a checkpoint file, with a prefix as in `name`.
        pretrained: load the weights of the library. By default they are random.
        num_classes: number of outputs. By default as in the head of the checkpoint, or as in the library.
        img_size: height and width of the input in pixels. By default as in the architecture.
        patch_size: height and width of a patch in pixels. By default as in the architecture.
        model_args: further arguments of the architecture, such as `{"embed_dim": 192}`.

    Raises:
        SettingError: the name is unknown, or arguments contradict each other.
        CheckpointMismatch: the weights do not fit the architecture.
        UnsupportedModel: the library cannot build the model.
    """
    arguments = {"num_classes": num_classes, "img_size": img_size, "patch_size": patch_size, **(model_args or {})}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    path = Path(name)
    if path.is_dir():
        return _open_folder(path, [*arguments, *(["arch"] if arch else []), *(["pretrained"] if pretrained else [])])
    if path.is_file():
        if not arch:
            raise SettingError(f"{name} is a file of weights; name its timm architecture with --arch.")
        tensors = read_tensors(path)
        if "head.weight" in tensors:
            arguments.setdefault("num_classes", len(tensors["head.weight"]))
        library, architecture = _library_in(arch)
        model = adapter_of_library(library).create(architecture, pretrained=False, **arguments)
        load_weights(model, tensors, name)
        return model.float().eval()
    if arch:
        raise SettingError(f"There is no checkpoint file {name}. --arch is only for checkpoint files.")
    library, architecture = _library_in(name)
    if path.suffix in (".pth", ".pt", ".safetensors", ".bin") or (
        "/" in name and library == "timm" and ":" not in name
    ):
        raise SettingError(
            f"There is no file or folder {name}. For a model on the Hugging Face Hub, write timm:hf-hub:USER/NAME or "
            "transformers:USER/NAME."
        )
    return adapter_of_library(library).create(architecture, pretrained=pretrained, **arguments).float().eval()


def _library_in(name: str) -> tuple[str, str]:
    """Split a name into library and name in this library. Without a prefix, the library is timm."""
    library, _, rest = name.partition(":")
    return (library, rest) if library in LIBRARIES and rest else ("timm", name)


def _open_folder(path: Path, arguments: list[str]) -> nn.Module:
    """Load a folder that vitrim, transformers or timm wrote."""
    if arguments:
        raise SettingError(f"The folder {path} defines its model; call again without {', '.join(arguments)}.")
    keys = config_keys(path)
    if "vitrim" not in keys and "model_type" in keys:
        return adapter_of_library("transformers").create(str(path)).float().eval()
    if "vitrim" not in keys and {"architecture", "pretrained_cfg"} <= keys:
        return adapter_of_library("timm").create(f"local-dir:{path}", pretrained=True).float().eval()
    return load(path).float()
