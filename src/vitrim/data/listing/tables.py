"""Read tables of files and labels: CSV, TSV, JSON lines, and lists with "path label" in each line.

Parses text and chooses columns. Which files the rows name is found in `listed_images`. A table is data: nothing in it
is executed.
"""

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrim.data.listing.split_names import TEST, TRAIN, VALIDATION, role_of
from vitrim.data.listing.suffixes import is_ignored, is_image
from vitrim.errors import DataError
from vitrim.runs.text_files import MAX_TABLE_BYTES, read_bytes

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
LIST_SUFFIXES = (".txt", ".lst", ".list")  # in a folder, only read if their name is that of a split
LISTS = (*TABLE_SUFFIXES, *LIST_SUFFIXES)
_FILE_NAMES = {
    *("filename", "file", "filepath", "path", "image", "imagename", "imagefile", "imagefilename", "imagepath"),
    *("imageid", "img", "imgname", "imgpath", "imgid", "id", "name", "fname", "uuid"),
}
_LABEL_NAMES = {
    *("label", "labels", "labelname", "labelid", "class", "classes", "classname", "classid", "category"),
    *("categoryname", "categoryid", "target", "y", "gt", "groundtruth", "species", "breed", "variety", "dx"),
    *("diagnosis", "disease", "predictionstring"),
}
_SPLIT_NAMES = {"split", "set", "subset", "partition", "phase", "fold", "dataset", "usage"}
_FLAGS = {  # columns that say of each image whether it is of this split, such as fastai's `is_valid`
    **dict.fromkeys(("istrain", "istraining"), TRAIN),
    **dict.fromkeys(("isval", "isvalid", "isvalidation"), VALIDATION),
    "istest": TEST,
}
_TRUTHS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")


class NoImagesNamed(DataError):
    """No column of a table names images that exist."""


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Columns that the user named; None for those to be found.

    Attributes:
        image: column of file names, of ids of files, or of images.
        label: column of class names or numbers.
    """

    image: str | None = None
    label: str | None = None

    def __bool__(self) -> bool:
        return bool(self.image or self.label)


NO_COLUMNS = ColumnNames()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image of a table.

    Attributes:
        image: name, path or id of the file, as written.
        label: class, as written. Empty if there is none.
        split: text of the column that names the split; empty if there is no such column.
    """

    image: str
    label: str
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The cells of a table.

    Attributes:
        file: where it was read from.
        columns: names of the columns; `1`, `2`, ... if the table has no header.
        rows: cells of each row, as many as there are columns.
    """

    file: Path
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column."""
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def read_table(file: Path, names: ColumnNames) -> Table:
    """Parse a table.

    The first row is a header if it has a column name that is known or asked for.

    Raises:
        DataError: the file is empty or is not a table, or a row has another number of cells than the first.
    """
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _read_json_lines(file)
    cells = _split_lines(file) if suffix in LIST_SUFFIXES else _read_csv(file)
    rows = [row for row in cells if any(row)]
    if not rows:
        raise DataError(f"{file} is empty; expected a row for each image, with its file name and its label.")
    uneven = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if uneven is not None:
        raise DataError(
            f"Row {uneven} of {file} has {len(rows[uneven - 1])} cells, but row 1 has {len(rows[0])}. "
            "Put cells with commas or spaces into quotation marks."
        )
    known = _FILE_NAMES | _LABEL_NAMES | {_letters(name) for name in (names.image, names.label) if name}
    is_header = any(_letters(cell) in known for cell in rows[0]) and not any(is_image(cell) for cell in rows[0])
    columns = rows[0] if is_header else [str(number) for number in range(1, len(rows[0]) + 1)]
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise DataError(f"{file} has several columns {repeated[0]!r}; rename all but one.")
    return Table(file=file, columns=tuple(columns), rows=tuple(tuple(row) for row in rows[is_header:]))


def choose_rows(table: Table, names: ColumnNames, is_found: Callable[[str], bool]) -> tuple[list[Row], str]:
    """Choose the columns of a table, by their names and by what they hold.

    Args:
        table: the table.
        names: columns that the user named.
        is_found: whether a cell names an image.

    Returns:
        A row for each image, and the names of the columns for the user.

    Raises:
        DataError: a column that was asked for does not exist, or it is not certain which column is meant.
    """
    for name, setting in ((names.image, "image_column"), (names.label, "label_column")):
        if name and name not in table.columns:
            raise DataError(
                f"{setting} is {name!r}, but {table.file} has the columns {_listed(table.columns)}. Use one of them."
            )
    image = names.image or _image_column(table, names, is_found)
    table, image = _with_header(table, image, is_found)
    split, splits = _split_columns(table, {image, names.label})
    label, labels = _label_column(table, names, {image, *split})
    images = table.column(image)
    rows = [Row(image=a, label=b, split=c) for a, b, c in zip(images, labels, splits, strict=True)]
    shown = f"columns {', '.join([image, label, *split])}" if label else f"column {image}"
    unused = [
        name
        for name in table.columns
        if _letters(name) in {*_SPLIT_NAMES, *_FLAGS} and name not in (image, label, *split)
    ]
    return rows, "; ".join([shown, *(f"{name} is not used, as its values name no split" for name in unused)])


