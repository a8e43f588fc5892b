"""Checks the kinds of the values in the `config.json` of a model folder, so that what reads them can rely on them."""

from collections.abc import Mapping
from typing import Any

from vitrim.errors import CheckpointMismatch

OBJECT, TEXT, LIST, NONE = Mapping, str, list | tuple, type(None)
KINDS: dict[str, Any] = {  # of the section `vitrim`
    "library": TEXT,
    "architecture": TEXT,
    "model_args": OBJECT,
    "preprocessing": OBJECT,
    "classes": LIST | NONE,
    "plan": OBJECT | NONE,
    "changes": OBJECT | NONE,
}
CHANGES: dict[str, Any] = {"removed": LIST, "modules": OBJECT, "attributes": OBJECT, "tensors": OBJECT}
PREPROCESSING: dict[str, Any] = {
    **{"img_size": LIST, "mean": LIST, "std": LIST, "interpolation": TEXT, "crop_pct": int | float, "crop_mode": TEXT},
    **{"steps": OBJECT | NONE, "refused": TEXT},
}
NAMES = {dict: "an object", str: "a text", list: "a list", bool: "true or false", type(None): "null"}


def check_config(config: Any, source: str) -> None:
    """Refuse a configuration whose values are of other kinds than `save` writes. Missing values are found elsewhere.

    Args:
        config: as read from JSON.
        source: file name for messages.

    Raises:
        CheckpointMismatch: names the value.
    """
    _check({"the content": config}, {"the content": OBJECT}, source)
    about = config.get("vitrim")
    if about is None:
        return
    _check({"vitrim": about}, {"vitrim": OBJECT}, source)
    _check(about, KINDS, source)
    if about.get("format") == 1:  # the architecture is at the top level
        kinds = {name: KINDS[name] for name in ("architecture", "model_args")}
        _check(config, {**kinds, "label_names": LIST | NONE, "num_classes": int}, source)
    elif "model_args" in about and not isinstance(about["model_args"].get("num_classes", 0), int):
        raise CheckpointMismatch(f"{source} was not written by vitrim: its num_classes is no whole number.")
    _check(about.get("preprocessing", {}), PREPROCESSING, source)
    for name in ("mean", "std", "img_size"):
        values = about.get("preprocessing", {}).get(name, ())
        if not all(isinstance(value, int | float) for value in values):
            raise CheckpointMismatch(f"{source} was not written by vitrim: {name} is no list of numbers.")
    names = about.get("classes") or config.get("label_names") or ()
    if not all(isinstance(name, str) for name in names):
        raise CheckpointMismatch(f"{source} was not written by vitrim: a name of a class is no text.")
    changes = about.get("changes") or {}
    _check(changes, CHANGES, source)
    for kind in ("modules", "attributes", "tensors"):
        allowed = OBJECT | NONE if kind == "modules" else OBJECT
        _check(changes.get(kind, {}), dict.fromkeys(changes.get(kind, {}), allowed), source)
    if not all(isinstance(name, str) for name in changes.get("removed", ())):
        raise CheckpointMismatch(f"{source} was not written by vitrim: a name of a removed module is no text.")


def _check(values: Mapping[str, Any], kinds: Mapping[str, Any], source: str) -> None:
    for name, kind in kinds.items():
        if name in values and not isinstance(values[name], kind):
            found = NAMES.get(type(values[name]), "a number")
            raise CheckpointMismatch(f"{source} was not written by vitrim: {name} is {found}, another type than there.")
