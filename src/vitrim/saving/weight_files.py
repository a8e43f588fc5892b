"""Which file or folder holds the model that a path names: shards, folders of trainings, a part of a model folder."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrim.errors import CheckpointMismatch, SettingError, UserError
from vitrim.runs.damage import check_file, check_model_folder
from vitrim.runs.files import CONFIG, RUN, WEIGHTS, read_checkpoint, read_json, shards_of
from vitrim.runs.progress import log
from vitrim.runs.training_checkpoints import TrainingCheckpoint
from vitrim.saving.checkpoint import is_model_folder

INDEX = ".index.json"  # ending of the file that lists the shards of a model
ONE_FILE = (WEIGHTS, "pytorch_model.bin")
OF_A_FOLDER = (CONFIG, *ONE_FILE, *(f"{name}{INDEX}" for name in ONE_FILE))
ADAPTER = "adapter_config.json"  # written by peft
NO_MODEL = {  # names, or endings of names, of files that hold no weights that vitrim reads
    "training_args.bin": "the settings of a training",
    "optimizer.pt": "the state of an optimizer",
    "optimizer.bin": "the state of an optimizer",
    "scheduler.pt": "the state of a schedule",
    ".json": "a text file",
    ".yaml": "a text file",
    ".yml": "a text file",
    ".onnx": "an ONNX file",
    ".h5": "a file of Keras",
    ".keras": "a file of Keras",
    ".msgpack": "a file of Flax",
    ".pt2": "an exported program",
    ".ckpt.index": "a file of TensorFlow",
    ".gguf": "a file of llama.cpp",
    ".xml": "a file of OpenVINO",
    ".pte": "a file of ExecuTorch",
    ".tflite": "a file of LiteRT",
}
SUFFIXES = (".pth", ".pt", ".ckpt", ".tar", ".bin", ".safetensors", ".npz")
FILES = "a file of weights ends in .safetensors, .pth, .pt, .bin, .ckpt, .tar or .npz"


def resolve_model_path(path: Path, arch: str | None) -> Path:
    """The folder or the file that holds the model of an existing path. What is not evident is logged.

    Args:
        path: a file or a folder.
        arch: the architecture that the user named, if any. Then a part of a model folder is read as a file of weights.

    Raises:
        SettingError: the folder has no model of its own; says what it has. CheckpointMismatch: the file has no weights.
    """
    if path.is_file():
        return _resolve_file(path, arch)
    if (path / ADAPTER).is_file() and not any((path / name).is_file() for name in OF_A_FOLDER[1:]):
        raise _adapter(path)
    if is_model_folder(path) or is_model_folder(path / "model") or (path / RUN).is_file():
        return path
    check_model_folder(path)  # it may have lost its configuration
    if checkpoints := _checkpoints(path):
        return _chosen_checkpoint(path, checkpoints)
    if any(path.glob("*.distcp")):
        raise SettingError(
            f"{path} is a distributed checkpoint. Make one file of it with "
            f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth`."
        )
    whole = [path / name for name in OF_A_FOLDER[1:] if (path / name).is_file()]
    if whole and arch:
        return whole[0]
    weights = whole or sorted(file for file in _files(path) if file.name not in NO_MODEL)
    if weights:
        raise SettingError(
            f"{path} has no {CONFIG}, but files of weights. Name one with its architecture, such as "
            f"{_likely(weights)} with arch (--arch)."
        )
    return path


def read_weights(path: Path) -> TrainingCheckpoint:
    """Read a file of weights, or the shards that an index lists.

    Raises:
        CheckpointMismatch: a file is missing, damaged or has no weights.
    """
    check_file(path)
    if not path.name.endswith(INDEX):
        return read_checkpoint(path)
    places = shards_of(path)
    tensors: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        check_file(path.parent / name)
        tensors |= read_checkpoint(path.parent / name).tensors
    if missing := [name for name in places if name not in tensors]:
        raise CheckpointMismatch(f"{path} lists {missing[0]}, but {places[missing[0]]} does not have it.")
    return TrainingCheckpoint(tensors=tensors)


def _resolve_file(path: Path, arch: str | None) -> Path:
    if path.name in OF_A_FOLDER and is_model_folder(path.parent) and not arch:
        log(f"{path} is a part of a model folder; the folder {path.parent} is opened")
        return path.parent
    if (path.parent / ADAPTER).is_file() and path.stem == "adapter_model":
        raise _adapter(path.parent)
    for name, what in NO_MODEL.items():
        if path.name.endswith(name) and not path.name.endswith(INDEX):
            raise CheckpointMismatch(f"{path} is {what}; expected a model: {FILES}.")
    return path


def _adapter(folder: Path) -> SettingError:
    config = _json(folder / ADAPTER)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return SettingError(
        f"{folder} has an adapter of peft{f' for {base}' if base else ''}, and not the model itself. Merge them in "
        "Python with `model.merge_and_unload().save_pretrained(FOLDER)`, and open this folder."
    )


def _checkpoints(path: Path) -> dict[int, Path]:
    """The folders `checkpoint-N` of transformers' Trainer that have a model, by their step."""
    found = {}
    for folder in path.iterdir():
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        if number and is_model_folder(folder):
            found[int(number[1])] = folder
    return found


def _chosen_checkpoint(path: Path, checkpoints: dict[int, Path]) -> Path:
    """The best checkpoint if the Trainer noted one, else the last."""
    last = checkpoints[max(checkpoints)]
    state = _json(last / "trainer_state.json")
    noted = state.get("best_model_checkpoint") if isinstance(state, dict) else None
    best = path / re.split(r"[/\\]", noted)[-1] if isinstance(noted, str) else None  # the folder may have been moved
    has_best = best is not None and best in checkpoints.values()
    chosen = best if best and has_best else last
    which = "the best one, as noted in trainer_state.json" if has_best else "the last one"
    log(f"{path} has {len(checkpoints)} checkpoint(s) of a training; {chosen} is opened, {which}")
    return chosen


def _json(path: Path) -> Any:
    """The content of a file that only makes a message or a choice better; None if it cannot be read."""
    try:
        return read_json(path)
    except (UserError, OSError):
        return None


def _files(path: Path) -> Iterator[Path]:
    """Files of weights in a folder, or in its subfolder `checkpoints`."""
    for folder in (path, path / "checkpoints"):
        if folder.is_dir():
            yield from (file for file in folder.iterdir() if file.is_file() and file.suffix in SUFFIXES)


def _likely(files: list[Path]) -> Path:
    return next((file for word in ("best", "last") for file in files if word in file.name), files[0])
