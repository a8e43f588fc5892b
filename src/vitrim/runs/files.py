"""Reads and writes files: JSON, text and tensors.

A file is written completely or not at all. Reading a checkpoint runs no pickled code. torch is imported only where
tensors are read or written: `vitrim watch` needs none.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from safetensors import SafetensorError

from vitrim.asking import UNFORESEEN, is_out_of_memory, reason
from vitrim.errors import CheckpointMismatch, NotEnoughMemory
from vitrim.runs.text_files import MAX_JSON_BYTES, parse_json, read_text

if TYPE_CHECKING:
    from torch import Tensor

    from vitrim.runs.training_checkpoints import TrainingCheckpoint

CONFIG, WEIGHTS, MODELING, RUN = "config.json", "model.safetensors", "modeling.py", "run.json"
STAGES = "stages"  # subfolder of a run for what only continues it; docs/run-folder.md lists all files
SNAPSHOTS = "snapshots"  # subfolder of a run of `train` for the models of its first cycles
UNREADABLE = "unreadable.json"  # in a run folder: images that could not be decoded
FILE_SIZES = "file-sizes.safetensors"  # in a run folder: sizes of the image files when the run began
METRICS = "metrics.jsonl"  # in a run folder: one row for each epoch, and for each event
TRACKING, TENSORBOARD = "tracking.json", "tensorboard"  # in a run folder: what was sent to trackers; files for one
FORECAST = "forecast.json"  # in a run folder: its steps, and how long they were to take
PAGE = "report.html"  # in a run folder: the report for people
NO_WEIGHTS = {  # the first bytes of what often lies in place of a checkpoint
    b"version https://": "a pointer of Git LFS; get the file itself with `git lfs pull`",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
}
PROCESSOR = "preprocessor_config.json"
CHECKPOINT = "{stage}.checkpoint.safetensors"  # in a run folder: the state of a training
DIGESTS = "digests.json"  # in a run folder and in a model folder, see `vitrim.runs.digests`
LOCK, HOLDER = ".vitrim.lock", ".vitrim.holder.json"  # in a folder that a command works in, see `runs.locks`
# `.NAME.partial` is of earlier versions; the process and a random number make the name of each write its own
_PARTIAL = re.compile(r"\.(?P<name>.+?)(\.(?P<pid>[0-9]+)-[0-9a-f]{8})?\.partial", re.DOTALL)
_MAX_NAME = 255  # bytes of a file name
_written_now: set[Path] = set()  # partial files of this process
MAX_NESTING = 100  # levels of brackets in a JSON file
OF_SAFETENSORS: tuple[type[Exception], ...] = (SafetensorError, MemoryError, *UNFORESEEN)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Write a file or a folder completely or not at all.

    Yields:
        A temporary path beside `path`. After the block it is moved to `path`. If the block raises, it is removed.

    Raises:
        OSError: with the name of the file.
    """
    _remove(hidden_beside(path, ".partial"))  # of an earlier version
    working = partial_path(path)
    _written_now.add(working)
    try:
        with _naming(path):
            yield working
            if working.is_file():
                working.chmod(0o666 & ~_umask())  # safetensors makes files that only the owner can read
            _move(working, path)
    except BaseException:
        _remove(working)
        raise
    finally:
        _written_now.discard(working)


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A context with a temporary folder beside `path`, which is removed after it."""
    folder = partial_path(path)
    _written_now.add(folder)
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(folder)
        _written_now.discard(folder)


def partial_path(path: Path) -> Path:
    """A path beside `path` for what is not complete yet. No other process or thread uses it."""
    return hidden_beside(path, f".{os.getpid()}-{secrets.token_hex(4)}.partial")


def hidden_beside(path: Path, ending: str) -> Path:
    """The path beside `path` with a dot before its name and `ending` after it. A long name is cut."""
    name = os.fsencode(f".{path.name}")[: _MAX_NAME - len(ending)]
    return path.with_name(os.fsdecode(name) + ending)


def delete_dead_partials(folder: Path, name: str = "") -> None:
    """Delete the partial files that processes left which have ended. Call it with the lock of the folder.

    Args:
        folder: where they are; it need not exist.
        name: only those of the file with this name.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        found = _PARTIAL.fullmatch(path.name)
        if found and (not name or found["name"] == name) and path not in _written_now and not _is_alive(found["pid"]):
            _remove(path)


def is_partial(name: str) -> bool:
    """Whether a file name is that of a partial file, or of the lock of a folder."""
    return name in (LOCK, HOLDER) or _PARTIAL.fullmatch(name) is not None


def _is_alive(pid: str | None) -> bool:
    """Whether another process on this machine has this number."""
    return pid is not None and int(pid) != os.getpid() and psutil.pid_exists(int(pid))


def _move(working: Path, path: Path) -> None:
    """Move a finished file or folder into place. Other files of a folder that exists stay, such as exported forms."""
    if not working.is_dir() or not path.is_dir():
        os.replace(working, path)
        return
    for file in sorted(working.iterdir(), key=lambda file: file.name == CONFIG):  # last: it makes a folder complete
        os.replace(file, path / file.name)
    working.rmdir()


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


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", about: Mapping[str, str]) -> None:
    """Write a safetensors file completely or not at all.

    Args:
        path: of the file.
        tensors: on any device.
        about: metadata of the file.

    Raises:
        OSError: with the name of the file.
    """
    with writing(path) as working:
        save_tensors(working, tensors, about)


def save_tensors(working: Path, tensors: "Mapping[str, Tensor]", about: Mapping[str, str]) -> None:
    """As `write_tensors`, inside a block of `writing`."""
    import safetensors.torch

    safetensors.torch.save_file(_apart(tensors), working, metadata=dict(about))


def _apart(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
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
    found = parse_json(read_text(path, MAX_JSON_BYTES, CheckpointMismatch), str(path), CheckpointMismatch)
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


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a state dict from a checkpoint, on the CPU.

    The dictionary around it that many training scripts write, and the prefix `module.`, are removed.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`. The latter is read with `weights_only=True`.

    Raises:
        CheckpointMismatch: there is no such file, it is damaged, or it has no state dict.
    """
    tensors = read_checkpoint(path).tensors
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def read_checkpoint(path: Path) -> "TrainingCheckpoint":
    """Read the weights of a checkpoint and what it says about them, on the CPU. No pickled code is run.

    Args:
        path: a `.safetensors` file, or a file of `torch.save`. The latter is read with `weights_only=True`.

    Raises:
        CheckpointMismatch: there is no such file, it is damaged, or it has no state dict.
    """
    from vitrim.runs.torch_files import read_torch_file
    from vitrim.runs.training_checkpoints import find_weights

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


def _read_safetensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file, on the CPU.

    Raises:
        CheckpointMismatch: it is damaged. NotEnoughMemory: its tensors do not fit the memory.
    """
    import safetensors.torch

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
    """The names in a folder, without digests, the lock and the partial files of an interrupted write by vitrim."""
    names = (path.name for path in folder.iterdir())
    return [name for name in names if not is_partial(name) and not name.endswith(DIGESTS)]


def find_result(folder: Path, name: str) -> Path:
    """The path of a result. Runs of version 0.1.0 have it in the folder of the run itself.

    Args:
        folder: of the run.
        name: path below the folder, from `in_stages` if the result is a stage's.
    """
    old, path = folder / Path(name).name, folder / name
    return old if old.exists() and not path.exists() else path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