def is_label_name(name: str) -> bool:
    """Whether a name of a column says that it holds labels."""
    return _letters(name) in _LABEL_NAMES


def has_label_column(table: Table) -> bool:
    """Whether a column has a name that says that it holds labels."""
    return any(is_label_name(name) for name in table.columns) or table.columns[0] == "1"


def labels_in_order(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the different labels: numbers by size, words by the alphabet."""
    different = set(labels)
    if all(re.fullmatch(r"-?\d{1,4000}", label) for label in different):
        return tuple(sorted(different, key=int))
    return tuple(sorted(different))


def _image_column(table: Table, names: ColumnNames, is_found: Callable[[str], bool]) -> str:
    sample = table.rows[:: max(1, len(table.rows) // 50)]
    found = {
        name: sum(is_found(row[index]) for row in sample)
        for index, name in enumerate(table.columns)
        if name != names.label
    }
    fitting = [name for name, count in found.items() if 2 * count > len(sample)]
    named = [name for name in fitting if _letters(name) in _FILE_NAMES]
    paths = [name for name in fitting if is_image(table.rows[0][table.columns.index(name)])]
    for choice in (fitting, named, paths):
        if len(choice) == 1:
            return choice[0]
    if fitting:
        raise DataError(
            f"{table.file} has several columns that name images: {', '.join(fitting)}. "
            f"Choose one with image_column ({_option('image', fitting[0])})."
        )
    pixels = " Pixel values in a table are not read." if any("pixel" in name.lower() for name in table.columns) else ""
    raise NoImagesNamed(
        f"No column of {table.file} names images that exist below {table.file.parent}. It has the columns "
        f"{_listed(table.columns)}; the first row is {_listed(table.rows[0]) if table.rows else 'missing'}.{pixels} "
        "Write paths from the folder of the table, or file names, or choose a column with image_column "
        f"({_option('image', table.columns[0])})."
    )


def _with_header(table: Table, image: str, is_found: Callable[[str], bool]) -> tuple[Table, str]:
    """Take the first row for a header if it is the only one that names no image, such as `photo,kind`."""
    first = table.rows[0][table.columns.index(image)]
    if table.columns[0] != "1" or is_image(first) or is_found(first) or len(set(table.rows[0])) < len(table.columns):
        return table, image
    return Table(file=table.file, columns=table.rows[0], rows=table.rows[1:]), first


def _split_columns(table: Table, other: set[str | None]) -> tuple[list[str], list[str]]:
    """The names of the columns that say the split of each image, none or more, and its split; empty if unknown."""
    for name in table.columns:
        if name in other or _letters(name) not in _SPLIT_NAMES:
            continue
        splits = table.column(name)
        if None not in {role_of(value) for value in splits}:
            return [name], splits
        if _letters(name) == "split":
            raise DataError(
                f"Column {name} of {table.file} has the values {_listed(sorted(set(splits)))}; expected names such as "
                "train, val and test. Rename the values, or the column if it names no split."
            )
    roles = {name: _FLAGS[_letters(name)] for name in table.columns if name not in other and _letters(name) in _FLAGS}
    columns = {name: [_TRUTHS.get(value.lower()) for value in table.column(name)] for name in roles}
    flags = {roles[name]: values for name, values in columns.items() if None not in values}
    rest = VALIDATION if TRAIN in flags else TRAIN
    splits = [
        next((role for role in flags if flags[role][row]), rest if flags else "") for row in range(len(table.rows))
    ]
    return [name for name, values in columns.items() if None not in values], splits


def _label_column(table: Table, names: ColumnNames, other: set[str]) -> tuple[str, list[str]]:
    """The name of the column of labels, and its cells. The name is empty if the labels are names of folders."""
    if names.label:
        return names.label, _clean(table.column(names.label), names.label)
    free = [name for name in table.columns if name not in other and not _is_index(name)]
    known = [name for name in free if _letters(name) in _LABEL_NAMES]
    if len(known) > 1 and (same := _same_classes(table, known)):
        known = [same]
    if len(known) == 1 or len(free) == 1:
        name = (known or free)[0]
        return name, _clean(table.column(name), name)
    if not free and len(table.columns) == 1 and all("/" in row[0].replace("\\", "/") for row in table.rows):
        return "", [row[0].replace("\\", "/").rstrip("/").split("/")[-2] for row in table.rows]  # `rose/1.jpg`
    if not known and (one_hot := _one_hot(table, free)):
        return f"{free[0]} to {free[-1]}", one_hot
    if not free:
        raise DataError(f"{table.file} has no column of labels, only {_listed(table.columns)}. Add a column label.")
    raise DataError(
        f"It is not certain which column of {table.file} has the labels: {_listed(known or free)}. "
        f"Choose one with label_column ({_option('label', (known or free)[0])})."
    )


def _is_index(name: str) -> bool:
    """Whether a column is the numbers of the rows, which pandas writes without a name."""
    return not name or name.startswith("Unnamed")


def _same_classes(table: Table, names: Sequence[str]) -> str:
    """Of columns that divide the images into the same classes, the one with words. Empty if their classes differ."""
    columns = {name: table.column(name) for name in names}
    numbers = {len(set(values)) for values in columns.values()}
    if len(numbers) > 1 or len(set(zip(*columns.values(), strict=True))) not in numbers:
        return ""
    words = [name for name, values in columns.items() if not all(_NUMBER.fullmatch(value) for value in values)]
    return (words or list(names))[0]


def _one_hot(table: Table, names: Sequence[str]) -> list[str]:
    """The names of the columns that hold the only 1 of each row. Empty if a row is not of zeros and one 1."""
    labels = []
    indices = [table.columns.index(name) for name in names]
    for row in table.rows:
        ones = [index for index in indices if row[index] in ("1", "1.0")]
        if len(ones) != 1 or any(row[index] not in ("0", "0.0", "1", "1.0") for index in indices):
            return []
        labels.append(table.columns[ones[0]])
    return labels


def _clean(labels: list[str], column: str) -> list[str]:
    """Labels without what follows the class in ImageNet's `PredictionString`, and `1` for `1.0`."""
    if _letters(column) == "predictionstring":
        return [label.split()[0] if label else "" for label in labels]
    if all(re.fullmatch(r"\d+\.0*|", label) for label in labels):  # pandas writes whole numbers so beside empty cells
        return [label.partition(".")[0] for label in labels]
    return labels


def _read_csv(file: Path) -> list[list[str]]:
    text = _text(file)
    first = text.lstrip().partition("\n")[0]
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t|", key=first.count)
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True))
    except csv.Error as error:
        raise DataError(f"{file} is not a table of text ({error}); expected a CSV file with a header.") from error
    return [[cell.strip() for cell in row] for row in rows]


