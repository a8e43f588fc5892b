"""The list of models that vitrim knows, which `python -m tools.known_models` writes. No library is imported for it."""

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

SIZE_LETTERS = {
    "t": "tiny",
    "ti": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "g": "giant",
}
MIN_SIMILARITY = 0.66
FILE = Path(__file__).with_name("models.tsv")


@dataclass(frozen=True, kw_only=True)
class KnownModel:
    """One model of timm or torchvision, or one model class of transformers.

    Attributes:
        library: `timm`, `torchvision` or `transformers`.
        name: in this library.
        cls: name of its class.
        params, macs: number of parameters and of multiply-adds for one image of `img_size`; 0 if not known.
        img_size: height of the images in pixels; 0 if not known.
        heads, neurons, blocks: in how many blocks they can be pruned: `all`, `some`, `none`; `-` if there are none.
        weights: number of pretrained weights that the library offers.
        problem: why the model is not pruned; empty if vitrim prunes it exactly.
    """

    library: str
    name: str
    cls: str
    params: int = 0
    macs: int = 0
    img_size: int = 0
    heads: str = "-"
    neurons: str = "-"
    blocks: str = "-"
    weights: int = 0
    problem: str = ""

    @property
    def argument(self) -> str:
        """The model as it is named on the command line."""
        if self.library == "timm":
            return self.name
        return f"{self.library}:{self.name if self.library == 'torchvision' else 'USER/NAME'}"


def write_known(rows: Iterable[KnownModel], versions: Mapping[str, str], file: Path = FILE) -> None:
    """Write the list, with the versions of the libraries in its first line."""
    names = [field.name for field in fields(KnownModel)]
    lines = [[str(value) for value in asdict(row).values()] for row in rows]
    text = "\n".join([f"# {json.dumps(versions)}", *map("\t".join, [names, *lines])])
    file.write_text(f"{text}\n", encoding="utf-8")


@cache
def known_models() -> tuple[KnownModel, ...]:
    """The whole list, ordered by library and name."""
    _, header, *lines = FILE.read_text(encoding="utf-8").splitlines()
    names, numbers = header.split("\t"), {field.name for field in fields(KnownModel) if field.type is int}
    found = []
    for line in lines:
        values: dict[str, Any] = dict(zip(names, line.split("\t"), strict=True))
        values |= {name: int(values[name]) for name in numbers}
        found.append(KnownModel(**values))
    return tuple(found)


@cache
def known_versions() -> Mapping[str, str]:
    """The versions of the libraries that the list was made with."""
    with FILE.open(encoding="utf-8") as file:
        return dict(json.loads(file.readline().removeprefix("#")))


def matching(pattern: str, rows: Sequence[KnownModel] | None = None) -> list[KnownModel]:
    """The models whose name, class or library fits.

    Args:
        pattern: text that occurs in the name, or the name of a class, in lower or upper case; or a pattern with `*`,
            `?` or `[...]` for the whole name. A library before a colon selects its models: `torchvision:vit`.
        rows: the models to select from. By default all.
    """
    rows = known_models() if rows is None else rows
    library, colon, rest = pattern.rpartition(":")
    if colon:
        rows = [row for row in rows if row.library == library.lower()]
    typed = rest.lower()
    if re.search(r"[*?\[]", typed):
        return [row for row in rows if fnmatch.fnmatchcase(row.name.lower(), typed)]
    typed = typed.partition(".")[0] if not colon else typed  # `vit_small_patch16_224.augreg_in1k` names weights
    return [row for row in rows if typed in row.name.lower() or typed == row.cls.lower()]


def similar(name: str, number: int = 3) -> list[str]:
    """Names of models of timm that are pruned and that a name from elsewhere may mean, the most likely first.

    Args:
        name: such as `ViT-S/16`, `dinov2`, `vitb16` or `google/vit-base-patch16-224`.
        number: the most names to return.
    """
    typed = _parts(name.rpartition("/")[2] if name.count("/") == 1 and len(name.rpartition("/")[2]) > 2 else name)
    found = []
    for row in known_models():
        if row.library == "timm" and not row.problem and typed:
            own = _parts(row.name)
            score = sum(1.0 if part in own else 0.7 * (len(part) > 2 and part in row.name) for part in typed)
            found.append((-score / len(typed), not row.weights, len(own), row.name))
    return [entry[-1] for entry in sorted(found)[:number] if -entry[0] >= MIN_SIMILARITY]


def _parts(name: str) -> list[str]:
    """The parts of a name, with letters of sizes and numbers of patches written as timm does."""
    name = re.sub(r"^vit(?=(ti|[tsblhg])\d)", "vit-", name.lower())  # vitb16
    name = re.sub(r"(?<![a-z])(ti|[tsblhg])(\d)", r"\1-\2", name)
    parts = [part for part in re.split(r"[^a-z0-9]+", name) if part]
    parts = [SIZE_LETTERS.get(part, part) for part in parts]
    return [f"patch{part}" if part.isdecimal() and 4 <= int(part) <= 32 else part for part in parts]
