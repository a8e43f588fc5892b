"""Find a data set: a folder or a table on disk, an archive, a Hugging Face data set, or a download.

How a folder is read is in `folders`. Downloads and unpacked archives are kept in the user's cache folder.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrim.data.listing.archives import ARCHIVES, unpack
from vitrim.data.listing.folders import read_folder, read_places
from vitrim.data.listing.hf_datasets import PREFIX, is_hf_data, read_hf
from vitrim.data.listing.layouts import read_digits, visible_folders
from vitrim.data.listing.parts import Found
from vitrim.data.listing.splits import read_layout
from vitrim.data.listing.suffixes import is_ignored
from vitrim.data.listing.table_folders import read_table_file
from vitrim.data.listing.tables import NO_COLUMNS, ColumnNames, is_table
from vitrim.errors import DataError, SettingError
from vitrim.known.datasets import SOURCES
from vitrim.known.meaning import nearest, nearest_path
from vitrim.runs.progress import is_interactive, log

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer or without data


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the user said about where images and labels are, besides the name of the data set.

    Attributes:
        data_dir: where a named data set is looked for instead of the cache; nothing is downloaded then.
        train: folders of training images.
        validation: folder of validation images.
        columns: columns of a table of labels, or of a Hugging Face data set.
    """

    data_dir: str | Path | None = None
    train: tuple[str | Path, ...] = ()
    validation: str | Path | None = None
    columns: ColumnNames = NO_COLUMNS


def find(name: str | None, places: Places, cache: Path) -> Found:
    """Find and list a data set; download it into `cache` if it is a named one that is not there.

    Args:
        name: `digits`, a key of `SOURCES`, the path of a folder, table or archive, or `hf:` and the path of a Hugging
            Face data set. None if `places` names the folders.
        places: what else was said.
        cache: folder for downloads and unpacked archives.

    Raises:
        DataError: there is no such data set, it is damaged, or its download failed.
    """
    try:
        return _find(name, places, cache)
    except PermissionError as error:
        raise DataError(f"{error.filename} cannot be read; you have no permission for it.") from error


def _find(name: str | None, places: Places, cache: Path) -> Found:
    if places.train or places.validation:
        return _find_places(name, places)
    assert name is not None
    if name == "digits":
        return read_digits()
    if name not in SOURCES:
        return _find_path(name, places.columns, cache)
    if places.data_dir is not None:
        folder = _existing_folder(places.data_dir)
        found = _search(name, folder, cache)
        if found is None:
            source = SOURCES[name]
            raise DataError(
                f"{folder} does not hold {name}. Looked there and one level below for {source.folder_names}, "
                "an archive (.tar.gz, .zip) of one of these, "
                f"or folders train and val with {source.num_classes} class folders."
            )
        return found
    found = _search(name, cache, cache) if cache.is_dir() else None
    if found is None:
        _download(name, cache)
        found = _search(name, cache, cache)
    assert found is not None, f"the official archive of {name} has an unknown layout"
    return found


def _find_places(name: str | None, places: Places) -> Found:
    """The folders of training and validation images that were named; paths from the folder `name`, if there is one."""
    root = _existing_folder(name) if name else None

    def folder(path: str | Path) -> Path:
        inside = root / Path(path).expanduser() if root else None
        return inside if inside and inside.is_dir() else _existing_folder(path)

    train = [folder(path) for path in places.train]
    validation = folder(places.validation) if places.validation else None
    if root and not train:
        raise SettingError(
            f"Only the validation folder {places.validation} was named beside the data set {root}. Name the training "
            "folder too, with --train-dir (in Python: train_dir), or leave out the data set to evaluate a model."
        )
    return read_places(train, validation, places.columns)


def _find_path(name: str, columns: ColumnNames, cache: Path) -> Found:
    if name.startswith(PREFIX):
        return read_hf(name.removeprefix(PREFIX), columns, cache)
    path = Path(name).expanduser()
    if not name or not path.exists():
        known = ["digits", *SOURCES]
        near = nearest_path(path) if name else None
        meant = near or (nearest(name, known) if "/" not in name else None)
        hint = f" Did you mean {meant}?" if meant else ""
        raise DataError(
            f"There is no data set or folder {name!r}; give the path of a folder, or one of {', '.join(known)}.{hint}"
        )
    if is_hf_data(path):
        return read_hf(str(path), columns, cache)
    if path.is_file() and path.name.lower().endswith(ARCHIVES):
        folder = _only_folder(unpack(path, cache))
        return read_hf(str(folder), columns, cache) if is_hf_data(folder) else read_folder(folder, columns)
    if is_table(path):
        return read_table_file(path, columns)
    return read_folder(_existing_folder(name), columns)


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        archive = "unpack it and " * folder.name.lower().endswith((".7z", ".rar", ".gz", ".zst", *ARCHIVES))
        what = f"is a file, not a folder; {archive}" if folder.exists() else "does not exist; "
        raise DataError(
            f"{folder} {what}give the path of the folder that holds the images, of an archive (zip, tar) or of a table "
            "of labels (csv, tsv, jsonl, txt)."
        )
    return folder


def _only_folder(folder: Path) -> Path:
    """The folder that an archive has at its top, if it has nothing else there; else the folder itself."""
    inside = visible_folders(folder)
    files = [path for path in folder.iterdir() if path.is_file() and not is_ignored(path.name)]
    return inside[0] if len(inside) == 1 and not files and visible_folders(inside[0]) else folder


def _search(name: str, folder: Path, cache: Path) -> Found | None:
    """Look for a named data set in `folder`, then in folders and archives there that have its name."""
    source = SOURCES[name]
    similar = [path for path in sorted(folder.iterdir()) if re.match(source.pattern, _letters(path.name))]
    for candidate in (folder, *_with_children(similar)):
        found = read_layout(candidate)
        if found is not None and len(found.classes) == source.num_classes:
            return found
    for archive in similar:
        if archive.is_file() and archive.name.lower().endswith(ARCHIVES):
            for candidate in _with_children([unpack(archive, cache)]):
                found = read_layout(candidate)
                if found is not None and len(found.classes) == source.num_classes:
                    return found
    return None


def _with_children(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield path
            yield from visible_folders(path)


def _letters(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def _download(name: str, cache: Path) -> None:
    """Download the archive of a named data set into the cache: the whole file with the right checksum, or nothing."""
    import pooch  # only needed here, and it takes time to import

    source = SOURCES[name]
    log(f"downloading {source.url} into {cache}")
    pooch.get_logger().setLevel("WARNING")  # pooch would print a line of its own
    downloader = pooch.HTTPDownloader(timeout=DOWNLOAD_TIMEOUT, progressbar=is_interactive())
    try:
        pooch.retrieve(
            source.url,
            known_hash=f"md5:{source.md5}",
            fname=source.url.rpartition("/")[2],
            path=cache,
            downloader=downloader,
        )
    except (OSError, ValueError) as error:  # ValueError: another checksum; the errors of requests are OSErrors
        reason = " ".join(str(error).split())
        raise DataError(
            f"Could not download {name} from {source.url} into {cache} ({reason}); "
            "download it by hand and pass its folder with --data-dir."
        ) from error
