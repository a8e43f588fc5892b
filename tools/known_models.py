"""Write the list that `vitrim models` prints: `python -m tools.known_models`. About twelve minutes on one core.

Which models of timm are pruned exactly is read from `docs/models.md`, which `python -m tools.models` measured. Here
each model is only described, on the meta device: its size, its cost, and which of its parts can be pruned. The models
of torchvision and the model classes of transformers are those of their tables of families, which the tests prune.
Results are stored line by line in a file, so the same command continues after an interruption.
"""

import argparse
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import timm
import torch
import torchvision

from vitrim.costs.counting import count_cost
from vitrim.errors import UnsupportedModel
from vitrim.known.models import KnownModel, write_known
from vitrim.models import describe
from vitrim.models.torchvision.families import SIZES_BY_NAME
from vitrim.models.transformers.families import BY_CLASS
from vitrim.structure import ViTStructure

ROOT = Path(__file__).parents[1]
OWN = "vitrim_"  # what `import vitrim` registers with timm
EXCEPTION = re.compile(r"^\* `([^`]+)`: ([^:]+): (.+)$", re.M)
EXACT = re.compile(r"\*\*vitrim prunes (\d+) of the \d+ models")


def main() -> None:
    """Describe all models, and write the list."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="pattern for the names of timm (default: all), e.g. 'swin*'")
    parser.add_argument(
        "--rows", type=Path, default=Path("runs/known-models.jsonl"), help="file of the results so far, one line each"
    )
    options = parser.parse_args()
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    rows = [*stored(options.only, page, options.rows), *torchvision_rows(), *transformers_rows()]
    num_exact = sum(row.library == "timm" and not row.problem for row in rows)
    (measured,) = EXACT.findall(page)
    if options.only == "*" and num_exact != int(measured):
        raise SystemExit(f"{num_exact} models can be described and are no exceptions; docs/models.md says {measured}.")
    write_known(rows, {"timm": timm.__version__, "torchvision": torchvision.__version__.partition("+")[0]})
    print(f"{len(rows)} rows")


def stored(pattern: str, page: str, file: Path) -> Iterator[KnownModel]:
    """As `timm_rows`; each row is stored in a file, and rows that the file has are not made again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    done = {name: row for name, row in map(json.loads, lines)}
    for name in timm.list_models(pattern):
        if name not in done:
            made = [asdict(row) for row in timm_rows(name, page)]
            done[name] = made[0] if made else None
            with file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps([name, done[name]]) + "\n")
        if done[name]:
            yield KnownModel(**done[name])


def timm_rows(pattern: str, page: str) -> Iterator[KnownModel]:
    """The models of timm with attention heads or MLPs.

    Args:
        pattern: for the names, as in `timm.list_models`.
        page: `docs/models.md`, with the models that are not pruned.
    """
    exceptions = {name: (status, reason) for name, status, reason in EXCEPTION.findall(page)}
    for name in timm.list_models(pattern):
        if name.startswith(OWN):
            continue
        with torch.device("meta"):
            model = timm.create_model(name)
        weights = sum(entry.partition(".")[0] == name for entry in timm.list_pretrained(f"{name}*"))
        cls = type(model).__name__
        status, reason = exceptions.get(name, ("", ""))
        problem = f"not tried: {reason}" if status == "not tried" else reason
        if problem and status != "not tried":
            yield KnownModel(library="timm", name=name, cls=cls, weights=weights, problem=problem)
            continue
        try:
            structure = describe(model)
        except UnsupportedModel:
            if problem:
                yield KnownModel(library="timm", name=name, cls=cls, weights=weights, problem=problem)
            continue  # else it has neither heads nor MLPs
        yield known("timm", name, cls, weights, structure, problem)


def torchvision_rows() -> Iterator[KnownModel]:
    """The models of torchvision."""
    for name in SIZES_BY_NAME:
        with torch.device("meta"):
            model = torchvision.models.get_model(name)
        weights = len(torchvision.models.get_model_weights(name))
        yield known("torchvision", name, type(model).__name__, weights, describe(model), "")


def transformers_rows() -> Iterator[KnownModel]:
    """The model classes of transformers, whose sizes are those of each checkpoint."""
    for cls in BY_CLASS:
        yield KnownModel(library="transformers", name=cls, cls=cls)


def known(library: str, name: str, cls: str, weights: int, structure: ViTStructure, problem: str) -> KnownModel:
    """The row of a model that can be described."""
    cost = count_cost(structure)
    groups = [group for block in structure.blocks for group in block.groups]
    return KnownModel(
        library=library,
        name=name,
        cls=cls,
        params=cost.params,
        macs=cost.macs,
        img_size=structure.img_size[0],
        heads=how_many([not group.not_prunable for group in groups if group.kind == "heads"]),
        neurons=how_many([not group.not_prunable for group in groups if group.kind == "neurons"]),
        blocks=how_many([not block.not_prunable for block in structure.blocks]),
        weights=weights,
        problem=problem,
    )


def how_many(prunable: list[bool]) -> str:
    """`all`, `some` or `none`; `-` if there is no such part."""
    if not prunable:
        return "-"
    return "all" if all(prunable) else "some" if any(prunable) else "none"


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
