"""Finds what was changed on a model after it was built: what differs from the model that its origin builds.

Changes that are plain data can be noted in a model folder; `vitrim.models.restoring` applies them again. All others
are named, so that a model folder is refused which would lose them.

Not compared: the values of weights, which are saved; hooks, which `vitrim.saving.verification` notices by their effect;
stochastic depth, which acts in training only and is set by each training; attributes that no class of the library
knows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from torch import Tensor, nn

from vitrim.models.restoring import restored_layer

LIBRARIES = ("torch", "timm", "torchvision", "transformers", "vitrim")
BOOKKEEPING = {  # attributes that no forward pass in eval mode reads, or that the origin holds
    *vars(nn.Module()),
    *("_flat_weights", "_flat_weight_refs"),  # of LSTMs: the weights under a second name
    *("_compiled_call_impl", "grad_checkpointing", "gradient_checkpointing", "_gradient_checkpointing_func"),
    *("pretrained_cfg", "default_cfg", "pretrained_model_args", "_model_args", "_traits", "feature_info"),
    *("config", "generation_config", "name_or_path", "warnings_issued", "_is_hf_initialized"),
    *("vitrim_origin", "vitrim_img_size", "vitrim_architecture", "vitrim_stated_preprocessing"),
}
OF_THE_MODEL = {"num_classes", "num_labels"}  # attributes of the model itself; the origin holds the number of outputs
Changes = dict[str, Any]
"""Changes as plain data for JSON, as `vitrim.models.restoring.restore` takes them; empty if there are none."""


@dataclass
class Differences:
    """What differs between two models.

    Attributes:
        removed, modules, attributes, tensors: what can be noted, as in `restore`.
        others: sentences on what cannot be noted.
    """

    removed: list[str] = field(default_factory=list)
    modules: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @property
    def changes(self) -> Changes:
        """The part that can be noted."""
        return {key: value for key, value in vars(self).items() if value and key != "others"}


def differences(built: nn.Module, model: nn.Module) -> Differences:
    """Compare the modules of a model with those of the model that its origin builds: classes, attributes and shapes."""
    found = Differences()
    found.others += _replaced_methods(model)
    _compare(found, "", built, model)
    return found


def other_values(built: nn.Module, model: nn.Module) -> Iterator[str]:
    """Attributes that are no plain data, and buffers that are not in the state dict, that differ in two models.

    Both models must have the same modules and weights, and must have run on images of the same size, because some
    layers store what they computed.
    """
    own, expected_buffers, saved = dict(model.named_buffers()), dict(built.named_buffers()), model.state_dict().keys()
    for name in dict.fromkeys((*own, *expected_buffers)):
        if name not in saved and not _is_same(own.get(name), expected_buffers.get(name)):
            yield f"the buffer `{name}`, which is not in the state dict, was changed"
    modules = dict(built.named_modules())
    for name, module in model.named_modules():
        expected = vars(modules[name]) if name in modules else {}
        for key, value in vars(module).items():
            if key in BOOKKEEPING or "cache" in key or key not in expected or _is_plain(value, expected[key]):
                continue
            if not _is_same(expected[key], value):
                yield f"`{_join(name, key)}` is {_short(value)}, and {_short(expected[key])} would be loaded"


def renamed(changes: Changes, rename: Callable[[str], str | None]) -> Changes:
    """The changes under other names.

    Args:
        rename: returns the new name of a module or tensor, or None for one whose changes are left out.
    """
    found: Changes = {"removed": [new for name in changes.get("removed", ()) if (new := rename(name)) is not None]}
    for kind in changes.keys() - {"removed"}:
        names = ((rename(name), value) for name, value in changes[kind].items())
        found[kind] = {name: value for name, value in names if name is not None}
    return found


def without(changes: Changes, modules: Iterable[str]) -> Changes:
    """The changes outside these modules, such as the classifier of a model that gets another one."""
    prefixes = tuple(f"{name}." for name in modules)
    return renamed(changes, lambda name: None if f"{name}.".startswith(prefixes) else name)


def _compare(found: Differences, name: str, built: nn.Module, model: nn.Module) -> None:
    if _is_stochastic_depth(built, model):
        return
    if type(built) is not type(model):
        if name:
            _note_layer(found, name, model, built)
        else:
            found.others.append(f"the model is a {_class_name(model)}, and a {_class_name(built)} would be loaded")
        return
    _compare_attributes(found, name, built, model)
    for kind in ("parameter", "buffer"):
        _compare_tensors(found, name, kind, built, model)
    children, expected = model._modules, built._modules
    for key, child in expected.items():
        path = _join(name, key)
        if key not in children:
            found.removed.append(path)
        elif child is None or children[key] is None:
            if child is not children[key]:
                _note_layer(found, path, children[key], child)
        else:
            _compare(found, path, child, children[key])  # type: ignore[arg-type]
    for key, child in children.items():
        if key not in expected and child is not None:
            _note_layer(found, _join(name, key), child, None)
    in_order = [key for key in expected if key in children] + [key for key in children if key not in expected]
    if in_order != list(children):
        found.others.append(f"the modules of {_quoted(name)} are in another order")


def _note_layer(found: Differences, name: str, layer: nn.Module | None, built: nn.Module | None) -> None:
    """Note a layer in the place of another, or say why it cannot be noted."""
    try:
        found.modules[name] = None if layer is None else _layer(layer)
    except (TypeError, ValueError) as reason:
        expected = f"a {_class_name(built)}" if built is not None else "no module"
        found.others.append(
            f"{_quoted(name)} is a {_class_name(layer)}, and {expected} would be loaded, because {reason}"
        )


def _layer(layer: nn.Module) -> dict[str, Any]:
    """The description of a layer for `restored_layer`.

    Raises:
        TypeError: it holds something that is no plain data. ValueError: its class is not of a known library.
    """
    attributes = {}
    for key, value in vars(layer).items():
        if key not in BOOKKEEPING:
            try:
                attributes[key] = _plain(value)
            except TypeError:
                raise TypeError(f"the {key} of a {_class_name(layer)} is no number, text or list of them") from None
    lost = [key for key, tensor in layer._buffers.items() if tensor is not None and not _is_saved(layer, key)]
    if lost:
        raise TypeError(f"the buffer {lost[0]} of a {_class_name(layer)} is not in the state dict")
    tensors = {key: _tensor("parameter", value) for key, value in layer._parameters.items()}
    tensors |= {key: _tensor("buffer", value) for key, value in layer._buffers.items()}
    description = {"class": _full_name(layer), "attributes": attributes, "tensors": tensors, "modules": {}}
    restored_layer(description)  # raises ValueError for a class that model folders do not hold
    children = {key: None if child is None else _layer(child) for key, child in layer._modules.items()}
    return {**description, "modules": children}


def _compare_attributes(found: Differences, name: str, built: nn.Module, model: nn.Module) -> None:
    own, expected = vars(model), vars(built)
    ignored = BOOKKEEPING if name else BOOKKEEPING | OF_THE_MODEL
    for key, value in own.items():
        path = f"`{_join(name, key)}`"
        if key in ignored:
            continue
        if key not in expected:
            of_class = getattr(type(model), key, None)  # an unknown attribute is a note that no class reads
            if of_class is not None and getattr(value, "__func__", None) is not of_class:
                found.others.append(f"{path} was replaced by a {type(value).__name__}")
            continue
        try:
            plain, plain_expected = _plain(value), _plain(expected[key])
        except TypeError:
            continue  # `other_values` compares them
        if _as_lists(plain) != _as_lists(plain_expected):
            found.attributes.setdefault(name, {})[key] = plain
    for key in expected.keys() - own.keys() - ignored:
        if not any(key in held for held in (model._modules, model._parameters, model._buffers)):
            found.others.append(f"`{_join(name, key)}` is missing")


def _compare_tensors(found: Differences, name: str, kind: str, built: nn.Module, model: nn.Module) -> None:
    own: Mapping[str, Tensor | None] = getattr(model, f"_{kind}s")
    expected: Mapping[str, Tensor | None] = getattr(built, f"_{kind}s")
    for key, tensor in own.items():
        path, other = _join(name, key), expected.get(key)
        has_other_shape = getattr(tensor, "shape", None) != getattr(other, "shape", None)
        if has_other_shape and (kind == "parameter" or _is_saved(model, key)):
            found.tensors[path] = _tensor(kind, tensor)
    for key in expected.keys() - own.keys():
        if expected[key] is not None and (kind == "parameter" or _is_saved(built, key)):
            found.others.append(f"the {kind} `{_join(name, key)}` is missing")


def _tensor(kind: str, tensor: Tensor | None) -> dict[str, Any]:
    shape, dtype = (None, None) if tensor is None else (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    return {"kind": kind, "shape": shape, "dtype": dtype}


def _is_saved(module: nn.Module, key: str) -> bool:
    return key not in module._non_persistent_buffers_set


def _plain(value: Any) -> Any:
    """A plain value for JSON, in which tuples and lists differ. Raises TypeError for any other value."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if type(value) is tuple or type(value).__name__ == "Size":
        return {"tuple": [_plain(item) for item in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item) for key, item in value.items()}}
    raise TypeError


