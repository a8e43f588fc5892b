"""Names of classes as plain text: files of names, the usual orders of folders, and which names mean the same class.

Which order a model has is decided in `matching`; measuring it is in `class_order`. This file imports no torch.
"""

import ast
import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from vitrim.errors import DataError, shown
from vitrim.runs.text_files import MAX_JSON_BYTES, parse_json, read_text, valid_text

MAX_DIGITS = 4000
GENERATED = re.compile(r"(?:label|class|output|)[ _-]*(\d{1,18})", re.IGNORECASE)
SYNSET = re.compile(r"n\d{8}")


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """Names of classes that the user states, for example in a file.

    Attributes:
        source: where they come from, for messages.
        columns: each column has a name of each class: first the whole line, then its parts, such as synset and words,
            and the number of the output last.
        in_order: whether the rows are in the order of a model's outputs, if there are as many.
    """

    source: str
    columns: tuple[tuple[str, ...], ...]
    in_order: bool = True

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def names(self) -> tuple[str, ...]:
        """The first part of each line that names it, without numbers of outputs; else the whole lines."""
        parts = (*self.columns[1:], self.columns[0])
        unique = [part for part in parts if len(set(part)) == len(part)]
        return next((part for part in unique if not all(map(str.isdecimal, part))), unique[0])


def read_class_names(names: str | Path | Sequence[str] | ClassNames) -> ClassNames:
    """Read the names of a model's classes, in the order of its outputs.

    Args:
        names: the names, or a UTF-8 file. Text has one name a line. A line may also have two names of one class: a
            synset and its words, as in `LOC_synset_mapping.txt`; two names with a tab between them, as in Tiny
            ImageNet's `words.txt`; or the number of the output and a name. JSON, or text as Python prints it, is a
            list of names, or an object: `{"0": "cat"}`, `{"cat": 0}`, `{"0": ["n02124075", "cat"]}`, or `config.json`
            with `id2label`, `label2id` or `label_names`.

    Raises:
        DataError: the file is missing, is not UTF-8, or has an empty or a repeated line.
    """
    if isinstance(names, ClassNames):
        return names
    if not isinstance(names, str | Path):
        return _of_rows([[str(name)] for name in names], "class_names")
    path = Path(names).expanduser()
    if not path.is_file():
        raise DataError(f"There is no file of class names {path}; expected a text file with one name a line.")
    text = read_text(path, MAX_JSON_BYTES, DataError, mark=True)
    if path.suffix.lower() == ".json":
        return _of_json(parse_json(text, str(path), DataError), str(path))
    if text.lstrip()[:1] in ("{", "["):  # a dictionary or list as Python prints it; it is not executed
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return _of_json(ast.literal_eval(text.strip()), str(path))
    lines = [line.strip() for line in text.rstrip().splitlines()]
    empty = [number for number, line in enumerate(lines, start=1) if not line]
    if empty or not lines:
        where = f"Line {empty[0]} of {path} is empty" if lines else f"{path} is empty"
        raise DataError(f"{where}; expected a class name in each line, in the order of the model's outputs.")
    return _of_rows([_parts_of(line) for line in lines], str(path))


def _parts_of(line: str) -> list[str]:
    """The line, and its two parts if it has a tab, or begins with a synset or a number, or ends with `,number`."""
    for pattern in (r"([^\t]+)\t+(.+)", rf"({SYNSET.pattern})[\s,:]+(.+)", r"(\d+)[\s,:]+(.+)", r"(.+),\s*(\d+)"):
        found = re.fullmatch(pattern, line)
        if found:
            return [line, *(part.strip() for part in found.groups())]
    return [line]


def _of_json(content: Any, source: str) -> ClassNames:
    if isinstance(content, dict):
        for key in ("id2label", "label2id", "label_names", "classes", "class_to_idx", "vitrim"):
            if isinstance(content.get(key), dict | list):
                return _of_json(content[key], source)
        rows = [[valid_text(str(key)), *_strings(value)] for key, value in content.items()]
        return _of_rows(rows, source, in_order=False)
    if isinstance(content, list) and content:
        return _of_rows([_strings(value) for value in content], source)
    raise DataError(f"{source} has no class names; expected a list of names, or an object with a name for each output.")


