"""Read Hugging Face data sets: folders of `save_to_disk`, parquet files, and names on the Hub.

The library `datasets` reads them; it is an optional package. Encoded images are written to the cache as files, once.
They are then decoded, skipped and kept in memory like the images of any folder. No code of a data set runs.
"""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from vitrim.asking import asking
from vitrim.data.images import ImageSet
from vitrim.data.listing.layouts import holds_images, walk
from vitrim.data.listing.listed_images import pick_validation
from vitrim.data.listing.parts import Found, Part, joined, only_evaluated, test_of
from vitrim.data.listing.split_names import TRAIN, role_of
from vitrim.data.listing.suffixes import is_image
from vitrim.data.listing.tables import ColumnNames, is_label_name, labels_in_order
from vitrim.errors import CheckpointMismatch, DataError, counted
from vitrim.runs.files import read_json
from vitrim.runs.progress import log, track
from vitrim.runs.text_files import encoded

PREFIX = "hf:"
EXPECTED = "Expected a folder of save_to_disk, parquet files, or a name on the Hub."
_SHARD = re.compile(r"-\d+-of-\d+$|[-_.]?\d+$")  # `train-00000-of-00002`, `0000`


def is_hf_data(path: Path) -> bool:
    """Whether a path is a folder of `save_to_disk`, a parquet file, or a folder of parquet files without images."""
    if path.is_file():
        return path.suffix.lower() == ".parquet"
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return True
    return path.is_dir() and not holds_images(path, levels=2) and bool(_parquet_files(path))


