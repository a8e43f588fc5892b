"""The layout of the package: layers that import downwards only, no import cycle, and libraries in their places."""

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vitrim

SOURCE = Path(vitrim.__file__).parent
LAYERS = (  # from the bottom: an entry imports from its own layer and from the layers above it in this list
    {"errors"},
    {"checks", "asking", "known"},
    {"structure"},
    {"plan"},
    {"runs"},
    {"copying"},
    {"hooks", "precision"},
    {"models"},
    {"programs"},
    {"surgery", "silencing", "rotation"},
    {"costs", "data"},
    {"importance", "recovery"},
    {"allocation", "evaluation", "ensembles", "judging", "class_accuracy", "paired_bound"},
    {"saving"},
    {"losses", "tracking"},
    {"training", "exporting"},
    {"recipe", "earlier_versions"},
    {"source"},
    {"planning"},
    {"depth", "head_width"},
    {"reports", "forecast", "pace"},
    {"measured_once"},
    {"compress_run", "verifying", "watching", "sharing"},
    {"sizes"},
    {"pipeline"},
    {"cli"},
    {"__init__", "__main__"},
)
HEIGHT = {entry: height for height, entries in enumerate(LAYERS) for entry in entries}
STANDARD_LIBRARY_ONLY = {"errors", "checks", "asking", "known", "structure", "plan"}
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


ROOT = SOURCE.parents[1]
CHECKED = ("src", "benchmarks", "tools", "tests")
FILES = [file for top in CHECKED for file in sorted((ROOT / top).rglob("*.py")) if "fixtures" not in file.parts]
MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 60, 8
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


@cache
def all_imports() -> list[tuple[str, str]]:
    """Pairs of a module of the package and a module that it imports. Only the process that checks them reads them."""
    trees = {module: ast.parse(file.read_text(encoding="utf-8")) for module, file in MODULES.items()}
    return [(module, name) for module, tree in trees.items() for name in imports(tree)]


def own_imports() -> list[tuple[str, str]]:
    """As `all_imports`, within the package and without its name."""
    return [(module, name.removeprefix("vitrim.")) for module, name in all_imports() if name.startswith("vitrim.")]


def entry_of(module: str) -> str:
    return module.split(".")[0]


def test_every_entry_of_the_package_has_a_layer() -> None:
    assert {entry_of(module) for module in MODULES} == set(HEIGHT)


def test_imports_point_downwards() -> None:
    upwards = [(one, other) for one, other in own_imports() if HEIGHT[entry_of(other)] > HEIGHT[entry_of(one)]]
    assert upwards == []


def test_imports_form_no_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for one, other in own_imports():
        graph.setdefault(one, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_model_libraries_are_imported_by_their_adapters_only() -> None:
    outside = []
    for module, name in all_imports():
        known = [library for library in MODEL_LIBRARIES if name == library or name.startswith(f"{library}.")]
        if known and not module.startswith(MODEL_LIBRARIES[max(known, key=len)]):
            outside.append((module, name))
    assert outside == []


def test_the_lowest_layers_need_the_standard_library_only() -> None:
    unknown_files = [
        (module, name)
        for module, name in all_imports()
        if module in STANDARD_LIBRARY_ONLY and name.split(".")[0] not in {*sys.stdlib_module_names, "vitrim"}
    ]
    assert unknown_files == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_files_functions_and_parameter_lists_are_short(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [parameter.arg for parameter in parameters if parameter.arg not in ("self", "cls")]
            assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name
            assert len(names) <= MAX_PARAMETERS, node.name


def test_nothing_outside_the_tests_imports_from_them() -> None:
    outside = [file for file in FILES if file.relative_to(ROOT).parts[0] != "tests"]
    importing = [file for file in outside if re.search(r"^\s*(from|import) (builders|tests)\b", file.read_text(), re.M)]
    assert importing == []


def test_tests_mirror_the_sources() -> None:
    """Every test file of a folder of the package is named after a file or folder of it, or says why it is not."""
    extra = {"models/test_families", "models/test_narrow_heads", "models/test_residual_scale"}  # laws of all libraries
    extra |= {"models/test_transformers_loading"}  # of a file in a folder
    for folder in sorted(path for path in SOURCE.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        inside = folder.relative_to(SOURCE)
        known = {path.stem for path in folder.iterdir() if not path.name.startswith("__")} | {"main"}
        for test in sorted((ROOT / "tests" / inside).glob("test_*.py")):
            name = f"{inside.as_posix()}/{test.stem}"
            assert test.stem.removeprefix("test_") in known or name in extra, name
