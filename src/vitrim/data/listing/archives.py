"""Unpack an archive of images into the cache, and nothing outside of it.

Names with `..`, absolute names, links that lead out, devices, and more bytes than there is space are refused.
"""

import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from vitrim.asking import asking
from vitrim.errors import DataError
from vitrim.runs.text_files import encoded

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
BLOCK = 4096  # bytes that a file takes at least
DAMAGED = "Free space if the disk is full. Else download the archive again, or unpack it and give its folder."


def unpack(archive: Path, cache: Path) -> Path:
    """Return the folder of the unpacked archive in the cache. Unpack it unless that was done before.

    Raises:
        DataError: the archive is damaged, needs a password, has a file that would lie elsewhere, or is too large.
    """
    status = archive.stat()
    version = hashlib.sha256(encoded(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}")).hexdigest()[:8]
    target = cache / "unpacked" / f"{archive.name}-{version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    is_zip = archive.name.lower().endswith(".zip")
    with tempfile.TemporaryDirectory(dir=target.parent, ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / "unpacked"
        request = f"unpack {archive} into {target.parent}"
        with asking("zipfile" if is_zip else "tarfile", request, error=DataError, advice=DAMAGED):
            (_unpack_zip if is_zip else _unpack_tar)(archive, partial)
        partial.mkdir(exist_ok=True)  # the archive may be empty
        if not target.is_dir():  # another process may have unpacked it in the meantime
            partial.rename(target)
    return target


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        outside = next((member.filename for member in members if _leads_out(member.filename)), None)
        if outside is not None:
            raise _outside(archive, repr(outside))
        _check_space(archive, sum(max(BLOCK, member.file_size) for member in members), folder.parent)
        opened.extractall(folder)  # writes no more than the sizes that were added up; links become small files


def _unpack_tar(archive: Path, folder: Path) -> None:
    try:
        with tarfile.open(archive) as opened:
            # the filter refuses `..`, absolute names, devices and links out of the folder
            opened.extractall(folder, members=_within_space(archive, opened, folder.parent), filter="data")
    except tarfile.FilterError as error:
        raise _outside(archive, str(error)) from error


def _within_space(archive: Path, opened: tarfile.TarFile, folder: Path) -> Iterator[tarfile.TarInfo]:
    """The members in order. Their sizes are known one by one only, so the space is checked before each is written."""
    free, num_bytes = shutil.disk_usage(folder).free, 0
    for member in opened:
        num_bytes += max(BLOCK, member.size)
        if num_bytes > free:
            _check_space(archive, num_bytes, folder, free)
        yield member


def _check_space(archive: Path, num_bytes: int, folder: Path, free: int | None = None) -> None:
    free = shutil.disk_usage(folder).free if free is None else free
    if num_bytes > free:
        raise DataError(
            f"{archive} needs at least {num_bytes / 1e9:.3g} GB unpacked, but {folder} has {free / 1e9:.3g} GB left. "
            "Unpack it elsewhere, and give the path of the folder."
        )


def _outside(archive: Path, found: str) -> DataError:
    return DataError(f"{archive} has a file that would lie outside of its folder ({found}); unpack it by hand.")


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or not parts[0] or parts[0].endswith(":")
