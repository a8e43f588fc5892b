"""Applies the changes that a model folder notes to a model that was just built; `vitrim.models.changes` finds them.

This file imports nothing of vitrim, because `modeling.py` of a model folder gets a copy of its functions.
"""

from importlib import import_module
from typing import Any

import torch
from torch import nn


def restore(model: nn.Module, changes: dict) -> None:
    """Apply changes, in place. The tensors that they add hold zeros; the weights are loaded afterwards.

    Args:
        model: as its arguments and its plan build it.
        changes: `removed` (names of modules), and by name `modules` (layers in the place of others), `attributes`
            and `tensors` (parameters and buffers of another shape; None for one that is absent).

    Raises:
        ValueError: a layer is of a class that model folders do not hold, or an attribute is a part of its class.
        AttributeError, KeyError, TypeError: the changes do not fit the model, or are damaged.
    """
    for name in changes.get("removed", ()):
        owner, _, key = name.rpartition(".")
        del model.get_submodule(owner)._modules[key]
    for name, layer in changes.get("modules", {}).items():
        owner, _, key = name.rpartition(".")
        vars(model.get_submodule(owner)).pop(key, None)  # an attribute would hide the module
        model.get_submodule(owner)._modules[key] = None if layer is None else restored_layer(layer)
    for name, values in changes.get("attributes", {}).items():
        set_attributes(model.get_submodule(name), values)
    for name, tensor in changes.get("tensors", {}).items():
        owner, _, key = name.rpartition(".")
        restore_tensor(model.get_submodule(owner), key, tensor)


def restored_layer(layer: dict) -> nn.Module:
    """The layer of this description. Its constructor does not run, as when a pickle is loaded.

    Raises:
        ValueError: the class is none of torch's, timm's, torchvision's or transformers' layers.
    """
    path, _, class_name = layer["class"].rpartition(".")
    folders = ("torch.nn.modules.", "timm.layers.", "torchvision.ops.", "transformers.activations.")
    is_name = all(part.isidentifier() and not part.startswith("__") for part in layer["class"].split("."))
    cls = getattr(import_module(path), class_name, None) if is_name and f"{path}.".startswith(folders) else None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == path):
        raise ValueError(f"{layer['class']} is no layer of {', '.join(folder.rstrip('.') for folder in folders)}")
    module = cls.__new__(cls)
    nn.Module.__init__(module)
    set_attributes(module, layer["attributes"])
    for key, tensor in layer["tensors"].items():
        restore_tensor(module, key, tensor)
    for key, child in layer["modules"].items():
        module._modules[key] = None if child is None else restored_layer(child)
    return module


def set_attributes(module: nn.Module, values: dict) -> None:
    """Set plain attributes, which may not replace what torch keeps on every module, or a method of the class.

    Raises:
        ValueError: names the attribute.
    """
    for key, value in values.items():
        if key in vars(nn.Module()) or not key.isidentifier() or callable(getattr(type(module), key, None)):
            raise ValueError(f"{key} is a part of {type(module).__name__}, and no plain attribute of it")
        vars(module)[key] = restored_value(value)


def restore_tensor(module: nn.Module, key: str, tensor: dict) -> None:
    """Give a module a parameter or buffer of this kind (`parameter` or `buffer`), shape and dtype, or None."""
    vars(module).pop(key, None)  # an attribute would hide the tensor
    tensors: dict[str, Any] = module._parameters if tensor["kind"] == "parameter" else module._buffers
    if tensor["shape"] is None:
        tensors[key] = None
        return
    dtype = getattr(torch, tensor["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{tensor['dtype']} is no number format of torch")
    zeros = torch.zeros(tensor["shape"], dtype=dtype)
    tensors[key] = nn.Parameter(zeros) if tensor["kind"] == "parameter" else zeros


def restored_value(value: Any) -> Any:
    """The plain value of this description: lists, tuples and dictionaries of numbers, texts, truth values and None."""
    if isinstance(value, list):
        return [restored_value(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(restored_value(item) for item in value["tuple"])
    return {key: restored_value(item) for key, item in value["dict"].items()}