def read_hf(name: str, columns: ColumnNames, cache: Path) -> Found:
    """List the images of a Hugging Face data set.

    Args:
        name: path of a folder of `save_to_disk`, of a parquet file, or of a folder of them; or `USER/NAME` on the Hub.
        columns: of the images and of the labels, if they are not certain.
        cache: the images are written to its folder `huggingface`.

    Raises:
        DataError: the package is not installed, the data set cannot be read, or it is not certain which column is
            meant.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{name} is a Hugging Face data set. Install the package that reads it: pip install 'vitrim[hf]' "
            f"(the import of datasets failed: {error})"
        ) from error

    folder = cache / "huggingface"
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet(datasets), tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as arrow_files:
        splits, version = _open(datasets, name, arrow_files)
        return _found(datasets, name, splits, columns, folder / version)


def _reading(name: object) -> AbstractContextManager[None]:
    """A context in which `datasets` reads; its errors name the data set."""
    return asking("datasets", f"read {name} as a Hugging Face data set", error=DataError, advice=EXPECTED)


def _open(datasets: Any, name: str, arrow_files: str) -> tuple[dict[str, Any], str]:
    """The splits of a data set by their names, and a name for this version of it."""
    path = Path(name).expanduser()
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
            raise DataError(f"There is no folder or file {name}; give the path of a Hugging Face data set.")
        log(f"loading {name} from the Hugging Face Hub")
        with _reading(name):
            found = datasets.load_dataset(name)
        version = " ".join(file["filename"] for split in found.values() for file in split.cache_files)
        return dict(found), hashlib.sha256(encoded(f"{name} {version}")).hexdigest()[:16]
    version = _version(path)
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        _check_names(path)
        with _reading(path):
            found = datasets.load_from_disk(str(path))
        return (dict(found) if isinstance(found, datasets.DatasetDict) else {"": found}), version
    files = [str(path)] if path.is_file() else _parquet_files(path)
    if not files:
        hint = " It has images; leave out `hf:`." if path.is_dir() and holds_images(path, levels=3) else ""
        raise DataError(f"{path} has no dataset_dict.json, state.json or parquet file.{hint}")
    by_split: dict[str, list[str]] = {}
    for file in files:
        by_split.setdefault(_split_of(file, path), []).append(file)
    named = {split or "unnamed": paths for split, paths in by_split.items()}
    with _reading(path):
        return dict(datasets.load_dataset("parquet", data_files=named, cache_dir=arrow_files)), version


def _check_names(folder: Path) -> None:
    """Refuse a folder of `save_to_disk` that names splits or files outside of it.

    Raises:
        DataError: names what was found.
    """
    for file, key, inside in (("dataset_dict.json", "splits", None), ("state.json", "_data_files", "filename")):
        for found in sorted(folder.glob(file)) + sorted(folder.glob(f"*/{file}")):
            try:
                content = read_json(found)
            except CheckpointMismatch as problem:
                raise DataError(str(problem)) from None
            entries = content.get(key) if isinstance(content, dict) else None
            if not isinstance(entries, list):
                raise DataError(f"{found} has no list of {key.strip('_')}. It is damaged; save the data set again.")
            entries = [entry.get(inside) if inside and isinstance(entry, dict) else entry for entry in entries]
            for name in entries:
                if not isinstance(name, str) or Path(name).name != name or "\\" in name:
                    raise DataError(f"{found} names {str(name)[:200]!r}, which is no file of its folder.")


def _split_of(file: str, root: Path) -> str:
    """`train` for `data/train-00000-of-00002.parquet` and for `default/train/0000.parquet`. Empty if there is none."""
    stem = _SHARD.sub("", Path(file).stem)
    folders = Path(os.path.relpath(file, root)).parts[:-1]
    name = next((part for part in (stem, *reversed(folders)) if role_of(part)), "")
    return re.sub(r"\W", "_", name)


def _found(datasets: Any, name: str, splits: Mapping[str, Any], columns: ColumnNames, folder: Path) -> Found:
    roles: dict[str, str] = {}
    for split in splits:
        role = role_of(split) or (TRAIN if len(splits) == 1 else None)
        if role in roles:
            raise DataError(f"{name} has the splits {roles[role]} and {split}; which is meant is not certain.")
        if role:
            roles[role] = split
    if not roles:
        raise DataError(f"{name} has the splits {', '.join(splits)}; expected one named train, validation or test.")
    image, label = _columns(datasets, name, splits[roles.get(TRAIN) or next(iter(roles.values()))], columns)
    parts = {}
    notes = [f"columns {image}, {label}"]
    folder = folder / hashlib.sha256(encoded(image)).hexdigest()[:8]  # another column has other images
    for role, split in roles.items():
        place = Path(f"{name} (split {split})" if len(splits) > 1 else name)
        part = _part(datasets, place, splits[split], (image, label), folder / role)
        if part is None and role == TRAIN:
            raise DataError(f"{name} has no labels in column {label} of its split {split}.")
        if part is None:
            notes.append(f"split {split} is not used, because it has no labels")
        else:
            parts[role] = part
    notes += [f"split {split} is not used" for split in splits if split not in roles.values()]
    validation, unused = pick_validation(parts)
    if TRAIN in parts:
        return joined(parts[TRAIN], validation, [*notes, *unused], test=test_of(parts))
    if validation is None:
        raise DataError(f"{name} has no labels in column {label} of its split {', '.join(roles.values())}.")
    return only_evaluated(validation, [*notes, *unused], test=test_of(parts))


def _columns(datasets: Any, name: str, split: Any, columns: ColumnNames) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    features = split.features
    for asked, setting in ((columns.image, "image_column"), (columns.label, "label_column")):
        if asked and asked not in features:
            raise DataError(
                f"{setting} is {asked!r}, but {name} has the columns {', '.join(features)}. Use one of them."
            )
    images = [column for column, feature in features.items() if _is_image(datasets, feature)]
    images = [columns.image] if columns.image else images
    if len(images) != 1:
        what = f"several columns of images, {', '.join(images)}" if images else "no column of images"
        raise DataError(f"{name} has {what}; its columns are {', '.join(features)}. Choose one with --image-column.")
    free = [column for column in features if column not in images]
    named = [column for column in free if isinstance(features[column], datasets.ClassLabel)]
    named = named or [column for column in free if is_label_name(column)]
    labels = [columns.label] if columns.label else named or free
    if len(labels) != 1:
        what = f"several columns that may be labels, {', '.join(labels)}" if labels else "no column of labels"
        raise DataError(f"{name} has {what}. Choose one with --label-column (in Python: label_column).")
    return images[0], labels[0]


def _is_image(datasets: Any, feature: Any) -> bool:
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):  # an image in a parquet file without the notes of `datasets`
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _part(datasets: Any, place: Path, split: Any, columns: tuple[str, str], folder: Path) -> Part | None:
    """The images of a split, written to `folder`; None if none has a label."""
    image, label = columns
    feature = split.features[label]
    with _reading(place):
        values = list(split[label])
    if any(isinstance(value, (list, dict, float)) and value == value for value in values[:100]):
        raise DataError(
            f"Column {label} of {place} has values such as {values[0]!r}; expected one class for each image."
        )
    is_class = isinstance(feature, datasets.ClassLabel)
    known = [index for index, value in enumerate(values) if _is_label(value, is_class)]
    if not known:
        return None
    labels = [str(values[index]) for index in known]
    classes = tuple(feature.names) if is_class else labels_in_order(labels)
    if is_class and len(set(classes)) < len(classes):
        raise DataError(f"Column {label} of {place} has two classes of one name; rename one of them.")
    numbers = [values[index] for index in known] if is_class else [classes.index(text) for text in labels]
    rest = len(values) - len(known)
    with _reading(place):
        rows = split.select_columns([image])
        if isinstance(split.features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
    files = _written(_rows(rows, place), len(rows), image, folder)
    return Part(
        place=place,
        classes=classes,
        images=ImageSet(labels=torch.tensor(numbers), files=tuple(files[index] for index in known)),
        notes=(f"{counted(rest, 'image')} without a label: not used",) if rest else (),
    )


def _is_label(value: Any, is_class: bool) -> bool:
    return value is not None and value == value and (value >= 0 if is_class else str(value) != "")


def _rows(rows: Any, place: Path) -> Iterator[Any]:
    """The rows one by one, as `datasets` reads them."""
    with _reading(place):
        iterator = iter(rows)
    while True:
        with _reading(place):
            row = next(iterator, None)
        if row is None:
            return
        yield row


def _written(rows: Iterator[Any], num_rows: int, image: str, folder: Path) -> list[str]:
    """The paths of the images. Encoded images are written to `folder`, all or none; others are files already."""
    exists = folder.is_dir()
    written = sorted(str(path) for path in folder.iterdir()) if exists else []
    if exists and len(written) == num_rows:
        return written
    names: list[str] = []
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        partial = Path(temporary) / "images"
        partial.mkdir()
        for number, row in enumerate(track(rows, f"Writing images to {folder}", total=num_rows)):
            value = row[image]
            content, path = (value, None) if isinstance(value, bytes) else _content(value)
            if content is None:
                names.append(path or str(folder / f"{number:08}.missing"))  # skipped and named as an unreadable image
                continue
            suffix = Path(path or "").suffix.lower()
            name = f"{number:08}{suffix if is_image(suffix) else '.image'}"
            if not exists:
                (partial / name).write_bytes(content)
            names.append(str(folder / name))
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has written the same images
                raise
    return names


def _content(value: Mapping[str, Any] | None) -> tuple[bytes | None, str | None]:
    return (value.get("bytes"), value.get("path")) if value else (None, None)


def _parquet_files(folder: Path) -> list[str]:
    return [file for file in walk(folder) if file.lower().endswith(".parquet")]


def _version(path: Path) -> str:
    """A name that differs between data sets, and between versions of one."""
    digest = hashlib.sha256(encoded(str(path.resolve())))
    for file in [str(path)] if path.is_file() else walk(path):
        status = os.stat(file)
        digest.update(encoded(f"{file} {status.st_size} {status.st_mtime_ns}\n"))
    return digest.hexdigest()[:16]


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the progress bars and messages of `datasets`: vitrim shows its own."""
    shown, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # what fails becomes the error message
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
