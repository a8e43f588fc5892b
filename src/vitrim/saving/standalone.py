"""Writes `modeling.py`: a file in the model folder that builds the pruned model without vitrim.

`modeling.py` builds the dense model with timm or torchvision and removes blocks. Then it gives each tensor the shape
that it has in the weights file, and sets the attributes that differ. To find these attributes, the dense and the pruned
model are compared here. Last, it makes the changes that were made on the model by hand, such as a head of several
layers.
"""

import ast
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import jinja2
import torch
from torch import nn

from vitrim.data.preprocessing import Preprocessing
from vitrim.errors import SettingError
from vitrim.models import adapter_of_library
from vitrim.models.changes import Changes
from vitrim.models.origin import Origin
from vitrim.models.restoring import restore
from vitrim.models.timm.configuration import OF_OTHER_SIZES

TEMPLATES = Path(__file__).parents[1] / "templates"
STATED_ELSEWHERE = ("training", "pretrained_cfg", "default_cfg")  # eval mode; `pretrained_cfg` in config.json
PLAIN = str | int | float | bool | None


def rebuild_facts(model: nn.Module, origin: Origin, changes: Changes) -> dict[str, Any]:
    """The differences between the dense and the pruned model, as plain data for `rebuild` in `config.json`.

    Args:
        model: the pruned model.
        origin: how the dense model was built.
        changes: what differs besides.

    Returns:
        `removed_blocks` (names), and by module name `attributes` (values to set) and `forwards` (class to set); also
        `zeros`, the shapes of smaller buffers that are not in the weights file, and the `changes`.
    """
    with torch.device("meta"):
        dense = adapter_of_library(origin.library).build(origin)
    removed, arguments = origin.removed_blocks(), dict(origin.model_args)
    if origin.library == "torchvision":
        arguments["num_classes"] = arguments["num_classes"] or 1  # its models have a head, which the changes remove
    for name in reversed(removed):
        stage, _, key = name.rpartition(".")
        container: Any = dense.get_submodule(stage)
        if key.isdigit():
            del container[int(key)]
        else:
            del container._modules[key]
    before = dict(dense.named_modules())
    attributes: dict[str, dict[str, Any]] = {}
    forwards: dict[str, str] = {}
    zeros: dict[str, list[int]] = {}
    for name, module in model.named_modules():
        old = before.get(name)
        if old is None or (name and type(module).__module__.startswith("timm.layers.drop")):
            continue
        if found := _changed(old, module):
            attributes[name] = found
        if type(module).__module__.startswith("vitrim."):
            forwards[name] = type(module).__name__
        for key, buffer in module._buffers.items():
            dense_buffer = old._buffers.get(key)
            if buffer is None or dense_buffer is None or key not in module._non_persistent_buffers_set:
                continue  # the weights file has the shape of the other buffers
            if buffer.numel() < dense_buffer.numel():
                assert not buffer.any(), f"{name}.{key} was pruned, is not in the state dict, and is not zero"
                zeros[f"{name}.{key}"] = list(buffer.shape)
    return {
        "library": origin.library,
        "architecture": origin.architecture,
        "model_args": arguments,
        "removed_blocks": list(removed),
        "attributes": attributes,
        "forwards": forwards,
        "zeros": zeros,
        **({"changes": changes} if changes else {}),
    }


def modeling_source(model: nn.Module, origin: Origin, changes: Changes) -> str:
    """The text of `modeling.py` for a pruned model."""
    classes = {type(module) for module in model.modules() if type(module).__module__.startswith("vitrim.")}
    imports, definitions = _sources([*classes, *([restore] if changes else [])])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, keep_trailing_newline=True
    )
    template = environment.get_template("modeling.py.jinja")
    return template.render(
        library=origin.library,
        imports=imports,
        definitions=definitions,
        changed=bool(changes),
        of_other_sizes=json.dumps(OF_OTHER_SIZES),
        unchanged=_unchanged_size(origin),
    )


def _unchanged_size(origin: Origin) -> str:
    """Which images vitrim uses as they are, such as `32x32`; empty if none."""
    try:
        size = Preprocessing.from_dict(origin.preprocessing).unchanged_size
    except SettingError:  # vitrim prepares no images for this model; it can be saved nevertheless
        return ""
    return "x".join(map(str, size or ()))


def _changed(old: nn.Module, new: nn.Module) -> dict[str, Any]:
    """The plain attributes of a module that differ from those of the dense module."""
    found = {}
    for key, value in vars(new).items():
        if key.startswith("_") or key in STATED_ELSEWHERE or not _is_plain(value):
            continue
        if key not in vars(old) or json.dumps(_jsonable(vars(old)[key])) != json.dumps(_jsonable(value)):
            found[key] = _jsonable(value)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, PLAIN)


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value, default=repr))


def _sources(classes: Iterable[Any]) -> tuple[list[str], list[str]]:
    """The imports and the definitions that these classes and functions need, each as source text."""
    files: list[ModuleType] = []
    pending = [inspect.getmodule(cls) for cls in classes]
    while pending:
        module = pending.pop()
        if module is None or module in files:
            continue
        files.append(module)
        pending += [inspect.getmodule(value) for value in vars(module).values() if _is_ours(value)]
    trees = [ast.parse(inspect.getsource(module)) for module in files]
    defined: dict[str, tuple[str, ast.AST]] = {}
    for module, tree in zip(files, trees, strict=True):
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                assert node.name not in defined, f"{node.name} is defined in two of the copied files"
                defined[node.name] = ast.get_source_segment(inspect.getsource(module), node) or "", node
    needed: dict[str, None] = {}
    open_names = sorted(cls.__name__ for cls in classes)
    while open_names:
        name = open_names.pop()
        if name not in needed:
            needed[name] = None
            open_names += sorted(_names(defined[name][1]) & defined.keys())
    used = set().union(*(_names(defined[name][1]) for name in needed)) if needed else set()
    imports = {line for tree in trees for node in tree.body for line in _imports(node, used)}
    in_order = sorted(needed, key=lambda name: (isinstance(defined[name][1], ast.ClassDef), list(defined).index(name)))
    return sorted(imports), [defined[name][0] for name in in_order]


def _is_ours(value: Any) -> bool:
    return getattr(value, "__module__", "").startswith("vitrim.models.") and callable(value)


def _names(node: ast.AST) -> set[str]:
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def _imports(node: ast.stmt, used: set[str]) -> Iterable[str]:
    """Imports of other libraries that define a used name, one line each."""
    if isinstance(node, ast.Import | ast.ImportFrom) and not (
        isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitrim")
    ):
        for alias in node.names:
            bound = alias.asname or alias.name.partition(".")[0]
            if bound in used and bound not in ("torch", "timm", "nn"):
                single = type(node)(**{**vars(node), "names": [alias]})
                yield ast.unparse(single)
