"""Reads and writes files: JSON, text and tensors.

A file is written completely or not at all. Reading a checkpoint runs no pickled code.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vitrim.errors import CheckpointMismatch
from vitrim.runs.torch_files import first_line, read_torch_file
from vitrim.runs.training_checkpoints import TrainingCheckpoint, find_weights

CONFIG, WEIGHTS, MODELING, RUN = "config.json", "model.safetensors", "modeling.py", "run.json"
UNREADABLE = "unreadable.json"  # in a run folder: images that could not be decoded
FILE_SIZES = "file-sizes.safetensors"  # in a run folder: sizes of the image files when the run began
METRICS = "metrics.jsonl"  # in a run folder: one row for each epoch, and for each event
NO_WEIGHTS = {  # the first bytes of what often lies in place of a checkpoint
    b"version https://": "a pointer of Git LFS; get the file itself with `git lfs pull`",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
PROCESSOR = "preprocessor_config.json"
OURS = (CONFIG, WEIGHTS, MODELING, PROCESSOR, RUN)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file or a folder completely or not at all.

    Yields:
        A temporary path beside `path`. After the block it is moved to `path`. If the block raises, it is removed.

    Raises:
        OSError: with the name of the file.
    """
    working = path.with_name(f".{path.name}.partial")
    _remove(working)
    try:
        with _naming(path):
            yield working
            if working.is_file():
                working.chmod(0o666 & ~_umask())  # safetensors makes files that only the owner can read
            os.replace(working, path)
    except BaseException:
        _remove(working)
        raise


def _umask() -> int:
    """The file permission mask of the process. It can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Add the file name to system errors. safetensors wraps them in its own error, so they are unwrapped here."""
    try:
        yield
    except SafetensorError as problem:
        found = re.search(r"os error (\d+)", str(problem))
        if not found:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from problem
    except OSError as problem:
        problem.filename = problem.filename or str(path)
        raise


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a safetensors file completely or not at all.

    Args:
        path: of the file.
        tensors: on any device.
        about: metadata of the file.

    Raises:
        OSError: with the name of the file.
    """
    with writing(path) as working:
        safetensors.torch.save_file(_apart(tensors), working, metadata=dict(about))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make tensors contiguous on the CPU. Tensors with common memory are copied, because safetensors refuses them."""
    found: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        found[name] = value.clone() if address in addresses else value
        addresses.add(address)
    return found


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all.

    Raises:
        OSError: with the name of the file.
    """
    with writing(path) as working:
        working.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointMismatch: the file is not valid JSON. OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise CheckpointMismatch(f"{path} is not valid JSON: {problem}.") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a checkpoint, on the CPU.

    The dictionary around it that many training scripts write, and the prefix `module.`, are removed.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`. The latter is read with `weights_only=True`.

    Raises:
        CheckpointMismatch: there is no such file, it is damaged, or it has no state dict.
    """
    tensors = read_checkpoint(path).tensors
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def read_checkpoint(path: Path) -> TrainingCheckpoint:
    """Read the weights of a checkpoint and what it says about them, on the CPU. No pickled code is run.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`. The latter is read with `weights_only=True`.

    Raises:
        CheckpointMismatch: there is no such file, it is damaged, or it has no state dict.
    """
    if not path.is_file():
        raise CheckpointMismatch(f"There is no file {path}.")
    with path.open("rb") as file:
        start = file.read(16)
    for beginning, what in NO_WEIGHTS.items():
        if start.lstrip().lower().startswith(beginning):
            raise CheckpointMismatch(f"{path} is not a readable checkpoint: it is {what}.")
    is_torch = start.startswith((b"PK", b"\x80")) and start[8:9] != b"{"
    if is_torch or (path.suffix != ".safetensors" and start[8:9] != b"{"):
        return find_weights(read_torch_file(path), str(path))
    try:
        return find_weights(safetensors.torch.load_file(path), str(path))
    except (SafetensorError, LookupError, TypeError, RuntimeError, EOFError) as problem:
        raise CheckpointMismatch(f"{path} is not a readable checkpoint: {first_line(problem)}") from None


def unknown_files(folder: Path) -> list[str]:
    """The names in a folder, without the partial files of an interrupted write by vitrim."""
    partial = {f".{name}.partial" for name in OURS}
    return [path.name for path in folder.iterdir() if path.name not in partial]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