def _strings(value: Any) -> list[str]:
    """The names of one class. Numbers and texts are names; other values are not."""
    parts = value if isinstance(value, list) else [value]
    if other := [part for part in parts if not isinstance(part, str | int | float)]:
        raise DataError(f"A class name is {shown(other[0])}; expected a text.")
    return [valid_text(str(part)) for part in parts]


def _of_rows(rows: Sequence[Sequence[str]], source: str, *, in_order: bool = True) -> ClassNames:
    """Turn rows into columns. A column with the numbers 0 to n - 1 states the order, if it is no name itself."""
    width = min(map(len, rows), default=0)
    if not width:
        raise DataError(f"{source} has no class names; expected a name for each output of the model.")
    repeated = next((row for row, after in pairwise(sorted(map(list, rows))) if row == after), None)
    if repeated:
        raise DataError(
            f"{source} has {repeated[0]!r} twice; expected a name of its own for each output of the model. Rename "
            f"one, or write the number of the output before each name, such as `0 {repeated[0]}`."
        )
    columns = [tuple(row[column] for row in rows) for column in range(width)]
    if all(len(set(column)) < len(column) for column in columns):
        raise DataError(
            f"{source} has names in {width} columns, and each column has a name twice; expected one without."
        )
    counting = sorted(map(str, range(len(rows))))
    numbers = next((column for column in columns if sorted(column) == counting), None) if width > 1 else None
    if numbers is None:
        return ClassNames(source=source, columns=tuple(columns), in_order=in_order)
    order = sorted(range(len(rows)), key=lambda row: int(numbers[row]))
    columns = [*(column for column in columns if column is not numbers), numbers]
    return ClassNames(source=source, columns=tuple(tuple(column[row] for row in order) for column in columns))


# Orders


def number_of(digits: str) -> float:
    """The number that a text of digits is; infinite for thousands of digits, which Python does not read."""
    return int(digits) if len(digits) <= MAX_DIGITS else math.inf


def natural_key(name: str) -> list[Any]:
    """The key by which timm sorts class folders: numbers by their value, letters whatever their case."""
    parts = re.split(r"(\d+)", name.lower())
    return [number_of(part) if position % 2 else part for position, part in enumerate(parts)]


