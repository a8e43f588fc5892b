"""Find a data set: a folder on disk, a named data set, or a download."""

import hashlib
import http.client
import os
import re
import socket
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrim.data.layouts import VALIDATION_NAMES, Found, read_classes, read_digits, read_layout, visible_folders
from vitrim.errors import DataError


@dataclass(frozen=True)
class NamedDataset:
    """A data set with a name: its number of classes, how folders of it are called, where it is, what to look for."""

    num_classes: int
    pattern: str  # of a folder's or archive's name without punctuation, in small letters
    url: str
    md5: str
    looked_for: str


SOURCES = {
    "cifar10": NamedDataset(
        10,
        "cifar10(?!0)",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-py, cifar-10-batches-bin",
    ),
    "cifar100": NamedDataset(
        100,
        "cifar100",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-python, cifar-100-binary",
    ),
    "tiny-imagenet": NamedDataset(
        200,
        "tinyimagenet",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "90528d7ca1a48142e341f4ef8d21d0de",
        "tiny-imagenet-200",
    ),
}


def default_cache_dir() -> Path:
    """`vitrim` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vitrim"


def find(name: str, data_dir: str | Path | None, cache: Path) -> Found:
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
                f"{folder} does not hold {name}: looked there and one level below for {source.looked_for}, an archive "
                f"(.tar.gz, .zip) of one of these, or folders train and val with {source.num_classes} class folders."
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
        raise DataError(f"{folder} has a folder {inside[0]} but no folder train; put the training images there.")
    classes, train, not_images = read_classes(folder)
    return Found(classes=classes, train=train, not_images=tuple(not_images))


def _existing_folder(path: str | Path) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is a file, not a folder; unpack it and" if folder.exists() else "does not exist;"
        raise DataError(f"{folder} {what} give the path of the folder that holds the images.")
    return folder


def _search(name: str, folder: Path, cache: Path) -> Found | None:
    """Look for a named data set in `folder`, in the folders below that are called like it, and in archives of it."""
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
    """Fetch the archive of a named data set into the cache: whole and with the right checksum, or not at all."""
    from torchvision.datasets.utils import download_url

    source = SOURCES[name]
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # the library waits for ever otherwise
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
            download_url(source.url, folder, md5=source.md5)
            file = os.path.basename(source.url)
            os.replace(os.path.join(folder, file), cache / file)  # at once: another process may be loading too
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(
            f"Could not download {name} from {source.url} into {cache} ({error}); "
            "fetch it by hand and give its folder with --data-dir."
        ) from error
    finally:
        socket.setdefaulttimeout(previous)


def _unpack(archive: Path, cache: Path) -> Path:
    """Unpack an archive into the cache, unless it was before, and return the folder."""
    status = archive.stat()
    version = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:8]
    target = cache / "unpacked" / f"{archive.name}-{version}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as folder:
            partial = Path(folder) / "whole"
            if archive.name.lower().endswith(".zip"):
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(partial)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(partial, filter="data")
            if not target.is_dir():  # another process may have been faster
                partial.rename(target)
    except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"Could not unpack {archive} into {target.parent} ({error}); fetch the archive again."
        ) from error
    return target
