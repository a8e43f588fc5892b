"""The layout of the package: layers that import downwards only, no import cycle, and libraries in their places."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import vitrim

SOURCE = Path(vitrim.__file__).parent
LAYERS = (  # from the bottom: an entry imports from its own layer and from the layers above it in this list
    {"errors"},
    {"structure"},
    {"plan"},
    {"runs"},
    {"hooks"},
    {"models"},
    {"surgery", "silencing"},
    {"costs", "data"},
    {"importance", "recovery"},
    {"allocation", "evaluation"},
    {"saving"},
    {"losses"},
    {"training", "exporting"},
    {"recipe"},
    {"source"},
    {"planning"},
    {"depth"},
    {"report"},
    {"pipeline"},
    {"cli"},
    {"__init__", "__main__"},
)
HEIGHT = {entry: height for height, entries in enumerate(LAYERS) for entry in entries}
STANDARD_LIBRARY_ONLY = {"errors", "structure", "plan"}
MODEL_LIBRARIES = {  # a library, and the modules that may import it
    "timm": ("models.", "saving.timm_hub"),
    "timm.data": ("models.", "data."),
    "timm.optim": ("training",),
    "timm.scheduler": ("training",),
    "timm.utils": ("training",),
    "timm.layers": ("models.",),
    "timm.models": ("models.", "saving.timm_hub"),
    "transformers": ("models.transformers.",),
}


def module_of(file: Path) -> str:
    """`models.timm.adapter` for `models/timm/adapter.py`; a package is named like its folder."""
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(file): file for file in sorted(SOURCE.rglob("*.py"))}


def imports(node: ast.AST) -> Iterator[str]:
    """Every module that a file imports anywhere, also in a function or for the type checker."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0 and child.module, "imports are absolute"
            for alias in child.names:
                name = f"{child.module}.{alias.name}"
                is_module = name.removeprefix("vitrim.") in MODULES or child.module == "timm"
                yield name if is_module else child.module


IMPORTS = [
    (module, name) for module, file in MODULES.items() for name in imports(ast.parse(file.read_text(encoding="utf-8")))
]
OWN = [(module, name.removeprefix("vitrim.")) for module, name in IMPORTS if name.startswith("vitrim.")]


def entry_of(module: str) -> str:
    return module.split(".")[0]


def test_every_entry_of_the_package_has_a_layer() -> None:
    assert {entry_of(module) for module in MODULES} == set(HEIGHT)


def test_imports_point_downwards() -> None:
    upwards = [(one, other) for one, other in OWN if HEIGHT[entry_of(other)] > HEIGHT[entry_of(one)]]
    assert upwards == []


def test_imports_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for one, other in OWN:
        graph.setdefault(one, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_model_libraries_are_imported_by_their_adapters_only() -> None:
    outside = []
    for module, name in IMPORTS:
        known = [library for library in MODEL_LIBRARIES if name == library or name.startswith(f"{library}.")]
        if known and not module.startswith(MODEL_LIBRARIES[max(known, key=len)]):
            outside.append((module, name))
    assert outside == []


def test_the_lowest_layers_need_the_standard_library_only() -> None:
    unknown_files = [
        (module, name)
        for module, name in IMPORTS
        if module in STANDARD_LIBRARY_ONLY and name.split(".")[0] not in {*sys.stdlib_module_names, "vitrim"}
    ]
    assert unknown_files == []
