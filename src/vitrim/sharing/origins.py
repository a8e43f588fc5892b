"""What a run was made from, as the Hub names it: the base model, its license and the data set.

A run notes no address of its weights. The commands in the reports say it: that of the run, and those of the runs from
which its dense model comes. What they do not say is left out.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from vitrim.errors import UserError
from vitrim.models.timm.downloads import published_weights
from vitrim.reports.target import FLAGS
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
        command = _command(run)
        name = command.model
        if not name:
            return Base()
        before = _run_of(Path(name))
        if before is not None:
            if not _starts_from(run, before):  # the folder has another model now
                return Base()
            run = before
            continue
        for prefix in HUB_PREFIXES:
            repository = name.removeprefix(prefix).partition("@")[0]
            if name.startswith(prefix) and _is_on_hub(repository, run):
                return Base(id=repository)
        if "--pretrained" in command.options and "/" not in name and ":" not in name:
            repository, license = published_weights(name)
            return Base(id=repository, license=license)
        return Base()
    return Base()


def data_set_of(run: Path) -> str:
    """The data set of a run on the Hub, such as `uoft-cs/cifar10`; empty for a folder of images, or if unknown."""
    name = _command(run).options.get("--data", "")
    if name.startswith("hf:") and _is_on_hub(name[3:], run):
        return name[3:]
    return DATA_SETS.get(name, "")


def _is_on_hub(name: str, run: Path) -> bool:
    """Whether a name is USER/NAME of the Hub, and not that of a folder here, or beside a folder with the run in it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    is_here = any((folder / name).exists() for folder in (Path(), *run.resolve().parents))
    return name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not is_here


@dataclass(frozen=True, kw_only=True)
class _Command:
    """What a command of `train` or `compress` names.

    Attributes:
        model: empty if it is not known.
        options: the values by name; of an option that is given twice, the last one; of a flag, an empty text.
    """

    model: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


def _command(run: Path) -> _Command:
    """The command that made a run; empty if it is not known."""
    try:
        report: Any = read_json(run / "report.json")
        program, name, *words = shlex.split(report.get("command") or "")
    except (UserError, OSError, AttributeError, ValueError, TypeError):
        return _Command()
    if program != "vitrim" or name not in ("train", "compress"):
        return _Command()
    positional, options, rest = list[str](), dict[str, str](), iter(words)
    for word in rest:
        if word == "--":
            positional += rest
        elif not word.startswith("-") or word == "-":
            positional.append(word)
        else:
            option, equals, value = word.partition("=")
            options[option] = value if equals or option in FLAGS else next(rest, "")
    return _Command(model=options.get("--model") or next(iter(positional), ""), options=options)


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
