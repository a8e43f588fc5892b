"""The commands that list what vitrim knows by name: models and data sets. No library of models is imported."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from vitrim.cli.options import MODEL
from vitrim.cli.tables import print_line, print_table
from vitrim.errors import SettingError, counted

if TYPE_CHECKING:
    from vitrim.known.models import KnownModel

EVERYTHING = "*"
NAMED = ["model", "parameters", "multiply-adds", "pixels", "weights", "heads", "neurons", "blocks"]


def models(
    pattern: Annotated[
        str | None,
        Parameter(
            group=MODEL,
            help="part of a name, a pattern such as 'vit_*_224', or a library such as torchvision: "
            "(default: a table of the model classes)",
        ),
    ] = None,
    *,
    pretrained: Annotated[
        bool, Parameter(group=MODEL, help="only models with pretrained weights (default: all models)")
    ] = False,
    names: Annotated[
        bool, Parameter(group=MODEL, help="print names only, one a line, for scripts (default: a table)")
    ] = False,
) -> None:
    """List the models that vitrim can prune.

    Example: `vitrim models dinov2 --pretrained`

    Each was pruned in a test and computes what the model with silenced parts computes. Other models can be tried with
    `vitrim inspect`.
    """
    from vitrim.known.models import known_models, matching, similar

    if pattern is not None and not pattern.strip():
        raise SettingError("The pattern is empty; expected part of a name, or no pattern for a table of the classes.")
    rows = [row for row in matching(pattern or EVERYTHING) if row.weights or not pretrained]
    if not rows:
        near = similar(pattern or "")
        hint = f" Did you mean {', '.join(near)}?" if near else " Without a pattern, all model classes are listed."
        only = " with pretrained weights" if pretrained else ""
        raise SettingError(f"No model{only} fits {pattern}.{hint}")
    works = [row for row in rows if not row.problem]
    if names:
        for row in works:
            print_line(row.argument if row.library != "transformers" else row.name)
        return
    if pattern is None:
        _print_classes(works)
    else:
        _print_models(rows)
    if pattern is None:
        total = sum(row.library == "timm" for row in known_models() if not row.problem)
        print_line(f"{total} models of timm. `vitrim models PATTERN` lists them by name, e.g. `vitrim models vit_s`.")
    _print_versions()


def datasets() -> None:
    """List the data sets that vitrim knows by name, and the forms of one's own images.

    Example: `vitrim datasets`
    """
    from platformdirs import user_cache_path

    from vitrim.known.datasets import SOURCES

    rows = [["digits", "10", "1,347", "450", "8 x 8", "none, it is part of scikit-learn", "handwritten digits"]]
    for name, source in SOURCES.items():
        splits = [f"{source.num_train:,}", f"{source.num_validation:,}"]
        size = f"{source.img_size} x {source.img_size}"
        rows.append([name, f"{source.num_classes}", *splits, size, f"{source.megabytes} MB", source.content])
    header = ["--data", "classes", "training images", "validation images", "pixels", "download", "content"]
    print_table("Data sets by name", header, rows)
    print_line(f"Downloads are kept in {user_cache_path('vitrim')}. --data-dir names a folder that has the data.")
    print_table("Your own images", ["--data", "what is read"], OWN_IMAGES)
    print_line("docs/your-model-your-images.md lists all forms, and how classes and splits are found.")


OWN_IMAGES = [
    ["FOLDER", "<class>/*, or train/<class>/* and val/<class>/* (also valid, validation, test)"],
    ["FILE.zip, FILE.tar.gz", "an archive of such a folder"],
    ["FILE.csv, .tsv, .jsonl, .txt", "a table with a column of image files and a column of classes"],
    ["hf:PATH", "a Hugging Face data set, on disk or by its name on the Hub"],
    ["--train-dir, --val-dir", "folders of the splits, where their names do not say it"],
]


def _print_classes(rows: "Sequence[KnownModel]") -> None:
    """Print a line for each class: how many models it has, and one of them."""
    found: dict[tuple[str, str], list[KnownModel]] = {}
    for row in rows:
        found.setdefault((row.library, row.cls), []).append(row)
    lines = []
    for (library, cls), members in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1]), item[0][1])):
        example = max(members, key=lambda row: row.weights)
        parts = [_most([getattr(row, part) for row in members]) for part in ("heads", "neurons", "blocks")]
        lines.append([library, cls, f"{len(members)}", *parts, example.argument])
    header = ["library", "class", "models", "heads", "neurons", "blocks", "for example"]
    print_table("Models that vitrim prunes, and which of their parts", header, lines)


def _most(values: Sequence[str]) -> str:
    """What most of the models say: `all`, `some`, `none`; empty for no such part."""
    return Counter(values).most_common(1)[0][0].replace("-", "")


def _print_models(rows: "Sequence[KnownModel]") -> None:
    classes = [[row.name] for row in rows if row.library == "transformers"]
    lines = []
    for row in rows:
        if row.library == "transformers" or row.problem:
            continue
        costs = [f"{row.params / 1e6:,.1f} M", f"{row.macs / 1e9:,.2f} G", f"{row.img_size}"]
        lines.append([row.argument, *costs, f"{row.weights or ''}", row.heads, row.neurons, row.blocks])
    if lines:
        print_table(counted(len(lines), "model"), NAMED, lines)
    if classes:
        title = f"{len(classes)} model classes of transformers: checkpoints of theirs are named transformers:USER/NAME"
        print_table(title, ["class"], classes)
    for row in (row for row in rows if row.problem):
        print_line(f"not pruned: {row.argument}: {row.problem}")


def _print_versions() -> None:
    """Say which versions the list is for, where another one is installed."""
    from vitrim.known.models import known_versions

    for library, listed in known_versions().items():
        try:
            installed = version(library).partition("+")[0]
        except PackageNotFoundError:
            continue
        if installed != listed:
            print_line(
                f"The list is for {library} {listed}; {installed} is installed. `vitrim inspect NAME` tries any model."
            )
