"""Archives are unpacked into the cache, and nothing outside of it; damaged and absurd ones are named."""

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitrim.data.listing.archives import unpack
from vitrim.errors import DataError


def tar(path: Path, *members: tarfile.TarInfo) -> Path:
    """Write a tar file with one good file, and these members."""
    with tarfile.open(path, "w") as opened:
        good = tarfile.TarInfo("folder/good.png")
        good.size = 4
        opened.addfile(good, io.BytesIO(b"good"))
        for member in members:
            opened.addfile(member, io.BytesIO(b"x" * member.size) if member.size < 9 else None)
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.size = kind, link, size
    return found


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in ("folder/good.png", *names):
            opened.writestr(name, b"good")
    return path


def changed(path: Path, change: Callable[[bytearray, int], None]) -> Path:
    """Change the bytes of a zip file; the second argument is where the entry of the first file begins."""
    content = bytearray(path.read_bytes())
    change(content, content.find(b"PK\x01\x02"))
    path.write_bytes(content)
    return path


def set_bytes(offset: int, value: bytes) -> Callable[[bytearray, int], None]:
    def change(content: bytearray, start: int) -> None:
        content[start + offset : start + offset + len(value)] = value

    return change


OUTSIDE: dict[str, Callable[[Path], Path]] = {
    "tar with ..": lambda p: tar(p / "a.tar", member("../evil", size=4)),
    "tar with a link": lambda p: tar(p / "a.tar", member("folder/link", tarfile.SYMTYPE, "../../../evil")),
    "tar with an absolute link": lambda p: tar(p / "a.tar", member("folder/link", tarfile.SYMTYPE, "/etc/passwd")),
    "tar with a hard link": lambda p: tar(p / "a.tar", member("folder/link", tarfile.LNKTYPE, "/etc/passwd")),
    "tar with a device": lambda p: tar(p / "a.tar", member("folder/null", tarfile.CHRTYPE)),
    "tar with a pipe": lambda p: tar(p / "a.tar", member("folder/pipe", tarfile.FIFOTYPE)),
    "zip with ..": lambda p: zipped(p / "a.zip", "../evil"),
    "zip with an absolute name": lambda p: zipped(p / "a.zip", "/evil"),
    "zip with a drive": lambda p: zipped(p / "a.zip", "C:\\evil"),
}
DAMAGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "tar that is too large": (lambda p: tar(p / "a.tar", member("folder/big", size=10**15)), "needs at least 1e.06 GB"),
    "zip with a password": (lambda p: changed(zipped(p / "a.zip"), set_bytes(8, b"\x01")), "password"),
    "zip of an unknown method": (
        lambda p: changed(zipped(p / "a.zip"), set_bytes(10, b"\x63\x00")),
        "could not unpack",
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_nothing_is_written_outside(case: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"outside|could not unpack"):
        unpack(OUTSIDE[case](tmp_path), tmp_path / "cache")
    assert not list(tmp_path.rglob("*evil*"))
    assert not list((tmp_path / "cache" / "unpacked").iterdir())


@pytest.mark.parametrize("case", DAMAGED)
def test_what_cannot_be_unpacked_is_named(case: str, tmp_path: Path) -> None:
    make, message = DAMAGED[case]
    with pytest.raises(DataError, match=message) as found:
        unpack(make(tmp_path), tmp_path / "cache")
    assert "\n" not in str(found.value)
    assert not list((tmp_path / "cache" / "unpacked").iterdir())


@pytest.mark.parametrize("make", [zipped, tar])
def test_more_bytes_than_there_is_space_are_refused(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make(tmp_path / ("a.zip" if make is zipped else "a.tar"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(DataError, match=r"needs at least .* GB unpacked"):
        unpack(archive, tmp_path / "cache")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2"])
@pytest.mark.parametrize(
    "content", [b"", b"junk" * 99, b"\x1f\x8b\x08\x00junk", b"PK\x03\x04junk", b"\xfd7zXZ\x00junk"]
)
def test_files_that_are_no_archive_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="could not unpack"):
        unpack(tmp_path / name, tmp_path / "cache")


def test_a_link_in_a_zip_file_becomes_a_small_file(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("folder/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(link, "/etc/passwd")
    assert not (unpack(tmp_path / "a.zip", tmp_path / "cache") / "folder" / "link").is_symlink()
