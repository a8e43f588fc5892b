"""What the shell offers for a word that is being typed: models, data sets, recipes and settings.

`vitrim --install-completion` writes the script for the shell, which cyclopts makes. The script calls vitrim for the
words below. torch is not imported.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts.completion import CompletionContext

MAX_NAMES = 200


def complete_model(context: "CompletionContext") -> Sequence[str]:
    """Files and folders, and models of timm and torchvision that vitrim prunes."""
    from vitrim.known.models import known_models

    names = [row.argument for row in known_models() if row.library != "transformers" and not row.problem]
    return [*_paths(context.incomplete), *_beginning(names, context.incomplete)]


def complete_data(context: "CompletionContext") -> Sequence[str]:
    """Data sets by name, files and folders."""
    from vitrim.known.datasets import SOURCES

    return [*_beginning(["digits", *SOURCES, "hf:"], context.incomplete), *_paths(context.incomplete)]


def complete_recipe(context: "CompletionContext") -> Sequence[str]:
    """Shipped recipes, and TOML files."""
    from vitrim.known.settings import recipe_names

    files = [path for path in _paths(context.incomplete) if path.endswith((".toml", os.sep))]
    return [*_beginning(recipe_names(), context.incomplete), *files]


def complete_setting(context: "CompletionContext") -> Mapping[str, str]:
    """Keys of the settings, each with `=` and its default as the description."""
    from vitrim.known.settings import recipe_settings

    settings = {**recipe_settings("train"), **recipe_settings("default")}
    found = {f"{key}=": f"default: {value}" for key, value in settings.items()}
    return {key: found[key] for key in _beginning(list(found), context.incomplete)}


def _beginning(names: Sequence[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)][:MAX_NAMES]


def _paths(incomplete: str) -> list[str]:
    """Files and folders that begin so. A folder ends in a slash."""
    found = sorted(glob.glob(f"{glob.escape(os.path.expanduser(incomplete))}*"))[:MAX_NAMES]
    return [f"{path}{os.sep}" if os.path.isdir(path) else path for path in found]
