"""Builds the model of a checkpoint: finds its tensors in the file, and makes names and sizes fit the architecture.

Nothing is guessed: a tensor that is missing, or that is not known to be superfluous, is an error. What is left out or
resampled is logged.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.errors import CheckpointMismatch
from vitrim.models import adapter_of_library
from vitrim.models.timm import checkpoints as timm_checkpoints
from vitrim.models.torchvision import checkpoints as torchvision_checkpoints
from vitrim.models.transformers import checkpoints as transformers_checkpoints
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import load_weights, refuse_other_numbers

LIBRARIES: Mapping[str, Any] = {  # modules with the same functions
    "timm": timm_checkpoints,
    "transformers": transformers_checkpoints,
    "torchvision": torchvision_checkpoints,
}
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # of torch, anywhere in a name
NOT_OF_THE_MODEL = re.compile(  # tensors that a model without them never misses
    r"(^|\.)mask_token$|^decoder[_.]|^(dino|ibot|projection)_head\.|^(projector|predictor)\.|^head\.(mlp|last_layer)\."
    r"|\.bias_mask$|^lm_head\.|^n_averaged$|(^|\.)rope(_embed)?\.periods$|(^|\.)(relative_position_index|position_ids)$"
    r"|(^|\.)(attn_mask|relative_coords_table|total_ops|total_params)$"
)
TEXT_MODEL = re.compile(
    r"^(transformer|token_embedding|ln_final|text)\.|^(positional_embedding|text_projection|logit_scale)$"
)
CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")  # DINOv2 numbers its blocks within groups, but not from 0
HINTS = {  # a pattern of names that the model does not have, and what it tells
    r"layers\.\d+\.ln1\.": "The names are those of MMPretrain, which vitrim does not convert.",
    r"encoder\.layers\.encoder_layer_": "The names are those of torchvision; use --arch torchvision:NAME.",
    r"attention\.query\.|embeddings\.patch_embeddings\.": "The names are those of transformers; use --arch "
    "transformers:CLASS.",
    r"^dist_token$": "The file is of a distilled model, such as deit_tiny_distilled_patch16_224.",
    r"blocks\.0\.attn\.qkv\.": "The names are those of timm; use --arch NAME.",
}
SIZES = {  # how to set sizes that differ from those of the architecture
    "timm": "Set sizes that differ from those of the architecture with --model-arg, such as depth=6.",
    "transformers": "Name the class that was saved, and set sizes that differ with --model-arg, such as "
    "num_hidden_layers=6.",
    "torchvision": "For sizes without a name, use --arch torchvision:VisionTransformer, with all sizes as --model-arg.",
}
MAX_NAMES = 6  # in a message


def build_from(
    tensors: Mapping[str, Tensor], library: str, architecture: str, arguments: Mapping[str, Any], source: str
) -> nn.Module:
    """Build the architecture with the arguments that the weights state, and load the weights strictly.

    Args:
        tensors: weights as a training script named them.
        library: timm, transformers or torchvision.
        architecture: name in this library.
        arguments: those that the user has set. They win over what the weights state.
        source: file name for messages.

    Raises:
        CheckpointMismatch: the weights do not fit, or the classifier is missing or has other outputs.
        SettingError: the library cannot build the architecture with these arguments.
    """
    adapter, fitting = adapter_of_library(library), LIBRARIES[library]
    _refuse_low_rank(tensors, source)
    with torch.device("meta"):
        probe = adapter.create(architecture, **arguments)
    inside, outside = _find_model(tensors, probe, source)
    stated = fitting.arguments_in(probe, inside, arguments)
    num_classes = _num_outputs(probe, inside, fitting, arguments.get("num_classes"), source, outside)
    if num_classes is not None:
        arguments = {**arguments, "num_classes": num_classes}
    if stated:
        log(f"{source} has {', '.join(f'{name}={value}' for name, value in stated.items())}; the model is built so")
    model = adapter.create(architecture, **{**arguments, **stated})
    fitted, dropped = _fitted(model, inside, fitting, source)
    load_weights(model, fitted, source)
    for line in _changes(inside, fitted, fitting.position_grid(model)):
        log(f"{source}: {line}")
    if inner := [name for name in outside if name.rpartition(".")[2] in ("mean", "std")]:
        log(f"{source} may normalise images inside the model ({_listed(inner)}), which is left out: see below")
    if dropped := [*dropped, *outside]:
        log(f"{source}: not part of the model, so not read: {_listed(dropped)}")
    return model


def build_from_npz(path: Path, architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build an architecture of timm with the weights of an `.npz` file of Google's JAX code; otherwise as `build_from`.

    Raises:
        CheckpointMismatch, SettingError: as `build_from`.
    """
    adapter, source = adapter_of_library("timm"), str(path)
    with torch.device("meta"):
        probe = adapter.create(architecture, **arguments)
    tensors = timm_checkpoints.npz_tensors(path)
    arguments = {**timm_checkpoints.arguments_in(probe, tensors, arguments), **arguments}
    num_classes = _num_outputs(probe, tensors, timm_checkpoints, arguments.get("num_classes"), source)
    model = adapter.create(architecture, **{**arguments, "num_classes": num_classes})
    timm_checkpoints.load_npz(model, path)
    for line in _changes(tensors, model.state_dict(), timm_checkpoints.position_grid(model)):
        log(f"{source}: {line}")
    return model


