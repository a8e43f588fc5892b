"""Files that appear whole or not at all, and weights that are read without executing anything."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vitrim.errors import CheckpointMismatch

CONFIG, WEIGHTS, MODELING, RUN = "config.json", "model.safetensors", "modeling.py", "run.json"
OURS = (CONFIG, WEIGHTS, MODELING, RUN)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` for a file or a folder.

    It is moved into place when the block ends well and removed when it does not.
    """
    working = path.with_name(f".{path.name}.partial")
    _remove(working)
    try:
        with _naming(path):
            yield working
            if working.is_file():
                working.chmod(0o666 & ~_umask())  # safetensors writes for the owner alone
            os.replace(working, path)
    except BaseException:
        _remove(working)
        raise


def _umask() -> int:
    """The process' mask of file permissions, which can be read only by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make the system's errors say which file; safetensors wraps them in an error of its own."""
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
    """Write a safetensors file, whole or not at all, from wherever the tensors are.

    Raises:
        OSError: as the system reports it.
    """
    with writing(path) as working:
        safetensors.torch.save_file(_apart(tensors), working, metadata=dict(about))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU and contiguous; what shares memory with another, which safetensors refuses, as a copy."""
    found: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        found[name] = value.clone() if address in taken else value
        taken.add(address)
    return found


def write_text(path: Path, text: str) -> None:
    with writing(path) as working:
        working.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise CheckpointMismatch(f"{path} is not valid JSON: {problem}.") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a state dict: safetensors, or a `.pth` with `weights_only=True`; wrappers of training scripts are undone."""
    if not path.is_file():
        raise CheckpointMismatch(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            found: Any = safetensors.torch.load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (LookupError, TypeError, AttributeError):  # letters that the reader of pickles takes for commands
        raise CheckpointMismatch(
            f"{path} is not a readable checkpoint: it is neither a pickle nor a zip file."
        ) from None
    except (SafetensorError, RuntimeError, EOFError, ValueError) as problem:
        raise CheckpointMismatch(f"{path} is not a readable checkpoint: {_first_line(problem)}") from None
    except pickle.UnpicklingError:  # what `weights_only` refuses
        raise CheckpointMismatch(
            f"{path} is no checkpoint of tensors alone, and vitrim executes no pickled code: save `model.state_dict()`."
        ) from None
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointMismatch(f"{path} holds no state dict of tensors; save `model.state_dict()`.")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def unknown_files(folder: Path) -> list[str]:
    """What lies in a folder besides what an interrupted write of ours left."""
    left = {f".{name}.partial" for name in OURS}
    return [path.name for path in folder.iterdir() if path.name not in left]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0][:200] if str(problem).strip() else type(problem).__name__