def _split_lines(file: Path) -> list[list[str]]:
    """Lines of `path label`. The label is what follows the last tab, comma or space; a path may have spaces."""
    lines = [line.strip() for line in _text(file).splitlines() if line.strip()]
    if all(is_image(line) for line in lines):  # only paths: the class is the folder
        return [[line] for line in lines]
    if all("\t" in line for line in lines):
        return [[cell.strip() for cell in line.split("\t")] for line in lines]
    mark = next((mark for mark in (",", ";") if all(mark in line for line in lines)), None)
    return [[cell.strip() for cell in line.rsplit(mark, 1)] for line in lines]


def _read_json_lines(file: Path) -> Table:
    rows: list[dict[str, str]] = []
    for number, line in enumerate(_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"Line {number} of {file} is not JSON ({error}); expected an object in each line."
            ) from None
        if not isinstance(values, Mapping):
            raise DataError(
                f"Line {number} of {file} is {line[:40]!r}; expected an object such as {{'file_name': ...}}."
            )
        rows.append({key: "" if value is None else str(value) for key, value in values.items()})
    if not rows:
        raise DataError(f"{file} is empty; expected an object for each image, with its file name and its label.")
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table(file=file, columns=columns, rows=tuple(tuple(row.get(name, "") for name in columns) for row in rows))


def _text(file: Path) -> str:
    content = read_bytes(file, MAX_TABLE_BYTES, DataError)
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not text in UTF-8 ({error.reason}); save it as a CSV file in UTF-8.") from None
    if "\0" in text:
        raise DataError(f"{file} is not a text file; expected a table of file names and labels.")
    return text


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name.lower())


def _listed(values: Sequence[str]) -> str:
    shown = [value if len(value) <= 40 else f"{value[:40]}..." for value in values[:8]]
    return ", ".join(shown) + (", ..." if len(values) > 8 else "")


def _option(kind: str, name: str) -> str:
    return f"--{kind}-column {name}" if " " not in name else f'--{kind}-column "{name}"'


def is_table(file: Path) -> bool:
    """Whether the suffix of a file is that of a table or a list."""
    return file.suffix.lower() in LISTS and file.is_file()


def files_in(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the visible files in a folder that have one of the suffixes, sorted."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(tuple(suffixes))]
    return sorted(folder / name for name in names if not is_ignored(name) and (folder / name).is_file())
