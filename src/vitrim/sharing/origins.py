"""What a run was made from, as the Hub names it: the base model, its license and the data set.

A run notes no address of its weights. The commands in the reports say it: that of the run, and those of the runs from
which its dense model comes. What they do not say is left out.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vitrim.errors import UserError
from vitrim.models.timm.downloads import published_weights
from vitrim.runs.files import RUN, read_json
from vitrim.saving.checkpoint import fingerprint, load

MAX_RUNS = 8  # one from the other
DATA_SETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "tiny-imagenet": "zh-plus/tiny-imagenet"}
HUB_PREFIXES = ("timm:hf-hub:", "timm:hf_hub:", "hf-hub:", "hf_hub:", "transformers:")


@dataclass(frozen=True, kw_only=True)
class Base:
    """The model from which a run comes.

    Attributes:
        id: of its repository on the Hub; empty if it is not known.
        license: of its weights; empty if it is not known.
    """

    id: str = ""
    license: str = ""


def base_of(run: Path) -> Base:
    """The published weights from which the model of a run comes; empty for random weights, or if it is not known."""
    for _ in range(MAX_RUNS):
        words = _words(run)
        name = words[2] if len(words) > 2 and words[1] in ("train", "compress") else ""
        if not name or name.startswith("-"):
            return Base()
        before = _run_of(Path(name))
        if before is not None:
            if not _starts_from(run, before):  # the folder has another model now
                return Base()
            run = before
            continue
        for prefix in HUB_PREFIXES:
            if name.startswith(prefix) and name.count("/") == 1:
                return Base(id=name.removeprefix(prefix).partition("@")[0])
        if "--pretrained" in words and "/" not in name and ":" not in name:
            repository, license = published_weights(name)
            return Base(id=repository, license=license)
        return Base()
    return Base()


def data_set_of(run: Path) -> str:
    """The data set of a run on the Hub, such as `uoft-cs/cifar10`; empty for a folder of images, or if unknown."""
    words = _words(run)
    values = [word.partition("=")[2] for word in words if word.startswith("--data=")]
    values += [value for word, value in pairwise(words) if word == "--data"]
    if not values:
        return ""
    name = values[-1]
    if name.startswith("hf:") and not Path(name[3:]).exists() and name.count("/") == 1:
        return name[3:]
    return DATA_SETS.get(name, "")


def _words(run: Path) -> Sequence[str]:
    """The words of the command that made a run; none if they are not known."""
    try:
        report: Any = read_json(run / "report.json")
        words = shlex.split(report.get("command") or "")
    except (UserError, OSError, AttributeError, ValueError, TypeError):
        return ()
    return words if words and words[0] == "vitrim" else ()


def _run_of(path: Path) -> Path | None:
    """The run that has the model of a folder; None for another path."""
    return next((folder for folder in (path, path.parent) if path.is_dir() and (folder / RUN).is_file()), None)


def _starts_from(run: Path, before: Path) -> bool:
    """Whether the weights from which a run starts are those of the model of another run."""
    try:
        about: Any = read_json(run / RUN)
        return bool(about["model"]["weights"] == fingerprint(load(before / "model")))
    except (UserError, OSError, KeyError, TypeError):
        return False
