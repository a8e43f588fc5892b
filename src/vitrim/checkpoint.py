"""Model folders and run folders: what is written to disk, how it is read back, and how a run goes on where it stopped.

A model folder holds `config.json` and `model.safetensors`: architecture, arguments and plan rebuild the model, and the
weights are loaded strictly; a cut model also gets a `modeling.py` that rebuilds it without vitrim. Nothing here writes
or executes a pickle. Files appear whole or not at all.
"""

import hashlib
import json
import os
import pickle
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vitrim.adapters import adapter_of_library, origin_of, record_origin
from vitrim.cost import count_cost
from vitrim.errors import CheckpointMismatch, FolderInUse, SettingError, UserError
from vitrim.plan import PruningPlan
from vitrim.processes import is_main_process, wait_for_all
from vitrim.standalone import modeling_source, rebuild_facts
from vitrim.structure import Origin
from vitrim.surgery import prune

CONFIG, WEIGHTS, MODELING = "config.json", "model.safetensors", "modeling.py"
LIBRARIES = ("timm", "transformers", "torchvision")
STANDALONE = ("timm", "torchvision")  # libraries with which `modeling.py` builds a model without vitrim
FORMAT = 2
FILE_METADATA = {"format": "pt"}  # transformers asks for it
Result = TypeVar("Result")


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    names = ("vitrim", "torch", "torchvision", "timm", "accelerate", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def save(model: nn.Module, folder: str | Path, *, classes: tuple[str, ...] = (), provenance: Any = None) -> Path:
    """Write `model` to `folder` so that `load` gives it back with the same logits, bit for bit.

    timm reads the folder too (`timm.create_model("local-dir:FOLDER")` after `import vitrim`), and transformers.

    Args:
        folder: created if need be; a folder that holds something other than a vitrim model is refused.
        classes: names of the outputs in order; by default those that the model was loaded with.
        provenance: anything JSON can hold about where the model came from.

    Raises:
        FolderInUse: the folder holds something else. UnsupportedModel: the model does not say how it was built.
    """
    folder = Path(folder)
    origin = origin_of(model)
    origin = replace(origin, classes=tuple(classes) or origin.classes)
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(model, origin, provenance)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    with writing(folder / CONFIG) as path:  # moved into place last: its presence says that the folder is whole
        write_tensors(folder / WEIGHTS, tensors, FILE_METADATA)
        if origin.plan and origin.library in STANDALONE:
            config["rebuild"] = rebuild_facts(model, origin)
            write_text(folder / MODELING, modeling_source(model, origin))
        else:
            (folder / MODELING).unlink(missing_ok=True)  # of a model that was here before
        path.write_text(_to_json(config), encoding="utf-8")
    record_origin(model, origin)
    return folder


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """Read a model folder that `save` wrote, or the model of a run folder: a plain `nn.Module` in eval mode.

    Raises:
        CheckpointMismatch: the folder is not whole, or weights and architecture do not fit; says which.
    """
    folder = Path(folder)
    if not is_model_folder(folder) and is_model_folder(folder / "model"):
        folder = folder / "model"
    config = _read_config(folder)
    if isinstance(config, dict) and "model_type" in config and "model_args" not in (config.get("vitrim") or {}):
        return adapter_of_library("transformers").create(str(folder)).to(device).eval()  # by `save_pretrained`
    try:
        origin, plan = _origin_in(config)
    except (KeyError, TypeError) as problem:
        raise CheckpointMismatch(
            f"{folder / CONFIG} was not written by vitrim: {problem} is missing or misplaced."
        ) from None
    model = adapter_of_library(origin.library).build(origin)
    record_origin(model, origin)
    if plan is not None:
        model = prune(model, plan)
    load_weights(model, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return model.to(device).eval()


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
    keys = _config_keys(path)
    if "vitrim" not in keys and "model_type" in keys:
        return adapter_of_library("transformers").create(str(path)).float().eval()
    if "vitrim" not in keys and {"architecture", "pretrained_cfg"} <= keys:
        return adapter_of_library("timm").create(f"local-dir:{path}", pretrained=True).float().eval()
    return load(path).float()


def is_model_folder(path: str | Path) -> bool:
    return (Path(path) / CONFIG).is_file()


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly.

    Raises:
        CheckpointMismatch: names the keys and shapes that differ.
    """
    own = model.state_dict()
    missing = [f"{name} {tuple(own[name].shape)} is missing" for name in own if name not in tensors]
    extra = [f"{name} {tuple(tensors[name].shape)} is not in the model" for name in tensors if name not in own]
    differ = [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = differ + missing + extra
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise CheckpointMismatch(f"{source} does not fit the architecture: {'; '.join(problems[:6])}{more}.")
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        model.to(floats.pop())
    model.load_state_dict(dict(tensors), strict=True)


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


def file_bytes(model: nn.Module) -> int:
    """Size of the model's `model.safetensors`."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return len(safetensors.torch.save(tensors, metadata=FILE_METADATA))


def fingerprint(model: nn.Module) -> str:
    """A short hash of a model's weights, names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


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
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: as the system reports it.
    """
    with writing(path) as working:
        safetensors.torch.save_file(dict(tensors), working, metadata=dict(about))


def write_text(path: Path, text: str) -> None:
    with writing(path) as working:
        working.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise CheckpointMismatch(f"{path} is not valid JSON: {problem}.") from None


class RunFolder:
    """The folder of one run: each stage leaves one file, and a rerun skips what exists.

    `run.json` holds what the run was made from; the same command goes on, another one is refused.
    """

    IDENTITY = "run.json"

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        """Open or create a run folder.

        Raises:
            FolderInUse: the folder holds something else, or a run made from something else; lists the differences.
        """
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FolderInUse(f"{self.path} is a file; expected a folder for the run.")
        file = self.path / self.IDENTITY
        wanted = json.loads(json.dumps(identity))
        if file.is_file() and not self._is_fresh():
            differences = list(_differences(read_json(file), wanted))
            if differences:
                raise FolderInUse(
                    f"{self.path} holds a run made from something else: {'; '.join(differences[:8])}. Choose another "
                    "folder with -o, or repeat the same command to go on with that run."
                )
        elif not file.is_file() and self.path.exists() and _foreign(self.path):
            raise FolderInUse(f"{self.path} is not empty and holds no vitrim run; choose another folder with -o.")
        wait_for_all()
        if is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(wanted, indent=2) + "\n")
        wait_for_all()

    def _is_fresh(self) -> bool:
        """Whether the folder holds nothing yet but what it is to be made from: another command may have it."""
        return {path.name for path in self.path.iterdir()} <= {self.IDENTITY, "recipe.toml"}

    def once(
        self,
        name: str,
        make: Callable[[], Result],
        write: Callable[[Result, Path], Any],
        read: Callable[[Path], Result],
        *,
        together: bool = False,
    ) -> Result:
        """The content of file (or folder) `name`: read if it is there, else made, written whole, and read back.

        The first process makes it alone, or, with `together`, all do because making it needs them; every process
        reads the same.
        """
        path = self.path / name
        wait_for_all()
        exists = path.exists()
        wait_for_all()  # nobody writes before everybody has looked
        if not exists and (together or is_main_process()):
            result = make()
            if is_main_process():
                with writing(path) as working:
                    write(result, working)
        wait_for_all()
        return read(path)

    def once_json(self, name: str, make: Callable[[], Any], *, together: bool = False) -> Any:
        def write(value: Any, path: Path) -> None:
            path.write_text(json.dumps(value) + "\n", encoding="utf-8")

        return self.once(name, make, write, read_json, together=together)

    def forget_checkpoints(self) -> None:
        """Remove the checkpoints of finished trainings; they are four times as large as the model."""
        if is_main_process():
            for file in self.path.glob("*.checkpoint.safetensors"):
                file.unlink()

    def once_plan(self, name: str, make: Callable[[], PruningPlan]) -> PruningPlan:
        def read(path: Path) -> PruningPlan:
            return PruningPlan.from_json(path.read_text(encoding="utf-8"))

        return self.once(name, make, lambda plan, path: path.write_text(plan.to_json()), read)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _config(model: nn.Module, origin: Origin, provenance: Any) -> dict[str, Any]:
    cost = count_cost(model)
    about = {
        "format": FORMAT,
        "library": origin.library,
        "architecture": origin.architecture,
        "model_args": origin.model_args,
        "preprocessing": origin.preprocessing,
        "classes": list(origin.classes),
        "plan": origin.plan.to_dict() if origin.plan else None,
        "params": cost.params,
        "macs": cost.macs,
        "versions": versions(),
        "provenance": provenance,
    }
    return {**adapter_of_library(origin.library).config_root(model, origin), "vitrim": about}


def _to_json(config: Mapping[str, Any]) -> str:
    """Indented, but lists of numbers in one line: a plan has thousands of them."""
    text = json.dumps(config, indent=2)
    return re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _origin_in(config: Mapping[str, Any]) -> tuple[Origin, PruningPlan | None]:
    """How to build the dense model, and the plan that then cuts it; KeyError or TypeError where something is missing.

    Format 1 kept architecture and arguments where timm looks for them.
    """
    about = config["vitrim"]
    first = about["format"] == 1
    origin = Origin(
        library=about["library"],
        architecture=config["architecture"] if first else about["architecture"],
        model_args={**config["model_args"], "num_classes": config["num_classes"]} if first else about["model_args"],
        preprocessing=about["preprocessing"],
        classes=tuple((config.get("label_names") if first else about["classes"]) or ()),
    )
    return origin, PruningPlan.from_dict(about["plan"]) if about["plan"] else None


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise CheckpointMismatch(f"There is no folder {folder}.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointMismatch(f"{folder} is not a model folder: it has no {name}.")
    return read_json(folder / CONFIG)


def _refuse_foreign(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder} is a file; expected a folder for the model.")
    if folder.is_dir() and "vitrim" not in _config_keys(folder) and _foreign(folder):
        raise FolderInUse(f"{folder} is not empty and holds no vitrim model; choose another folder.")


def _foreign(folder: Path) -> list[str]:
    """What lies in a folder besides what an interrupted write of ours left."""
    left = {f".{name}.partial" for name in (CONFIG, WEIGHTS, MODELING, RunFolder.IDENTITY)}
    return [path.name for path in folder.iterdir() if path.name not in left]


def _config_keys(folder: Path) -> set[str]:
    if not is_model_folder(folder):
        return set()
    try:
        return set(read_json(folder / CONFIG))
    except UserError:
        return set()


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {json.dumps(old)}, now {json.dumps(new)}"


def _first_line(problem: Exception) -> str:
    return str(problem).strip().splitlines()[0][:200] if str(problem).strip() else type(problem).__name__
