"""Reads files of `torch.save`, without running or importing anything that they name.

Such a file is a pickle: it names classes and functions, and says which to call. torch reads it with
`weights_only=True`, which knows tensors and plain containers. Training scripts also store settings, paths, numbers of
numpy and so on. Each name that torch does not know gets a stand-in here: a class without code. So the weights beside
it can be read. A file that wants to *call* a name which is not in `PLAIN_DATA` is refused.
"""

import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vitrim.asking import DAMAGED_FILE, is_out_of_memory, reason
from vitrim.errors import CheckpointMismatch, NotEnoughMemory

# Names, or beginnings of names, that training scripts call to store plain data. None of them is called here either.
PLAIN_DATA = (
    *("argparse.", "pathlib.", "collections.", "datetime.", "decimal.", "fractions.", "uuid.", "enum.", "numpy."),
    *("omegaconf.", "yacs.", "easydict.", "addict.", "ml_collections.", "mmengine.", "mmcv."),
    *("lightning.", "lightning_fabric.", "lightning_utilities.", "pytorch_lightning.", "transformers.trainer_utils."),
    *("functools.partial", "copyreg._reconstructor", "torch.torch_version.TorchVersion"),
    *(f"builtins.{name}" for name in ("object", "list", "tuple", "dict", "set", "frozenset", "slice", "range")),
    *(f"builtins.{name}" for name in ("str", "bytes", "int", "float", "bool")),
)
CLASS = "vitrim_stands_for"  # attribute of a stand-in: the name of its class in the file
CLEAN = "In the program that wrote it, save only the weights: `torch.save(model.state_dict(), 'weights.pth')`."
MAX_NAMES = 5  # in a message


class _StandIn(type):
    """The type of classes that stand for a name of the file. To call one is what pickle does for a function."""

    def __call__(cls, *arguments: Any) -> Any:
        name = vars(cls)[CLASS]
        if not name.startswith(PLAIN_DATA):
            raise pickle.UnpicklingError(f"calls {name}")
        if name == "collections.deque":
            return []  # torch appends to lists only
        return _empty(name) if name == "collections.defaultdict" else _Ignored(name)


class _Ignored:
    """What a call would have returned. Its state is not kept."""

    def __init__(self, name: str) -> None:
        setattr(self, CLASS, name)

    def __setstate__(self, state: Any) -> None:
        """Take any state that the file has for the object, and drop it."""


def _empty(name: str) -> Any:
    """An object for an instance of a class. torch adds entries or attributes to a Counter, whatever their type."""
    found: Any = Counter()
    setattr(found, CLASS, name)
    return found


def _stand_in(name: str) -> Callable[..., Any]:
    def new(cls: type, *arguments: Any) -> Any:
        return _empty(name)

    return _StandIn("StandIn", (), {CLASS: name, "__new__": new})


def class_in_file(value: Any) -> str | None:
    """The name of the class that a stand-in stands for, such as `argparse.Namespace`; None for any other value."""
    return getattr(value, CLASS, None) if isinstance(value, Counter | _Ignored) else None


def attributes_in_file(value: Any) -> dict[str, Any]:
    """The attributes of an object that a stand-in stands for, and its entries if it was a kind of dictionary."""
    own = {name: entry for name, entry in vars(value).items() if name != CLASS}
    return {**own, **(value if isinstance(value, Counter) else {})}


def read_torch_file(path: Path) -> Any:
    """Read a file of `torch.save`, on the CPU. Nothing that the file names is imported or run.

    Args:
        path: an existing file.

    Returns:
        What was saved. Objects of other classes than torch's are stand-ins (`class_in_file`).

    Raises:
        CheckpointMismatch: the file is damaged or of another kind, or it calls a name that is not in `PLAIN_DATA`.
        NotEnoughMemory: its tensors do not fit the memory.
    """
    _refuse_other_archives(path)
    names, root = _names_in(path)
    allowed: list[Any] = [(_stand_in(name), name) for name in names]
    try:
        with torch.serialization.safe_globals([*allowed, Counter, _Ignored]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            with path.open("rb") as file:  # of a path, torch would judge by the ending
                found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, LookupError, TypeError, AttributeError) as problem:
        # `weights_only` or a stand-in refuses something, or it is a text file, whose letters are read as commands
        if _unknown(names) or _is_pickle(path):
            raise _refusal(path, names, root, str(problem)) from None
        raise CheckpointMismatch(
            f"{path} is not a readable checkpoint: it is neither a pickle nor a zip file."
        ) from None
    except DAMAGED_FILE as problem:
        if is_out_of_memory(problem):
            raise NotEnoughMemory(f"There is not enough memory to read {path}: {reason(problem)}.") from problem
        if _unknown(names):
            raise _refusal(path, names, root, str(problem)) from None
        raise CheckpointMismatch(f"{path} is not a readable checkpoint: {reason(problem)}.") from None
    if root := class_in_file(found):
        raise _refusal(path, names, root, "")
    return found