def _is_plain(*values: Any) -> bool:
    try:
        return bool([_plain(value) for value in values])
    except TypeError:
        return False


def _as_lists(plain: Any) -> str:
    """The text of a plain value, in which tuples are lists: arguments from JSON are lists."""
    if isinstance(plain, list):
        return f"[{', '.join(map(_as_lists, plain))}]"
    if isinstance(plain, dict):
        return _as_lists(plain["tuple"]) if "tuple" in plain else repr(plain)
    return repr(plain)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values that are not plain mean the same. Objects without a comparison are compared by their class."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, nn.Parameter):  # a weight under a second name
        return one.shape == other.shape
    if isinstance(one, Tensor):
        same_form = one.shape == other.shape and one.dtype == other.dtype
        return same_form and (one.is_meta or _equal_but_for_rounding(one.cpu(), other.cpu()))
    if isinstance(one, FunctionType | MethodType | type):
        return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
    if isinstance(one, ReferenceType):  # an LSTM has weak references to its weights
        return True
    if isinstance(one, partial):
        return all(_is_same(getattr(one, part), getattr(other, part)) for part in ("func", "args", "keywords"))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_same(one[key], other[key]) for key in one)
    return type(one).__eq__ is object.__eq__ or bool(one == other)


def _equal_but_for_rounding(one: Tensor, other: Tensor) -> bool:
    """A GPU may compute a table with another last digit than the CPU."""
    if torch.equal(one, other) or not one.is_floating_point():
        return torch.equal(one, other)
    digits = max(torch.finfo(one.dtype).eps, torch.finfo(torch.float32).eps)
    return torch.allclose(one, other, rtol=0.0, atol=8 * digits * float(other.abs().max()), equal_nan=True)


