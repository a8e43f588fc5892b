"""Builds models of timm: the one place where its factory is called, and where its errors become those of vitrim."""

import difflib
import inspect
import re
import sys
from functools import partial
from typing import Any

import timm
from torch import nn

from vitrim.asking import asking, reason
from vitrim.errors import SettingError
from vitrim.known.models import similar
from vitrim.models.sizes import check_sizes, shown
from vitrim.models.timm.downloads import downloading
from vitrim.models.timm.stored_arguments import CUT, STORED, check_stored_model

MIN_LETTERS = 0.8  # of `difflib`: a misspelt name
MIN_PREFIX = 5  # letters of a name from which the longer names are suggested, such as `deit_`


def create_model(architecture: str, *, pretrained: bool = False, **arguments: Any) -> nn.Module:
    """`timm.create_model`, which also notes the arguments on the model, so that vitrim can build it again.

    Arguments that are None are left out.

    Raises:
        SettingError: timm has no such architecture, or the architecture does not accept an argument.
        CheckpointMismatch: the `config.json` of a folder or repository names files, addresses or unknown classes.
        NotEnoughMemory: the model does not fit the memory that is free.
    """
    arguments = {name: value for name, value in arguments.items() if value is not None}
    if not architecture.startswith(STORED) and not timm.is_model(architecture):
        near = _near_names(architecture.split(".")[0])
        hint = f" Did you mean {', '.join(near)}?" if near else " `vitrim models` lists the names."
        raise SettingError(f"timm has no model named {architecture!r}, and there is no such file or folder.{hint}")
    check_sizes(architecture, arguments, partial(timm.create_model, architecture, **arguments))
    with_arguments = f" with {shown(arguments)}" if arguments else ""
    with downloading(architecture, pretrained=pretrained), asking("timm", f"build {architecture}{with_arguments}"):
        if architecture.startswith(STORED):
            stored = {**check_stored_model(architecture), **arguments}
            name = stored.pop("architecture")
            if name not in CUT:
                check_sizes(architecture, stored, partial(timm.create_model, name, **stored))
        try:
            model = timm.create_model(architecture, pretrained=pretrained, **arguments)
        except TypeError as error:
            hint = _near_argument(architecture, str(error))
            raise SettingError(
                f"timm's {architecture} does not take these arguments: {reason(error)}.{hint}"
            ) from error
    model._model_args = {**getattr(model, "_model_args", {}), **arguments}  # as timm >= 1.0.31 does itself
    return model


def _near_names(name: str) -> list[str]:
    """Up to three architectures of timm that begin with `name`, else that look like it, else that it may mean."""
    longer = timm.list_models(f"{name}*")[:3] if len(name) >= MIN_PREFIX else []
    near = longer or difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=MIN_LETTERS) or similar(name)
    return near or difflib.get_close_matches(name, timm.list_models(), n=3)


def _near_argument(architecture: str, problem: str) -> str:
    """A question about an argument that was misspelt, to follow timm's `TypeError`; empty if there is none like it."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", problem)
    if not found or not timm.is_model(architecture):
        return ""
    module = sys.modules.get(timm.model_entrypoint(architecture).__module__)
    cls = getattr(module, found[1], None)
    names = inspect.signature(cls).parameters if isinstance(cls, type) else ()
    near = difflib.get_close_matches(found[2], names, n=1)
    return f" Did you mean {near[0]}?" if near else ""
