"""Finds the weights in the checkpoint of a training script.

Such a file has the weights in a dictionary, beside the state of the optimizer, the settings and more. This file knows
the keys that scripts use. Which architecture the weights fit is decided in `vitrim.saving.fitting`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitrim.errors import CheckpointMismatch
from vitrim.runs.torch_files import CLEAN, attributes_in_file, class_in_file

# Keys of a moving average of the weights, then of the weights. The first one that is not empty is read.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "params_ema", "ema")
WEIGHTS = (
    *("state_dict", "model", "model_state_dict", "model_state", "module", "net", "network"),
    *("teacher", "target_encoder", "student", "encoder", "backbone", "weights", "params", "checkpoint"),
)
AVERAGED = ("teacher", "target_encoder")  # self-supervised methods average the student, or the encoder, into these
NOT_WEIGHTS = ("optim", "opt", "sched", "scaler", "ema", "swa", "args", "config", "hyper", "callback", "loop", "rng")
SETTINGS = ("args", "hyper_parameters", "config", "cfg", "hparams")  # where scripts keep their settings
ARCHITECTURES = ("model", "arch", "model_name", "architecture")  # settings that name the architecture
MAX_DEPTH = 5  # dictionaries inside dictionaries


@dataclass(frozen=True, kw_only=True)
class TrainingCheckpoint:
    """The weights of a checkpoint, and what it says about them.

    Attributes:
        tensors: by their names in the file.
        notes: sentences for the log: which of several weights were read.
        settings: of the training, by name.
        architectures: names that the file states for the architecture, the most exact first.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    architectures: tuple[str, ...] = ()


def find_weights(saved: Any, source: str) -> TrainingCheckpoint:
    """Find the weights in what a file holds.

    The weights of a moving average are preferred, as in timm.

    Args:
        saved: what `read_torch_file` returned.
        source: file name for messages.

    Raises:
        CheckpointMismatch: there are no weights with names, or several and none with a known key.
    """
    found = saved
    notes: list[str] = []
    for _ in range(MAX_DEPTH):
        if isinstance(found, list | tuple):
            found = {f"item {index}": item for index, item in enumerate(found)}
        if not isinstance(found, Mapping):
            break
        key = _key_of_weights(found, source)
        if key is None:
            break
        notes += _notes(found, key)
        found = found[key]
    tensors = _tensors(found, source)
    settings = dict(_settings(saved))
    stated = [settings.get(name) for name in ARCHITECTURES]
    stated += [saved.get(name) for name in ARCHITECTURES] if isinstance(saved, Mapping) else []
    names = tuple(dict.fromkeys(name for name in stated if isinstance(name, str) and name))
    return TrainingCheckpoint(tensors=tensors, notes=tuple(notes), settings=settings, architectures=names)


def _key_of_weights(found: Mapping[Any, Any], source: str) -> str | None:
    """The key to go on with; None if the dictionary itself is the state dict, or has nothing more to look into.

    Raises:
        CheckpointMismatch: the weights of a key cannot be read, or several keys may have them.
    """
    for key in (*AVERAGES, *WEIGHTS):
        value = found.get(key)
        if class_in_file(value) and key in (*AVERAGES, "model", "net", "network"):
            raise CheckpointMismatch(
                f"{source} has a pickled {class_in_file(value)} under {key!r}, and vitrim does not run pickled code. "
                f"{CLEAN}"
            )
        if key in AVERAGES and isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            raise _unnamed_average(source, key)
        if isinstance(value, Mapping) and isinstance(value.get("shadow_params"), list | tuple):
            raise _unnamed_average(source, f"{key}.shadow_params")
        if isinstance(value, Mapping) and _has_tensors(value):
            return key
    if any(isinstance(value, Tensor) for name, value in found.items() if "." in str(name)):
        return None
    if isinstance(found.get("shadow_params"), list | tuple):
        raise _unnamed_average(source, "shadow_params")
    if "param_groups" in found and "state" in found:
        raise CheckpointMismatch(f"{source} has the state of an optimizer, and no weights. Name the file of the model.")
    others = [key for key, value in found.items() if _may_have_weights(key, value)]
    if len(others) > 1:
        raise CheckpointMismatch(
            f"{source} has weights under {', '.join(map(repr, others))}, and vitrim does not know which to read. "
            f"{CLEAN}"
        )
    return others[0] if others else None


def _unnamed_average(source: str, key: str) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{source} has the moving average of the weights under {key!r} as a list without names, so vitrim cannot tell "
        "which is which. Copy it into the model (`ema.copy_to(model.parameters())`), and save `model.state_dict()`."
    )


def _may_have_weights(key: Any, value: Any) -> bool:
    is_state = isinstance(value, Mapping) and not {"param_groups", "state"} & set(value)
    return is_state and not str(key).lower().startswith(NOT_WEIGHTS) and _has_tensors(value)


def _has_tensors(value: Mapping[Any, Any], depth: int = MAX_DEPTH) -> bool:
    inside = list(value.values())
    if any(isinstance(item, Tensor) for item in inside):
        return True
    return depth > 0 and any(isinstance(item, Mapping) and _has_tensors(item, depth - 1) for item in inside)


def _notes(found: Mapping[Any, Any], key: str) -> Iterator[str]:
    """Which of several weights are read."""
    mappings = [name for name in (*AVERAGES, *WEIGHTS) if isinstance(found.get(name), Mapping) and name != key]
    others = [name for name in mappings if _has_tensors(found[name])]
    if key in AVERAGES:
        beside = f", not the raw weights under {others[0]!r}" if others else ""
        yield f"the moving average of the weights under {key!r} is read{beside}"
    elif key in AVERAGED or others:
        what = "the moving average of the weights" if key in AVERAGED else "the weights"
        beside = f", not those under {', '.join(map(repr, others))}" if others else ""
        yield f"{what} under {key!r} {'is' if key in AVERAGED else 'are'} read{beside}"
    elif key not in WEIGHTS:
        yield f"the weights under {key!r} are read"


def _tensors(found: Any, source: str) -> dict[str, Tensor]:
    """The named tensors. Numbers and settings beside them are left out."""
    if isinstance(found, Mapping):
        arrays = [
            name
            for name, value in found.items()
            if (class_in_file(value) or "").startswith("numpy.") and "." in str(name)
        ]
        if arrays:
            raise CheckpointMismatch(
                f"{source} has arrays of numpy instead of tensors, such as {arrays[0]}. Convert them with "
                "`torch.from_numpy`, and save the state dict again."
            )
        tensors = {
            name: value.detach() for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)
        }
        if tensors:
            return tensors
    raise CheckpointMismatch(f"{source} has no state dict of tensors{_contents(found)}. {CLEAN}")


def _contents(found: Any) -> str:
    if not isinstance(found, Mapping) or not found:
        return ""
    keys = [repr(key) for key in list(found)[:6]]
    return f"; it has {', '.join(keys)}{' and more' if len(found) > 6 else ''}"


def _settings(saved: Any) -> Iterator[tuple[str, Any]]:
    """The settings of the training, from a namespace or a dictionary."""
    for key in SETTINGS:
        value = saved.get(key) if isinstance(saved, Mapping) else None
        if class_in_file(value):
            value = attributes_in_file(value)
        if not isinstance(value, Mapping):
            continue
        for name, entry in value.items():
            yield str(name), entry
            if class_in_file(entry) == "argparse.Namespace":  # Lightning's `hyper_parameters`
                yield from attributes_in_file(entry).items()
