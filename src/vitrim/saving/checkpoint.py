"""Saves a model to a folder and loads it again.

A model folder has `config.json` and `model.safetensors`. To load it, the dense model is built from the architecture and
its arguments, pruned by the plan, changed as the folder notes, and the weights are loaded strictly. For a pruned model
there is also `modeling.py`, which builds it without vitrim (see `vitrim.saving.standalone`). For a model of
transformers there is `preprocessor_config.json`, if an image processor of transformers can prepare its images. No
pickle is written or run. `vitrim.saving.opening` opens models of other libraries.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from vitrim.asking import asking
from vitrim.costs.counting import count_cost
from vitrim.errors import CheckpointMismatch, FolderInUse, UserError
from vitrim.models import adapter_of_library, describe, origin_of, record_origin
from vitrim.models.changes import Changes
from vitrim.models.origin import Origin
from vitrim.models.restoring import restore
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.runs.damage import check_model_folder
from vitrim.runs.digests import MODEL, Digests, Version, sha256_of
from vitrim.runs.environment import versions
from vitrim.runs.files import (
    CONFIG,
    DIGESTS,
    MODELING,
    PROCESSOR,
    WEIGHTS,
    read_json,
    read_tensors,
    save_tensors,
    unknown_files,
    writing,
)
from vitrim.runs.locks import lock_folder
from vitrim.runs.progress import log
from vitrim.saving.finite import check_finite
from vitrim.saving.standalone import modeling_source, rebuild_facts
from vitrim.saving.stored_config import check_config
from vitrim.saving.verification import find_changes, rebuild
from vitrim.structure import ViTStructure

STANDALONE = ("timm", "torchvision")  # libraries whose models get a `modeling.py`
FORMAT = 2
FILE_METADATA = {"format": "pt"}  # transformers requires it


def save(model: nn.Module, folder: str | Path, *, classes: tuple[str, ...] = (), provenance: Any = None) -> Path:
    """Write a model to a folder. `load` returns a model with the same logits, bit for bit.

    After `import vitrim`, timm also loads the folder (`timm.create_model("local-dir:FOLDER")`), and so does
    transformers. Before anything is written, the model is built again from what the folder will hold, and compared with
    this one. What was changed after the model was created is noted, if it is plain data.

    Args:
        model: a model of a supported library, pruned or not; it is not changed.
        folder: created if it does not exist. A vitrim model in it is replaced.
        classes: names of the outputs, in order. By default those that the model was loaded with.
        provenance: where the model comes from, as plain data for JSON.

    Returns:
        The folder.

    Raises:
        FolderInUse: the folder has files that are not of a vitrim model, or another command writes there.
        UnsupportedModel: the arguments that the model was built with are not known.
        SaveMismatch: the model was changed in a way that cannot be noted; the message names what would be lost.
    """
    folder, model = Path(folder), unwrapped(model)
    origin = origin_of(model)
    origin = replace(origin, classes=tuple(classes) or origin.classes)
    _refuse_unknown_files(folder)
    structure = describe(model)
    changes, origin = find_changes(model, origin, structure)
    config = _config(model, origin, structure, changes, provenance)
    texts: dict[str, str] = {}
    if origin.plan and origin.library in STANDALONE:
        config["rebuild"] = rebuild_facts(model, origin, changes)
        texts[MODELING] = modeling_source(model, origin, changes)
    if processor := adapter_of_library(origin.library).processor(origin):
        texts[PROCESSOR] = json.dumps(processor, indent=2) + "\n"
    with lock_folder(folder):
        _refuse_unknown_files(folder)
        _write_files(folder, model, {CONFIG: _to_json(config), **texts})
    record_origin(model, origin)
    return folder


def _write_files(folder: Path, model: nn.Module, texts: Mapping[str, str]) -> None:
    """Write the files of a model folder, and note their digests before the first one is moved into place.

    Args:
        texts: the text files by name, `config.json` first: it is moved last, because a folder with it is complete.
    """
    noted = Digests(folder)
    if not noted.is_readable():
        noted.clear()  # all that it was about is replaced
    with ExitStack() as stack:
        working = {name: stack.enter_context(writing(folder / name)) for name in (*texts, WEIGHTS)}
        for name, text in texts.items():
            working[name].write_text(text, encoding="utf-8")
        save_tensors(working[WEIGHTS], model.state_dict(), FILE_METADATA)
        digests = {name: sha256_of(path) for name, path in working.items()}
        noted.note(MODEL, Version(sha256=digests))
    noted.landed(MODEL)
    for name in {MODELING, PROCESSOR} - texts.keys():
        (folder / name).unlink(missing_ok=True)  # of an earlier model in this folder


def load(folder: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """Load the model of a folder that `save` wrote, or of a run folder.

    Args:
        folder: a model folder, or a run folder with a subfolder `model`.
        device: where the model is moved.

    Returns:
        A model of its own library, in eval mode.

    Raises:
        CheckpointMismatch: a file is missing or damaged, or the weights do not fit the architecture or are not finite.
    """
    folder = Path(folder)
    if not is_model_folder(folder) and is_model_folder(folder / "model"):
        folder = folder / "model"
    config = _read_config(folder)
    check_config(config, str(folder / CONFIG))
    if "model_type" in config and "model_args" not in (config.get("vitrim") or {}):
        model = adapter_of_library("transformers").create(str(folder))  # written by `save_pretrained`
        return check_finite(model, str(folder)).to(device).eval()
    try:
        origin, plan = _origin_in(config)
    except (KeyError, TypeError) as problem:
        raise CheckpointMismatch(
            f"{folder / CONFIG} was not written by vitrim: {problem} is missing or has the wrong type."
        ) from None
    _say_if_processor_differs(folder, origin)
    model = rebuild(origin, plan)
    try:
        restore(model, config["vitrim"].get("changes") or {})
    except (ValueError, AttributeError, KeyError, TypeError, RuntimeError, ImportError) as problem:
        raise CheckpointMismatch(
            f"{folder / CONFIG} notes changes that cannot be made on the model: {problem}. It is damaged, or another "
            "release of the library made it."
        ) from problem
    load_weights(model, read_tensors(folder / WEIGHTS), str(folder / WEIGHTS))
    return check_finite(model, str(folder)).to(device).eval()


def _say_if_processor_differs(folder: Path, origin: Origin) -> None:
    """Log that `preprocessor_config.json` is not what `save` wrote, because vitrim reads `config.json` alone."""
    expected = adapter_of_library(origin.library).processor(origin)
    if expected and (folder / PROCESSOR).is_file() and read_json(folder / PROCESSOR) != expected:
        log(
            f"{folder / PROCESSOR} was changed, but vitrim prepares images as {CONFIG} says (vitrim.preprocessing). "
            f"To change this, edit {CONFIG} and delete {DIGESTS}."
        )


def is_model_folder(path: str | Path) -> bool:
    """Whether a folder has a `config.json`."""
    return (Path(path) / CONFIG).is_file()


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict strictly. If its floats have one dtype, the model gets this dtype, else each tensor its own.

    Args:
        model: changed in place.
        tensors: parameters and buffers by name.
        source: file name for the error.

    Raises:
        CheckpointMismatch: names or shapes differ; the message lists them. The model is not changed then.
    """
    with asking("torch", f"load {source}", error=CheckpointMismatch):
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
    refuse_other_numbers(model, tensors, source)
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    with asking("torch", f"load the weights of {source}", error=CheckpointMismatch):
        if len(floats) == 1:
            model.to(floats.pop())
        model.load_state_dict(dict(tensors), strict=True, assign=len(floats) > 1)


