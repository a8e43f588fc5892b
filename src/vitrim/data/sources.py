"""Find a data set: a folder on disk, an archive, or a download.

How a folder is read is in `layouts`. Downloads and unpacked archives are kept in the user's cache folder.
"""

import hashlib
import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrim.data.layouts import VALIDATION_NAMES, Found, read_classes, read_digits, read_layout, visible_folders
from vitrim.errors import DataError
from vitrim.runs.progress import is_interactive, log

DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer or without data


@dataclass(frozen=True, kw_only=True)
class NamedDataset:
    """A data set that vitrim knows by name.

    Attributes:
        num_classes: a folder with another number of classes is not this data set.
        pattern: regular expression for the name of a folder or archive, in lower case without punctuation.
        url: of the official archive.
        md5: checksum of this archive.
        folder_names: official names of the unpacked folder, for messages.
    """

    num_classes: int
    pattern: str
    url: str
    md5: str
    folder_names: str


SOURCES = {
    "cifar10": NamedDataset(
        num_classes=10,
        pattern="cifar10(?!0)",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder_names="cifar-10-batches-py, cifar-10-batches-bin",
    ),
    "cifar100": NamedDataset(
        num_classes=100,
        pattern="cifar100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        md5="03b5dce01913d631647c71ecec9e9cb8",
        folder_names="cifar-100-python, cifar-100-binary",
    ),
    "tiny-imagenet": NamedDataset(
        num_classes=200,
        pattern="tinyimagenet",
        url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        md5="90528d7ca1a48142e341f4ef8d21d0de",
        folder_names="tiny-imagenet-200",
    ),
}


def find(name: str, data_dir: str | Path | None, cache: Path) -> Found:
    """Find and list a data set; download it into `cache` if it is a named one that is not there.

    Args:
        name: `digits`, a key of `SOURCES`, or the path of a folder.
        data_dir: where a named data set is looked for instead of `cache`; nothing is downloaded then.
        cache: folder for downloads and unpacked archives.

    Raises:
        DataError: there is no such data set, it is damaged, or its download failed.
    """
    if name == "digits":
        return read_digits()
    if name not in SOURCES:
        return _find_path(name)
    if data_dir is not None:
        folder = _existing_folder(data_dir)
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


def _find_path(name: str) -> Found:
    if not name or not Path(name).expanduser().exists():
        known = ", ".join(["digits", *SOURCES])
        raise DataError(f"There is no data set or folder {name!r}; give the path of a folder, or one of {known}.")
    folder = _existing_folder(name)
    found = read_layout(folder)
    if found is not None:
        return found
    inside = [path.name for path in visible_folders(folder)]
    if inside and {name.lower() for name in inside} <= set(VALIDATION_NAMES):
        raise DataError(
            f"{folder} has a folder {inside[0]} but no folder train; put the training images into a folder train."
        )
    classes, train, not_images = read_classes(folder)
    return Found(classes=classes, train=train, not_images=tuple(not_images))


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder; unpack it and" if folder.exists() else "does not exist;"
        raise DataError(f"{folder} {what} give the path of the folder that holds the images.")
    return folder


def _search(name: str, folder: Path, cache: Path) -> Found | None:
    """Look for a named data set in `folder`, then in folders and archives there that have its name."""
    source = SOURCES[name]
    similar = [path for path in sorted(folder.iterdir()) if re.match(source.pattern, _letters(path.name))]
    for candidate in (folder, *_with_children(similar)):
        found = read_layout(candidate)
        if found is not None and len(found.classes) == source.num_classes:
            return found
    for archive in similar:
        if archive.is_file() and archive.name.lower().endswith((".tar.gz", ".tgz", ".tar", ".zip")):
            for candidate in _with_children([_unpack(archive, cache)]):
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


def _unpack(archive: Path, cache: Path) -> Path:
    """Return the folder of the unpacked archive in the cache. Unpack it unless that was done before."""
    status = archive.stat()
    version = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:8]
    target = cache / "unpacked" / f"{archive.name}-{version}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / "unpacked"
            if archive.name.lower().endswith(".zip"):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(partial)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(partial, filter="data")
            if not target.is_dir():  # another process may have unpacked it in the meantime
                partial.rename(target)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"Could not unpack {archive} into {target.parent} ({error}); download the archive again."
        ) from error
    return target
