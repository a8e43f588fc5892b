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

from vitrim.asking import UNFORESEEN, is_out_of_memory, reason
from vitrim.errors import CheckpointMismatch, NotEnoughMemory
from vitrim.runs.torch_files import read_torch_file
from vitrim.runs.training_checkpoints import TrainingCheckpoint, find_weights

CONFIG, WEIGHTS, MODELING, RUN = "config.json", "model.safetensors", "modeling.py", "run.json"
UNREADABLE = "unreadable.json"  # in a run folder: images that could not be decoded
FILE_SIZES = "file-sizes.safetensors"  # in a run folder: sizes of the image files when the run began
NO_WEIGHTS = {  # the first bytes of what often lies in place of a checkpoint
    b"version https://": "a pointer of Git LFS; get the file itself with `git lfs pull`",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
PROCESSOR = "preprocessor_config.json"
MAX_NESTING = 100  # levels of brackets in a JSON file
OF_SAFETENSORS: tuple[type[Exception], ...] = (SafetensorError, MemoryError, *UNFORESEEN)
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
        CheckpointMismatch: the file is not valid JSON, or is nested too deeply. OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:  # also text that is not UTF-8, and numbers of thousands of digits
        raise CheckpointMismatch(f"{path} is not valid JSON: {reason(problem)}.") from None
    except RecursionError:
        raise CheckpointMismatch(f"{path} is nested too deeply; expected at most {MAX_NESTING} levels.") from None
    check_depth(found, str(path))
    return found


def check_depth(value: Any, source: str) -> None:
    """Refuse data that is nested so deeply that functions which follow it would fail.

    Args:
        value: as JSON has it.
        source: file name for messages.

    Raises:
        CheckpointMismatch: there are more than `MAX_NESTING` levels.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = [item for items in inside if items for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise CheckpointMismatch(f"{source} is nested too deeply; expected at most {MAX_NESTING} levels.")


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
    return find_weights(_read_safetensors(path), str(path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, on the CPU.

    Raises:
        CheckpointMismatch: it is damaged. NotEnoughMemory: its tensors do not fit the memory.
    """
    try:
        return safetensors.torch.load_file(path)
    except OF_SAFETENSORS as problem:
        if is_out_of_memory(problem):
            raise NotEnoughMemory(f"There is not enough memory to read {path}: {reason(problem)}.") from problem
        raise CheckpointMismatch(f"{path} is not a readable checkpoint: {reason(problem)}.") from problem


def shards_of(index: Path) -> dict[str, str]:
    """The file of each tensor, as the index of a model in several files lists them.

    Raises:
        CheckpointMismatch: the index lists no files, or one that is not in its folder.
    """
    found = read_json(index)
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointMismatch(f"{index} lists no shards: it has no weight_map.")
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name or not (index.parent / name).is_file():
            raise CheckpointMismatch(f"{index} lists {name[:200]}, which is not in its folder.")
    return places


def unknown_files(folder: Path) -> list[str]:
    """The names in a folder, without the partial files of an interrupted write by vitrim."""
    partial = {f".{name}.partial" for name in OURS}
    return [path.name for path in folder.iterdir() if path.name not in partial]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