def _is_stochastic_depth(built: nn.Module, model: nn.Module) -> bool:
    """Whether one of the two is stochastic depth, and the other one too or an identity."""
    names = [type(module).__name__ for module in (built, model)]
    are_drop = [name.endswith(("DropPath", "StochasticDepth")) for name in names]
    return any(are_drop) and all(drop or name == "Identity" for drop, name in zip(are_drop, names, strict=True))


def _replaced_methods(model: nn.Module) -> Iterator[str]:
    """Forward methods of a library's class that were replaced by a function from elsewhere."""
    for cls in dict.fromkeys(type(module) for module in model.modules()):
        for base in cls.__mro__:
            if _top(base.__module__) in LIBRARIES:
                for key, value in vars(base).items():
                    is_forward = key.startswith("forward") or key == "__call__"
                    if is_forward and isinstance(value, FunctionType) and _top(value.__module__) not in LIBRARIES:
                        yield f"the method `{key}` of {base.__name__} was replaced"


def _top(module: str | None) -> str:
    return (module or LIBRARIES[0]).partition(".")[0]


def _full_name(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _class_name(module: object) -> str:
    """The name of the class, with its package if it is of no library."""
    known = _top(type(module).__module__) in LIBRARIES
    return type(module).__name__ if known else _full_name(module)


def _join(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _quoted(name: str) -> str:
    return f"`{name}`" if name else "the model"


def _short(value: object) -> str:
    text = getattr(value, "__qualname__", None) or " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
