"""Laws of finding data sets: by folder, by archive, by download; a failed download leaves nothing."""

import gc
import hashlib
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from builders.images import image_folder, tiny_imagenet, write_cifar
from builders.logs import logged
from vitrim.data.listing import sources
from vitrim.data.loading import load_data
from vitrim.errors import DataError

OFFICIAL = sources.SOURCES["cifar10"]
ARCHIVE = "cifar-10-binary.tar.gz"


def test_a_named_data_set_is_found_in_its_folder_in_the_parent_or_as_an_archive(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path / "disk" / "tiny-imagenet-200", num_classes=200, images_per_class=1)
    (tmp_path / "archives").mkdir()
    with zipfile.ZipFile(tmp_path / "archives" / "tiny-imagenet-200.zip", "w") as archive:
        for path in sorted((tmp_path / "disk").rglob("*.*")):
            archive.write(path, path.relative_to(tmp_path / "disk"))
    prints = {
        load_data("tiny-imagenet", data_dir=place, cache_dir=tmp_path / "cache", memory_bytes=0).fingerprint()
        for place in (tmp_path / "disk", tmp_path / "disk" / "tiny-imagenet-200", tmp_path / "archives")
    }
    assert len(prints) == 1


def test_a_data_dir_with_something_else_is_refused_and_the_error_says_what_was_looked_for(tmp_path: Path) -> None:
    image_folder(tmp_path, {"train": 1, "val": 1})
    with pytest.raises(DataError, match=r"cifar-100-python.*archive.*100 class folders"):
        load_data("cifar100", data_dir=tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_data("cifar100", data_dir=tmp_path / "absent")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar10.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"could not unpack .*cifar10\.zip"):
        load_data("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache")


# Archives of the user's own images


def zipped(file: Path, folder: Path, top: str = "") -> Path:
    """A zip file with the files of a folder, at `top` in the archive."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, Path(top) / path.relative_to(folder))
    return file


@pytest.mark.parametrize("top", ["", "flowers"])
def test_an_archive_of_an_image_folder_gives_the_images_of_the_folder(tmp_path: Path, top: str) -> None:
    folder = image_folder(tmp_path / "images", {"Training": 2, "Testing": 1})
    zipped(tmp_path / "a.zip", folder, top)
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        archive.add(folder, top or ".")
    expected = load_data(folder)
    for name in ("a.zip", "a.tar.xz"):
        loaded = load_data(tmp_path / name, cache_dir=tmp_path / "cache")
        assert loaded.name == name and loaded.fingerprint() == expected.fingerprint() and len(loaded.validation) == 3


def test_an_archive_of_class_folders_is_read(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", {"": 2})
    for top in ("", "flowers"):
        loaded = load_data(zipped(tmp_path / f"a{top}.zip", folder, top), cache_dir=tmp_path / "cache")
        assert loaded.classes == ("cat", "dog", "owl") and len(loaded.train) == len(loaded.validation) == 3


@pytest.mark.parametrize("name", ["../evil/cat/1.png", "/evil/cat/1.png", "..\\evil.png", "C:/evil.png", "link"])
def test_an_archive_that_leads_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    cache = tmp_path / "cache"
    archive = tmp_path / "a.zip" if name != "link" else tmp_path / "a.tar"
    if name == "link":
        with tarfile.open(archive, "w") as tar:
            member = tarfile.TarInfo("cat")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(member)
    else:
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(name, b"x")
    with pytest.raises(DataError, match=r"a\.(zip|tar) has a file that would lie outside of its folder"):
        load_data(archive, cache_dir=cache)
    assert not list(cache.rglob("*.png")) and not list(tmp_path.glob("evil"))


def test_archives_that_cannot_be_unpacked_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.7z").write_bytes(b"7z")
    with pytest.raises(DataError, match=r"a\.7z is a file, not a folder; unpack it and give the path"):
        load_data(tmp_path / "a.7z")
    (tmp_path / "a.tar.xz").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"could not unpack .*a\.tar\.xz"):
        load_data(tmp_path / "a.tar.xz", cache_dir=tmp_path / "cache")
    with zipfile.ZipFile(tmp_path / "b.zip", "w"):
        pass
    with pytest.raises(DataError, match="is empty"):
        load_data(tmp_path / "b.zip", cache_dir=tmp_path / "cache")


# Downloads


@dataclass
class Server:
    """A web server on this machine that stands in for the official one."""

    folder: Path
    url: str
    requests: list[str] = field(default_factory=list)


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with an archive of CIFAR-10 that is registered with its right checksum."""
    folder = tmp_path / "server"
    images = write_cifar(folder, "cifar10", binary=True)
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        archive.add(images, images.name)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as http:
        found = Server(folder, f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setattr(_Handler, "log_request", lambda self, *args: found.requests.append(self.path))
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        register(monkeypatch, url=f"{found.url}/{ARCHIVE}", md5=md5_of(folder / ARCHIVE))
        yield found
        http.shutdown()
        thread.join()


def register(monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(sources.SOURCES, "cifar10", replace(OFFICIAL, **changes))


def md5_of(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def refused_download(cache: Path, message: str) -> str:
    """The error of a download that fails; it is one sentence and leaves nothing in the cache."""
    with pytest.raises(DataError, match=rf"{message}.*--data-dir") as caught:
        load_data("cifar10", cache_dir=cache)
    assert "\n" not in str(caught.value) and not list(cache.iterdir())
    assert str(cache) in str(caught.value) and sources.SOURCES["cifar10"].url in str(caught.value)
    return str(caught.value)


def test_a_downloaded_archive_is_kept_and_read_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_data("cifar10").fingerprint() == load_data("cifar10").fingerprint()
    assert server.requests == [f"/{ARCHIVE}"]
    cache = tmp_path / "cache" / "vitrim"
    assert md5_of(cache / ARCHIVE) == sources.SOURCES["cifar10"].md5
    assert {path.name for path in cache.iterdir()} == {ARCHIVE, "unpacked"}
    assert logged(capsys) == f"downloading {server.url}/{ARCHIVE} into {cache}\n"  # no bar: not a terminal


def test_the_official_address_and_checksum_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fail(url: str, *, known_hash: str, path: Path, **others: object) -> None:
        calls.append((url, known_hash, path))
        path.mkdir()
        raise OSError("no network")

    monkeypatch.setattr("pooch.retrieve", fail)
    refused_download(tmp_path / "cache", r"cifar-10-binary.*no network")
    address = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    assert calls == [(address, "md5:c32a1d4ab5d03f1284b67883e8d87530", tmp_path / "cache")]


def test_an_archive_with_another_checksum_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, url=f"{server.url}/{ARCHIVE}", md5="0" * 32)
    refused_download(tmp_path / "cache", "hash")
    assert server.requests == [f"/{ARCHIVE}"]


def test_an_archive_that_is_not_on_the_server_is_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, url=f"{server.url}/absent.tar.gz")
    refused_download(tmp_path / "cache", "404")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the traceback holds the socket
def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "DOWNLOAD_TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        register(monkeypatch, url=f"http://127.0.0.1:{silent.getsockname()[1]}/{ARCHIVE}")
        refused_download(tmp_path / "cache", "timed out")
    gc.collect()