def refuse_other_numbers(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointMismatch for quantised or sparse weights: without their scales, they are other numbers."""
    for name, own in model.state_dict().items():
        tensor = tensors[name]
        is_plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_complex()
        if own.is_floating_point() and not (is_plain and tensor.is_floating_point() and tensor.itemsize > 1):
            raise CheckpointMismatch(
                f"{name} of {source} is {tensor.dtype}, {tensor.layout}; expected float32, float16 or bfloat16. "
                "Convert the weights to float32 where they were quantised."
            )


def file_bytes(model: nn.Module) -> int:
    """The size in bytes that `model.safetensors` of this model has."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return len(safetensors.torch.save(tensors, metadata=FILE_METADATA))


def fingerprint(model: nn.Module) -> str:
    """A hash of the names, shapes, dtypes and values of a model's weights: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _config(
    model: nn.Module, origin: Origin, structure: ViTStructure, changes: Changes, provenance: Any
) -> dict[str, Any]:
    cost = count_cost(structure)
    about: dict[str, Any] = {
        "format": FORMAT,
        "library": origin.library,
        "architecture": origin.architecture,
        "model_args": origin.model_args,
        "preprocessing": origin.preprocessing,
        "classes": list(origin.classes),
        "plan": origin.plan.to_dict() if origin.plan else None,
        **({"changes": changes} if changes else {}),
        "params": cost.params,
        "macs": cost.macs,
        "versions": versions(),
        "provenance": provenance,
    }
    return {**adapter_of_library(origin.library).config_root(model, origin, changes), "vitrim": about}


def _to_json(config: Mapping[str, Any]) -> str:
    """Indented JSON with each list of numbers on one line, because a plan has thousands of numbers."""
    text = json.dumps(config, indent=2)
    return re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"


def _origin_in(config: Mapping[str, Any]) -> tuple[Origin, PruningPlan | None]:
    """The origin of the dense model, and the plan. Raises KeyError or TypeError if something is missing.

    In format 1, the architecture and its arguments are at the top level, where timm expects them.
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
        raise CheckpointMismatch(f"There is no folder {folder}; expected a folder of a model or a run.")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointMismatch(f"{folder} is not a model folder: it has no {name}.")
    check_model_folder(folder)
    return read_json(folder / CONFIG)


def _refuse_unknown_files(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise FolderInUse(f"{folder} is a file; expected a folder for the model.")
    if folder.is_dir() and "vitrim" not in config_keys(folder) and unknown_files(folder):
        raise FolderInUse(f"{folder} is not empty and has no vitrim model; choose another folder.")


def config_keys(folder: Path) -> set[str]:
    """The top-level keys of `config.json`; none if the file is missing or is not valid JSON."""
    if not is_model_folder(folder):
        return set()
    try:
        config = read_json(folder / CONFIG)
    except UserError:
        return set()
    return set(config) if isinstance(config, dict) else set()
