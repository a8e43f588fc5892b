"""Builds a saved model by the `modeling.py` in its folder, without vitrim."""

from pathlib import Path
from types import ModuleType


def modeling_of(folder: Path) -> ModuleType:
    """The module `modeling.py` of a folder; it must not import vitrim."""
    text = (folder / "modeling.py").read_text(encoding="utf-8")
    assert "import vitrim" not in text and "from vitrim" not in text
    module = ModuleType("modeling")
    module.__file__ = str(folder / "modeling.py")
    exec(compile(text, module.__file__, "exec"), vars(module))
    return module
