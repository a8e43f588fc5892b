"""Docstrings of public functions: shapes of tensors, and the errors that are raised."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrim
import vitrim.errors

SOURCE = Path(vitrim.__file__).parent
SHAPE = re.compile(r"`\(([\w.*/+\- ]+,? ?)+\)`|\bscalar\b|`\.\.\.|\bany shape\b")
FORWARDS = "forwards.py"  # forward passes of other libraries' classes, which have their shapes


def public_functions() -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Path and name, definition, and docstring (with that of its class) of every public function and method."""
    for file in sorted(SOURCE.rglob("*.py")):
        if file.name.endswith(FORWARDS) or file.parent.name == "cli":  # docstrings of commands are their help
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if getattr(node, "name", "").startswith("_"):
                continue
            members = node.body if isinstance(node, ast.ClassDef) else [node]
            about = (ast.get_docstring(node) or "") if isinstance(node, ast.ClassDef) else ""
            for member in members:
                if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"):
                    name = f"{file.relative_to(SOURCE)}:{member.name}"
                    yield name, member, f"{ast.get_docstring(member) or ''}\n{about}"


FUNCTIONS = list(public_functions())


def handles_tensors(function: ast.FunctionDef) -> bool:
    arguments = [*function.args.args, *function.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [function.returns]
    return any(
        annotation is not None and ast.unparse(annotation) in ("Tensor", "Tensor | None") for annotation in annotations
    )


def raised_in(function: ast.FunctionDef) -> set[str]:
    """Names of the errors for users that the function itself raises."""
    found = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func)
            if hasattr(vitrim.errors, name):
                found.add(name)
    return found


@pytest.mark.parametrize(("name", "function", "text"), FUNCTIONS, ids=[name for name, _, _ in FUNCTIONS])
def test_shapes_and_errors_are_documented(name: str, function: ast.FunctionDef, text: str) -> None:
    if handles_tensors(function):
        assert SHAPE.search(text), "a function of tensors states their shapes, such as `(B, N, D)`"
    missing = {error for error in raised_in(function) if error not in text}
    assert missing == set(), "a function that raises names the errors under Raises:"