def _find_model(tensors: Mapping[str, Tensor], probe: nn.Module, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the prefix that fits the model best, without it; and the names of all others.

    Raises:
        CheckpointMismatch: several prefixes fit equally well, and their weights differ.
    """
    own = {name: tensor.shape for name, tensor in probe.state_dict().items()}
    names = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in tensors}
    while all(name.startswith("module.") for name in names.values()):
        names = {name: short.removeprefix("module.") for name, short in names.items()}
    if not any(CHUNKED.search(name) for name in own):
        names = {name: CHUNKED.sub(r"\1blocks.\2.", short) for name, short in names.items()}
    if len(set(names.values())) < len(names):
        raise CheckpointMismatch(f"{source} has several tensors for one name, such as those of a wrapped model twice.")
    renamed = {short: tensors[name] for name, short in names.items()}
    prefix = _best_prefix(renamed, own, source)
    inside = {name.removeprefix(prefix): tensor for name, tensor in renamed.items() if name.startswith(prefix)}
    return inside, [name for name in renamed if not name.startswith(prefix)]


def _best_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, torch.Size], source: str) -> str:
    names: Counter[str] = Counter()
    shapes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        parts = name.split(".")
        for position in range(len(parts)):
            prefix, rest = "".join(f"{part}." for part in parts[:position]), ".".join(parts[position:])
            if rest in own:
                names[prefix] += 1
                shapes[prefix] += tensor.shape == own[rest]
    if not names:
        return ""
    best = max((names[prefix], shapes[prefix]) for prefix in names)
    fitting = [prefix for prefix in names if (names[prefix], shapes[prefix]) == best]
    if len(fitting) == 1:
        return fitting[0]
    averages = [prefix for prefix in fitting if "ema" in re.split(r"[._]", prefix.lower())]
    if len(averages) == 1:
        log(f"{source}: the moving average of the weights under {averages[0]!r} is read, not those under other names")
        return averages[0]
    first = {name: tensors[f"{fitting[0]}{name}"] for name in own if f"{fitting[0]}{name}" in tensors}
    for prefix in fitting[1:]:
        if not all(torch.equal(tensor, tensors.get(f"{prefix}{name}", tensor[:0])) for name, tensor in first.items()):
            raise CheckpointMismatch(
                f"{source} has several models of this architecture, under {', '.join(map(repr, fitting))}. "
                "Save only the state dict of the one that you want."
            )
    return fitting[0]


def _num_outputs(
    probe: nn.Module,
    tensors: Mapping[str, Tensor],
    fitting: Any,
    requested: int | None,
    source: str,
    outside: Sequence[str] = (),
) -> int | None:
    """The number of outputs of the classifier in the weights; None if the architecture has no classifier.

    Args:
        probe: the architecture.
        tensors: the weights.
        fitting: the module of the library.
        requested: number that the user has set.
        source: file name for messages.
        outside: names of the tensors outside the model.

    Raises:
        CheckpointMismatch: the weights have no classifier or another one, but one is needed.
    """
    own, heads = probe.state_dict(), fitting.classifiers(probe)
    names = [f"{name}.weight" for name in heads]
    if requested == 0 or not names:
        return requested
    is_headless = not own.keys() & set(names)  # some architectures have no classifier unless a number is set
    is_backbone = False
    for candidate in chain([tensors], _conversions(probe, tensors, fitting)):
        found = next((candidate[name] for name in names if name in candidate), None)
        if found is not None:
            break
        is_backbone |= all(name in candidate or name.rpartition(".")[0] in heads for name in own)
    else:
        if is_headless and requested is None:
            return None
        if not is_backbone:
            raise _misfit(probe, tensors, fitting, source)
        beside = f" It has {_listed(outside)} beside the backbone." if outside else ""
        raise CheckpointMismatch(
            f"{source} has no classifier ({names[0]}).{beside} Pass num_classes=0 (--num-classes 0) for the backbone; "
            "`vitrim train` then gives it a new classifier for the classes of the data."
        )
    if requested is not None and found.shape[0] != requested:
        raise CheckpointMismatch(
            f"{source} has a classifier of {found.shape[0]} outputs, but num_classes (--num-classes) is {requested}. "
            "Leave it out; `vitrim train` gives the model a new classifier if the data has other classes."
        )
    return found.shape[0]


def _conversions(model: nn.Module, tensors: Mapping[str, Tensor], fitting: Any) -> Iterator[dict[str, Tensor]]:
    """The weights as the library converts them, without and with what only pretraining needs."""
    yield from fitting.converted(model, _without(tensors, _superfluous(tensors, model, fitting)))
    yield from fitting.converted(model, tensors)


def _fitted(
    model: nn.Module, tensors: Mapping[str, Tensor], fitting: Any, source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The weights under the names and with the shapes of the model, and the names of those that are left out.

    Raises:
        CheckpointMismatch: they do not fit, also not as the library converts them.
    """
    own = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for candidate in chain([tensors], _conversions(model, tensors, fitting)):
        fitted = _without(candidate, _superfluous(candidate, model, fitting))
        if {name: tensor.shape for name, tensor in fitted.items()} == own:
            refuse_other_numbers(model, fitted, source)
            return fitted, _left_out(tensors, fitted, model, fitting, source)
    raise _misfit(model, tensors, fitting, source)


def _misfit(model: nn.Module, tensors: Mapping[str, Tensor], fitting: Any, source: str) -> CheckpointMismatch:
    """The error that lists what differs, with a hint on where the names come from or how sizes are set."""
    own = model.state_dict()
    unknown = [name for name in _without(tensors, _superfluous(tensors, model, fitting)) if name not in own]
    hints = [text for pattern, text in HINTS.items() if any(re.search(pattern, name) for name in unknown)]
    library = next(name for name, module in LIBRARIES.items() if module is fitting)
    hint = hints[0] if hints and f"of {library};" not in hints[0] else SIZES[library]
    if 2 * len(unknown) > len(tensors):  # a list of missing names would not tell what the file has
        strange = next((name for name in unknown if any(re.search(pattern, name) for pattern in HINTS)), unknown[0])
        return CheckpointMismatch(
            f"{source} does not fit the architecture: {len(unknown)} of its {len(tensors)} tensors are not in the "
            f"model, such as {strange} {tuple(tensors[strange].shape)}. {hint}"
        )
    try:
        load_weights(model, _without(tensors, _superfluous(tensors, model, fitting)), source)
    except CheckpointMismatch as problem:
        return CheckpointMismatch(f"{problem} {hint}")
    raise AssertionError("weights that fit were not found to fit")


def _superfluous(tensors: Mapping[str, Tensor], model: nn.Module, fitting: Any) -> set[str]:
    """Names that the model does not have and does not need: of pretraining, of tables, of a classifier left out."""
    own, names = model.state_dict(), fitting.classifiers(model)
    heads = {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    is_clip = any(name.startswith("visual.") for name in tensors)
    if is_clip and not heads & own.keys():
        heads.add("visual.proj")
    return {
        name
        for name in tensors
        if name not in own and (NOT_OF_THE_MODEL.search(name) or name in heads or (is_clip and TEXT_MODEL.search(name)))
    }


def _left_out(
    before: Mapping[str, Tensor], fitted: Mapping[str, Tensor], model: nn.Module, fitting: Any, source: str
) -> list[str]:
    """Names of the tensors that are not in the model.

    Raises:
        CheckpointMismatch: the library's conversion left out a tensor that may change the result.
    """
    starts = [tensor.data_ptr() for tensor in fitted.values()]
    unused = []
    for name, tensor in before.items():
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if name not in fitted and not any(first <= start < last for start in starts):  # renamed, or a part of it
            unused.append(name)
    known = _superfluous(before, model, fitting)
    left_out = [name for name in before if name in known or name in unused]
    problems = [name for name in unused if name not in known and bool(before[name].count_nonzero())]
    if problems:
        raise CheckpointMismatch(f"{source} does not fit the architecture: the model has no {_listed(problems)}.")
    return left_out


def _without(tensors: Mapping[str, Tensor], names: set[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _refuse_low_rank(tensors: Mapping[str, Tensor], source: str) -> None:
    name = next((name for name in tensors if re.search(r"\.lora_[AB]\.|\.lora_embedding_|\.base_layer\.", name)), None)
    if name:
        raise CheckpointMismatch(
            f"{source} has the low-rank weights of an adapter, such as {name}. Merge them into the model: "
            "`model.merge_and_unload().save_pretrained(FOLDER)` with peft, and open this folder."
        )


def _changes(before: Mapping[str, Tensor], fitted: Mapping[str, Tensor], grid: Any) -> Iterator[str]:
    """Sentences on tensors that were resampled or renamed."""
    resampled = [name for name in fitted if name in before and before[name].shape != fitted[name].shape]
    for name in list(resampled):
        shapes = before[name].shape, fitted[name].shape
        if grid and name == grid.name and (side := grid.side_in(before)):
            yield f"position embedding resampled from {side} x {side} to {grid.rows} x {grid.columns} patches"
            resampled.remove(name)
        elif name.endswith("patch_embed.proj.weight") and len(shapes[0]) == 4:
            yield "patch embedding resampled from {2} x {3} to {6} x {7} pixels".format(*shapes[0], *shapes[1])
            resampled.remove(name)
    if resampled:
        yield f"resampled to the sizes of the model: {_listed(resampled)}"
    renamed = [name for name in fitted if name not in before]
    if renamed:
        yield f"names converted as the library does, such as {renamed[0]} ({len(renamed)} tensors)"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"{', '.join(names[:MAX_NAMES])}{more}"
