"""The class names in the `pretrained_cfg` of a timm model. Those of transformers are in its configuration."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from vitrim.runs.text_files import valid_text

GENERATED_LABEL = "LABEL_"  # how transformers names outputs that have no name


def label_names(config: Mapping[str, Any] | None, num_classes: int) -> tuple[str, ...]:
    """The names of all outputs, from `label_names`; empty if they are missing, or are not as many as the outputs.

    JSON may hold them as a list, or by the number of the output. Numbers without a name get an empty one.
    """
    found = (config or {}).get("label_names")
    if isinstance(found, Mapping):
        by_output = {str(output): str(name) for output, name in found.items()}
        if not set(by_output) <= set(map(str, range(num_classes))):
            return ()
        names = tuple(by_output.get(str(output), "") for output in range(num_classes))
    else:
        names = tuple(map(str, found or ()))
    names = tuple(map(valid_text, names))
    generated = all(name.startswith(GENERATED_LABEL) for name in names)
    return () if len(names) != num_classes or generated else names


def descriptions_of(model: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """The `label_descriptions` of a timm model for these names, such as words for synsets; empty if it has none."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get("label_descriptions")
    if not isinstance(found, Mapping) or not set(names) <= {*found, ""}:
        return ()
    return tuple(str(found.get(name, "")) for name in names)
