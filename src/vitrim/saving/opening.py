"""Opens a model by name, folder or checkpoint file, from vitrim or from another library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.data.stated_preprocessing import set_preprocessing
from vitrim.errors import CheckpointMismatch, SettingError
from vitrim.known.meaning import nearest_path
from vitrim.known.models import similar
from vitrim.models import adapter_of_library
from vitrim.models.transformers.families import BY_CLASS as MODEL_CLASSES
from vitrim.runs.damage import check_model_folder
from vitrim.runs.files import RUN
from vitrim.runs.text_files import check_name
from vitrim.saving.checkpoint import config_keys, is_model_folder, load
from vitrim.saving.checkpoint_files import library_in, open_checkpoint
from vitrim.saving.finite import check_finite
from vitrim.saving.weight_files import resolve_model_path

TIMM_FOLDERS = ("local-dir:", "local_dir:")  # prefixes of timm for a folder
RESERVED = ("self", "architecture", "pretrained")  # names that vitrim itself passes to a builder


def open_model(
    name: str,
    *,
    arch: str | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    img_size: int | None = None,
    patch_size: int | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build or load a model in eval mode, in float32, on the CPU.

    Args:
        name: one of three. A name of timm, or of another library after its prefix: `torchvision:vit_b_16`,
            `transformers:USER/NAME`, `timm:hf-hub:USER/NAME`. A folder that vitrim, transformers (`save_pretrained`) or
            timm wrote. A checkpoint file, with `arch` unless the file states it.
        arch: architecture of a checkpoint file, with a prefix as in `name`. By default as the file states.
        pretrained: load the weights of the library. By default they are random.
        num_classes: number of outputs. By default as in the head of the checkpoint, or as in the library.
        img_size: height and width of the input in pixels. By default as in the checkpoint, or as in the architecture.
        patch_size: height and width of a patch in pixels. By default as `img_size`.
        model_args: further arguments of the architecture, such as `{"embed_dim": 192}`.
        preprocessing: how images are prepared, if it is not as the model says; arguments of `set_preprocessing`.

    Raises:
        SettingError: the name is unknown, or arguments contradict each other.
        CheckpointMismatch: the weights do not fit the architecture, a file is damaged, or a weight is not finite.
        UnsupportedModel: the library cannot build the model.
    """
    if reserved := [key for key in model_args or {} if key in RESERVED]:
        raise SettingError(f"model_args (--model-arg) has {reserved[0]}, which is no argument of an architecture.")
    arguments = {"num_classes": num_classes, "img_size": img_size, "patch_size": patch_size, **(model_args or {})}
    arguments = {key: value for key, value in arguments.items() if value is not None}
    model = check_finite(_open(name, arch, arguments, pretrained=pretrained), name)
    return set_preprocessing(model, **preprocessing) if preprocessing else model


def _open(name: str, arch: str | None, arguments: dict[str, Any], *, pretrained: bool) -> nn.Module:
    """As `open_model`; `arguments` are those of the architecture that were given."""
    path = Path(name)
    if not name.strip():
        raise SettingError("The name of the model is empty; expected a name of timm, or a file or a folder.")
    if path.exists():
        _check_kind(path)
        path = resolve_model_path(path, arch)
        if path.is_file() and not path.stat().st_size:  # also a file of /proc, which may block
            raise CheckpointMismatch(f"{path} is empty; expected a file of weights.")
    if path.is_dir():
        return _open_folder(path, [*arguments, *(["arch"] if arch else []), *(["pretrained"] if pretrained else [])])
    if path.is_file():
        if pretrained:
            raise SettingError(f"{name} is a file of weights; leave out pretrained (--pretrained).")
        return open_checkpoint(path, arch=arch, arguments=arguments).float().eval()
    if arch:
        raise SettingError(f"There is no checkpoint file {name}; arch (--arch) is only for checkpoint files.")
    library, architecture = library_in(name)
    if path.suffix in (".pth", ".pt", ".safetensors", ".bin") or (
        "/" in name and library == "timm" and ":" not in name
    ):
        near = similar(name)
        hint = f" timm has {', '.join(near)}; `vitrim models` lists more." if near else ""
        hint = f" Did you mean {path_near}?" if (path_near := nearest_path(path)) else hint
        raise SettingError(
            f"There is no file or folder {name}. For a model on the Hugging Face Hub, write timm:hf-hub:USER/NAME or "
            f"transformers:USER/NAME.{hint}"
        )
    folder = Path(architecture.partition(":")[2] if architecture.startswith(TIMM_FOLDERS) else architecture)
    if is_model_folder(folder):  # that the library opens itself
        check_model_folder(folder)
    return adapter_of_library(library).create(architecture, pretrained=pretrained, **arguments).float().eval()


def _check_kind(path: Path) -> None:
    """Refuse a pipe, a socket and a device.

    Raises:
        SettingError: it is neither a file nor a folder. CheckpointMismatch: its name is not UTF-8.
    """
    check_name(path, CheckpointMismatch)
    if not path.is_dir() and not path.is_file():
        raise SettingError(f"{path} is neither a file nor a folder; expected the weights or the folder of a model.")


def has_random_weights(name: str, *, pretrained: bool = False) -> bool:
    """Whether `open_model` builds this model with random weights: no folder, checkpoint or pretrained weights.

    Raises:
        SettingError: the prefix of the name is not a library.
    """
    if pretrained or Path(name).exists():
        return False
    library, architecture = library_in(name)
    return library != "transformers" or architecture in MODEL_CLASSES  # another name is a repository with weights


def _open_folder(path: Path, arguments: list[str]) -> nn.Module:
    """Load a folder that vitrim, transformers or timm wrote."""
    _refuse_folder_of_runs(path)
    if arguments:
        raise SettingError(f"The folder {path} defines its model; call again without {', '.join(arguments)}.")
    keys = config_keys(path)
    if "vitrim" not in keys and is_model_folder(path):
        check_model_folder(path)
    if "vitrim" not in keys and "model_type" in keys:
        return adapter_of_library("transformers").create(str(path)).float().eval()
    if "vitrim" not in keys and {"architecture", "pretrained_cfg"} <= keys:
        return adapter_of_library("timm").create(f"local-dir:{path}", pretrained=True).float().eval()
    return load(path).float()


def _refuse_folder_of_runs(path: Path) -> None:
    """Raise SettingError for a folder that has no model itself: it holds runs, or its run is not finished."""
    if is_model_folder(path) or is_model_folder(path / "model"):
        return
    is_run = (path / RUN).is_file()  # then a model folder in it is a stage of the run
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    runs = [
        folder for folder in folders if is_model_folder(folder / "model") or (is_model_folder(folder) and not is_run)
    ]
    if runs:
        several = f"{path} holds several runs; give the folder of one, such as {runs[0]}."
        raise SettingError(several if len(runs) > 1 else f"{path} holds a run; give its folder, {runs[0]}.")
    if is_run:
        raise SettingError(f"{path} is a run that is not finished. Repeat its command, and its model will be there.")
