"""Write the section "Head widths" of `docs/models.md`: `python -m tools.head_widths`.

For every class of attention that vitrim knows in timm, the section says whether its heads can be narrowed, and if not,
why. Two models of each family of names are described, with few blocks if their arguments allow it. The weights hold no
data. A few minutes.
"""

import re
import warnings
from collections import defaultdict
from pathlib import Path

import timm
import torch
from torch import nn

from tools.models import SHALLOW
from vitrim.errors import UserError
from vitrim.models import describe
from vitrim.models.timm.parts import PARTS
from vitrim.saving.timm_hub import vitrim_cut
from vitrim.structure import UnitGroup, ViTStructure

TITLE = "## Head widths"
BOTH, ONLY_VALUES, NONE = "queries, keys and values", "values only", "nothing"
HEADER = f"""{TITLE}

Written by `python -m tools.head_widths` from the descriptions of two models of each family of names in timm. Heads are
narrowed in a rotated model, see `vitrim.rotation`. The table says for each class of attention which part of its heads
can be narrowed, and why not more. Classes with several lines depend on their settings. `vitrim inspect` shows the same
for one model.

| attention | can be narrowed | why not more |
|---|---|---|
"""


def families() -> list[str]:
    """The first and the last model of each family of names, such as `vit` or `swinv`, in each file of timm."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in timm.list_models():
        if name != vitrim_cut.__name__:
            names[timm.model_entrypoint(name).__module__, re.split(r"[_\d]", name)[0]].append(name)
    return sorted({name for found in names.values() for name in (found[0], found[-1])})


def without_data(name: str) -> nn.Module:
    """A model whose tensors hold no data, with few blocks if its arguments allow it."""
    for arguments in SHALLOW[:-1]:
        try:
            with torch.device("meta"):
                return timm.create_model(name, **arguments)
        except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, StopIteration):
            continue  # the architecture has no such argument, or refuses the value
    with torch.device("meta"):
        return timm.create_model(name)


def found_in(model: nn.Module, structure: ViTStructure) -> set[tuple[str, str, str]]:
    """For the attentions of a model: name of the class, what can be narrowed, and why not more."""
    owners = {name: module for name, module in model.named_modules() if type(module) in PARTS}
    found = set()
    for block in structure.blocks:
        for group in block.groups:
            if group.kind == "heads":
                name = owner_of(group, list(owners))
                if name:
                    found.add((class_name(owners[name]), *answer(group, name)))
    return found


def owner_of(group: UnitGroup, names: list[str]) -> str:
    """The attention, among these modules, that a group of heads belongs to; empty for classes that vitrim lacks."""
    texts = (group.not_prunable, group.not_narrowable)
    owns = [name for name in names if group.output_proj.startswith(f"{name}.")]
    return max(owns or [name for name in names if any(f"`{name}" in text for text in texts)], key=len, default="")


def class_name(module: nn.Module) -> str:
    """File and name of a class, such as `eva.EvaAttention`."""
    cls = type(module)
    return f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def answer(group: UnitGroup, name: str) -> tuple[str, str]:
    """What can be narrowed in a group of heads, and why not more, without the names of modules."""
    if group.directions is None:
        return NONE, group.not_narrowable.replace(f"{name}.", "").replace(f"`{name}`", "the attention")
    reason = group.directions.only_values.replace(f"{name}.", "").replace(f"`{name}`", "the attention")
    return (ONLY_VALUES if reason else BOTH), reason


def section() -> str:
    """The text of the section."""
    answers: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for name in families():
        model = without_data(name)
        try:
            structure = describe(model)
        except UserError:  # not supported, or without blocks
            continue
        for cls, what, why in found_in(model, structure):
            answers[cls].add((what, why))
    rows = [f"| `{cls}` | {what} | {why} |" for cls, found in sorted(answers.items()) for what, why in sorted(found)]
    return HEADER + "\n".join(rows) + "\n"


def main() -> None:
    """Replace the section in `docs/models.md`, or add it."""
    path = Path("docs/models.md")
    before = path.read_text(encoding="utf-8").partition(TITLE)[0].rstrip()
    path.write_text(f"{before}\n\n{section()}", encoding="utf-8")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
