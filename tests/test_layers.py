"""The layering law: vitrim's modules import only from their own layer or from those below, and never in a circle."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import vitrim

SOURCE = Path(vitrim.__file__).parent
LAYERS = {  # from the top
    "doors": {"cli", "tables", "__main__", "__init__"},
    "story": {"demo", "pipeline", "planning"},
    "settings": {"recipe"},
    "long jobs": {"training", "exporting", "report"},
    "decisions": {"allocation", "checkpoint", "opening", "run_folder", "hub", "standalone"},
    "operations": {
        "importance",
        "surgery",
        "recovery",
        "classifier",
        "latency",
        "latency_table",
        "programs",
        "evaluation",
    },
    "parts": {
        "adapters",
        "cost",
        "multiple_choice",
        "losses",
        "modes",
        "outputs",
        "processes",
        "states",
        "data",
        "datasets",
        "imagesets",
        "files",
        "markdown",
        "augmentation",
        "layouts",
    },
    "words": {"structure", "plan", "errors", "progress", "registration"},
}
HEIGHT = {module: -depth for depth, modules in enumerate(LAYERS.values()) for module in modules}
MAY_IMPORT = {"timm.data": {"data", "adapters"}, "timm.models": {"adapters", "hub"}, "transformers": {"adapters"}}
MAY_IMPORT |= {"timm": {"adapters", "hub"}}
MAY_IMPORT |= {name: {"training", "adapters"} for name in ("timm.optim", "timm.scheduler", "timm.utils")}


def module_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(node: ast.AST, *, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """Names of imported modules, and whether a function imports them; what only the type checker sees is left out."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    inside_function = inside_function or isinstance(node, ast.FunctionDef)
    if isinstance(node, ast.Import):
        yield from ((alias.name, inside_function) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module, "imports are absolute"
        # `from timm import models` and `from vitrim import plan` name modules, too
        top = node.module in ("timm", "vitrim")
        yield from ((f"{node.module}.{a.name}" if top else node.module, inside_function) for a in node.names)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, inside_function=inside_function)


IMPORTS = [
    (file, name, inside)
    for file in sorted(SOURCE.rglob("*.py"))
    for name, inside in imports(ast.parse(file.read_text(encoding="utf-8")))
]
OWN = [(module_of(file), name.split(".")[1]) for file, name, _ in IMPORTS if name.startswith("vitrim.")]


def test_every_module_has_a_layer() -> None:
    assert {module_of(file) for file in SOURCE.rglob("*.py")} - set(HEIGHT) == set()


def test_imports_point_downwards() -> None:
    known = [(one, other) for one, other in OWN if other in HEIGHT]  # else a name of the package, such as a version
    assert [(one, other) for one, other in known if HEIGHT[other] > HEIGHT[one]] == []


def test_imports_form_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for one, other in OWN:
        if one != other:
            graph.setdefault(one, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


def test_model_libraries_stay_where_they_belong() -> None:
    outside = [
        (module_of(file), name)
        for file, name, _ in IMPORTS
        if name.split(".")[0] in ("timm", "transformers") and module_of(file) != "adapters"
        if not any(name.startswith(part) and module_of(file) in who for part, who in MAY_IMPORT.items())
    ]
    assert outside == []


def test_words_need_only_the_standard_library() -> None:
    foreign = [
        (module_of(file), name)
        for file, name, inside_function in IMPORTS
        if module_of(file) in LAYERS["words"] and name.split(".")[0] not in {*sys.stdlib_module_names, "vitrim"}
        if not (module_of(file) == "progress" and name.split(".")[0] == "rich" and inside_function)
    ]
    assert foreign == []