def folder_orders(classes: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The usual orders of class folders: for each order, the position of each class.

    Orders are left out if an earlier one places every class in the same position. The Unicode normal form of a name
    matters too: macOS may decompose an accent, which then sorts elsewhere.
    """
    forms: Mapping[str, Callable[[str], str]] = {"": str, " of composed accents": _nfc, " of decomposed accents": _nfd}
    orders: dict[str, tuple[int, ...]] = {}
    keys: Mapping[str, Callable[[str], Any]] = {"code point order": str, "timm's natural order": natural_key}
    for kind, key in keys.items():
        for suffix, form in forms.items():
            ranked = sorted(range(len(classes)), key=lambda index: (key(form(classes[index])), classes[index]))
            position = {index: rank for rank, index in enumerate(ranked)}
            order = tuple(position[index] for index in range(len(classes)))
            if order not in orders.values():
                orders[f"{kind}{suffix}"] = order
    return orders


def are_numbered(names: Sequence[str]) -> bool:
    """Whether the names only count the outputs from 0, such as `LABEL_0` or `class_0`: then they name nothing."""
    found = [GENERATED.fullmatch(name) for name in names]
    return bool(names) and all(match and int(match[1]) == index for index, match in enumerate(found))


# Joining


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _nfd(name: str) -> str:
    return unicodedata.normalize("NFD", name)


def loose(name: str) -> str:
    """Without the difference of case, and of spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", _nfc(name).casefold()).strip()


COMPARISONS: Mapping[str, Callable[[str], str]] = {
    "": str,
    "only the Unicode form of accents differs": _nfc,
    "only case, spaces, underscores or hyphens differ": loose,
}


@dataclass(frozen=True)
class Joined:
    """Which of some names each folder means.

    Attributes:
        index: for each folder, the position of its name; None if no name fits, or several do.
        notes: sentences for the user about names that are not exactly equal.
        ambiguous: sentences about folders for which several names fit, or names for which several folders fit.
    """

    index: tuple[int | None, ...]
    notes: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether every folder has one name, and no two folders have the same."""
        return None not in self.index and not self.ambiguous


def join(folders: Sequence[str], names: Sequence[str]) -> Joined:
    """Find the name that each folder means: exactly equal, else equal in another Unicode form, else loosely equal.

    Loosely equal names differ only in case, spaces, underscores and hyphens. An empty name fits no folder.
    """
    tables: dict[str, dict[str, list[int]]] = {}
    for kind, key in COMPARISONS.items():
        for position, name in enumerate(names):
            if name:
                tables.setdefault(kind, {}).setdefault(key(name), []).append(position)
    index: list[int | None] = []
    loosely: dict[str, list[tuple[str, str]]] = {}
    ambiguous = []
    for folder in folders:
        fitting = [kind for kind, key in COMPARISONS.items() if key(folder) in tables.get(kind, {})]
        kind = fitting[0] if fitting else ""
        found = tables[kind][COMPARISONS[kind](folder)] if fitting else []
        index.append(found[0] if len(found) == 1 else None)
        if len(found) > 1:
            shown = " and ".join(f"{names[position]!r} (output {position})" for position in found[:3])
            ambiguous.append(f"the folder {folder!r} could be {shown}")
        elif found and kind:
            loosely.setdefault(kind, []).append((folder, names[found[0]]))
    by_name: dict[int, list[str]] = {}
    for folder, match in zip(folders, index, strict=True):
        if match is not None:
            by_name.setdefault(match, []).append(folder)
    for match, several in by_name.items():
        if len(several) > 1:
            ambiguous.append(f"the folders {' and '.join(map(repr, several[:3]))} could all be {names[match]!r}")
    notes = tuple(
        f"{len(pairs)} of {len(folders)} class names are matched although {kind}, such as the folder "
        f"{pairs[0][0]!r} with {pairs[0][1]!r}"
        for kind, pairs in loosely.items()
    )
    return Joined(tuple(index), notes, tuple(ambiguous))


def nearly_equal(names: Sequence[str]) -> tuple[str, ...]:
    """Return the first names that differ only in case, spaces, underscores and hyphens; empty if there are none.

    Names that differ only in their Unicode form are not counted.
    """
    having: dict[str, dict[str, str]] = {}
    for name in names:
        having.setdefault(loose(name), {}).setdefault(_nfc(name), name)
    return next((tuple(several.values()) for several in having.values() if len(several) > 1), ())


def look_up(names: Sequence[str], descriptions: Sequence[str]) -> tuple[int | None, ...]:
    """Find the description that each name means: all of it (`tench, Tinca tinca`), or a word in no other one (`tench`).

    Returns:
        For each name, the position of its description; None if there is none, or if there are several.
    """
    having: dict[str, set[int]] = {}
    for position, description in enumerate(descriptions):
        for word in description.split(", "):
            having.setdefault(loose(word), set()).add(position)
    found = []
    for name, whole in zip(names, join(names, descriptions).index, strict=True):
        possible = having.get(loose(name), set())
        found.append(next(iter(possible)) if whole is None and len(possible) == 1 else whole)
    return tuple(found)


def join_splits(validation: Sequence[str], training: Sequence[str]) -> tuple[tuple[int | None, ...], tuple[str, ...]]:
    """Find the training class of each validation folder; None if there is none.

    Returns:
        The positions in `training`, and notes for the user about names that are not exactly equal.

    Raises:
        DataError: several folders of one split fit one folder of the other.
    """
    joined = join(validation, training)
    if joined.ambiguous:
        raise DataError(
            f"The class folders of training and validation cannot be matched: {joined.ambiguous[0]}. Expected one "
            "folder of each class in each split; rename or merge them."
        )
    return joined.index, joined.notes