def _refusal(path: Path, names: list[str], root: str | None, problem: str) -> CheckpointMismatch:
    """The error that names what stood in the way. `root` is the class of the saved object, if it is an object."""
    called = re.search(r"calls ([\w.]+)", problem)
    others = [name for name in names if name in _unknown(names)]
    more = f" and {len(others) - MAX_NAMES} more" if len(others) > MAX_NAMES else ""
    if root:
        why = f"it is a whole pickled {root}"
    elif others and any(name.startswith("torch.nn.modules.") for name in names):
        why = f"it has a whole pickled module, such as {others[0]}{f', and calls {called[1]}' if called else ''}"
    elif called:
        why = f"it calls {called[1]}"
    elif others:
        why = f"it names {', '.join(others[:MAX_NAMES])}{more}"
    elif "Failed to load pickle data" in problem or not problem:
        return CheckpointMismatch(f"{path} is not a readable checkpoint: it is damaged.")
    elif "Unsupported operand" in problem:
        why = "its pickle protocol is not 2, which `torch.save` uses by default"
    else:
        why = f"torch says: {reason(Exception(problem.rpartition('error: ')[2]))}"
    return CheckpointMismatch(
        f"{path} has more than tensors, and vitrim does not run pickled code: {why.rstrip('.')}. {CLEAN}"
    )


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like a pickle of `torch.save`, in the old format or in a zip file."""
    with path.open("rb") as file:
        return file.read(1) == b"\x80" or zipfile.is_zipfile(path)


def _unknown(names: list[str]) -> set[str]:
    """The names that are neither torch's nor those of plain data."""
    return {name for name in names if not name.startswith((*PLAIN_DATA, "torch.", "_codecs."))}


def _refuse_other_archives(path: Path) -> None:
    """Raise CheckpointMismatch for a zip file that `torch.save` did not write."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.partition("/")[2] for name in archive.namelist()}
    except DAMAGED_FILE as problem:
        raise CheckpointMismatch(f"{path} is not a readable checkpoint: {reason(problem)}.") from None
    if "constants.pkl" in inside:
        raise CheckpointMismatch(
            f"{path} is a TorchScript program, not a file of weights. Write its weights with "
            f"`torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pth')`."
        )
    if "data.pkl" not in inside:
        raise CheckpointMismatch(
            f"{path} is not a readable checkpoint: it is a zip file, but `torch.save` did not write it. {CLEAN}"
        )


def _names_in(path: Path) -> tuple[list[str], str | None]:
    """Full names of the classes and functions in the file, and the class of the saved object if it is no container.

    The file is taken apart, not unpickled. A damaged file has the names before the damage.
    """
    names: dict[str, None] = {}
    root = None
    for file in _pickles(path):
        with file:
            for _ in range(4):  # the older format has four pickles: magic number, version, sizes of C types, the object
                try:
                    for number, (opcode, argument, _position) in enumerate(pickletools.genops(file)):
                        name = _full_name(str(argument)) if opcode.name == "GLOBAL" else None
                        root = name if number == 1 else root  # the first opcode is the version
                        if name:
                            names[name] = None
                except DAMAGED_FILE:
                    break  # the end, or no pickle: `torch.load` says what is wrong
    return list(names), root if root in _unknown(list(names)) else None


def _full_name(argument: str) -> str:
    """`module.name` of a GLOBAL opcode. torch translates the names of Python 2."""
    module, _, name = argument.partition(" ")
    return ".".join(NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name)))


def _pickles(path: Path) -> Iterator[Any]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.partition("/")[2] == "data.pkl":
                    yield archive.open(name)
    else:
        yield path.open("rb")
