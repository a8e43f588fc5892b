"""Find the units of an attention or MLP, or skip the part, with the reason."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vitrim.models.describing import Macs, UnknownLayer, not_prunable_heads, not_pruned
from vitrim.models.layers import LIBRARIES, part_problem
from vitrim.structure import UnitGroup

PART_NAMES = re.compile(r"(self_)?att(n|ention)\w*|mlp\w*|ffn\w*|ff\d*|feed_?forward\w*|intermediate|output")
CANNOT_READ = (AttributeError, TypeError, ValueError, IndexError, ZeroDivisionError, AssertionError, UnknownLayer)


def find_or_skip(
    name: str, part: nn.Module, find: Callable[[str, Any, Macs], list[UnitGroup]], macs: Macs, *, num_heads: int = 0
) -> list[UnitGroup]:
    """The unit groups of a part, by `find`. If the part is not as its class says, they are not prunable.

    Args:
        macs: multiply-adds of all modules, by name.
        num_heads: the number of heads if `find` cannot tell; 0 for an MLP.
    """
    problem = part_problem(name, part) or _run_problem(name, macs)
    if not problem:
        try:
            return find(name, part, macs)
        except (UnknownLayer, AttributeError) as error:  # for example, a sequence of layers has no `weight`
            problem = f"`{name}` ({type(part).__name__}) has other layers than its class in the library: {error}"
    try:
        groups = find(name, part, {})  # for their number only
    except CANNOT_READ:  # `find` is written for the layers of the library
        groups = []
    if groups and all(_is_counted(name, part, group) for group in groups):
        return [not_pruned(group, problem) for group in groups]
    if num_heads:
        return [not_prunable_heads(num_heads, problem)]
    return [skipped_part(name, part, problem)]


def skipped_part(name: str, part: nn.Module, reason: str) -> UnitGroup:
    """A part of which nothing is known but its name: `structure_of` lists it among the skipped parts."""
    text = f"`{name}` ({type(part).__name__}): {reason}"
    return UnitGroup(kind="neurons", key="neurons", count=0, not_prunable=text)


def unknown_parts(name: str, module: nn.Module, parts: Mapping[str, nn.Module]) -> Iterator[UnitGroup]:
    """What stands in a block in the place of an attention or MLP, and vitrim does not know.

    Args:
        name: name of the module in the model.
        parts: the attentions and MLPs in the block that vitrim knows, by name.
    """
    for key, child in module.named_children():
        path = f"{name}.{key}"
        if path in parts:
            continue
        if any(part.startswith(f"{path}.") for part in parts):
            yield from unknown_parts(path, child, parts)
        elif any(parameter.ndim > 1 for parameter in child.parameters()):
            problem, is_unknown = part_problem(path, child), not type(child).__module__.startswith(LIBRARIES)
            is_changed = problem or isinstance(child, nn.Sequential)
            if is_unknown or (is_changed and PART_NAMES.fullmatch(key)):
                reason = problem or "vitrim does not know which tensors store its units"
                yield skipped_part(path, child, reason)


def _run_problem(name: str, macs: Macs) -> str:
    """A part whose layers another module calls may be used in another way than its own `forward` says."""
    if macs.get(name) or not any(macs[other] for other in macs if other.startswith(f"{name}.")):
        return ""
    return f"`{name}` does not run itself, another module calls its layers"


def _is_counted(name: str, part: nn.Module, group: UnitGroup) -> bool:
    """Whether the output projection states as many input columns as its weight has."""
    layer = part.get_submodule(group.output_proj.removeprefix(f"{name}."))
    weight, columns = getattr(layer, "weight", None), getattr(layer, "in_features", getattr(layer, "in_channels", 0))
    return isinstance(weight, Tensor) and weight.ndim > 1 and weight.shape[1] == columns
