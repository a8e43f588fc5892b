"""The images of an archive as arrays, decoded while the parts of the archive arrive.

    FOLDER/feed.json          written first: another process may wait for the arrays
    FOLDER/train.npy          pixels of the training images, (n, 3, H, W) uint8
    FOLDER/validation.npy     pixels of the validation images
    FOLDER/labels.json        classes and labels, written last

The archive may have any layout that `vitrim.data.loading.load_data` reads, with validation images. Pixels, labels and
order are those that `load_data` returns for the unpacked archive. No image is written to the disk.
"""

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch

from vitrim.data.files.decoding import BROKEN_IMAGE
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.listing.parts import Found
from vitrim.data.listing.sources import Places, find
from vitrim.data.listing.suffixes import IMAGE_SUFFIXES
from vitrim.data.loading import read_image
from vitrim.errors import DataError
from vitrim.runs.files import read_json, write_text, writing
from vitrim.runs.progress import log

STARTED, LABELS = "feed.json", "labels.json"
SETS = ("train", "validation")
POLL_SECONDS = 0.2
NUM_THREADS = 4  # they decode at the same time, but only one of them runs Python code
IMAGES_PER_TASK = 512


class ArrivingParts(io.RawIOBase):
    """The parts of a file as one stream. A part that has not arrived yet is waited for."""

    def __init__(self, parts: Sequence[Path], timeout: float) -> None:
        """Read the parts one after the other.

        Args:
            parts: in their order. A part must appear whole, for example by moving it.
            timeout: seconds to wait for one part.
        """
        self._left, self._timeout = list(parts), timeout
        self._file: IO[bytes] | None = None

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Read the next bytes into the buffer and return their number, 0 at the end of the last part."""
        while self._file is not None or self._left:
            if self._file is None:
                self._file = self._opened(self._left.pop(0))
            count = self._file.readinto(buffer)  # type: ignore[attr-defined]
            if count:
                return count
            self._file.close()
            self._file = None
        return 0

    def close(self) -> None:
        """Close the part that is open."""
        if self._file is not None:
            self._file.close()
        super().close()

    def _opened(self, part: Path) -> IO[bytes]:
        wait_for(part.is_file, self._timeout, f"the part {part}")
        return part.open("rb")


def wait_for(ready: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until `ready` returns True.

    Raises:
        DataError: it did not within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > until:
            raise DataError(f"Waited {timeout:.0f} seconds for {what}, which has not arrived.")
        time.sleep(POLL_SECONDS)


def feed(parts: Sequence[Path], folder: Path, *, timeout: float = 600.0) -> None:
    """Decode an archive into arrays while its parts arrive. A folder with finished arrays is left unchanged.

    Args:
        parts: of a tar archive, in their order. Their concatenation may be compressed by xz, gzip or bzip2.
        folder: for the arrays.
        timeout: seconds to wait for one part.

    Raises:
        DataError: a part does not arrive; the archive is damaged or has another layout; an image is broken; images have
            different sizes; there are no validation images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LABELS).is_file():
        log(f"feed: {folder} has the arrays already")
        return
    start = time.monotonic()
    write_text(folder / STARTED, json.dumps({"parts": [part.name for part in parts]}) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        pixels = _decode_archive(ArrivingParts(parts, timeout), Path(scratch))
        found = find(str(_top(Path(scratch))), Places(), Path(scratch))
        _write(folder, found, pixels)
    log(f"feed: {len(pixels)} images in {time.monotonic() - start:.1f} s")


def read_arrays(folder: Path, name: str, *, timeout: float = 0.0) -> ImageData:
    """Read the images that `feed` wrote.

    Args:
        folder: of the arrays.
        name: of the data set.
        timeout: seconds to wait for a `feed` that has not finished.

    Raises:
        DataError: the arrays are not there in time.
    """
    wait_for((folder / LABELS).is_file, timeout, f"the arrays in {folder}")
    about = read_json(folder / LABELS)
    train, validation = (
        ImageSet(labels=torch.tensor(about[part]), pixels=torch.from_numpy(np.load(folder / f"{part}.npy")))
        for part in SETS
    )
    return ImageData(name=name, classes=tuple(about["classes"]), train=train, validation=validation)


def _decode_archive(parts: ArrivingParts, scratch: Path) -> dict[str, np.ndarray]:
    """Decode all images of the archive, and make an empty file for each of them in `scratch`.

    The empty files have the layout of the archive, so the layout is read by the same code as that of real files. Files
    that are not images are written with their content, because some of them state classes.

    Returns:
        Pixels `(3, H, W)` by the path of the empty file.
    """
    tasks: list[Future[dict[str, np.ndarray]]] = []
    waiting: list[tuple[str, bytes]] = []
    with parts, ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            with tarfile.open(fileobj=parts, mode="r|*", bufsize=1 << 20) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content is None or _is_hidden(member.name):
                        continue
                    path = _inside(scratch, member.name)
                    if not member.name.lower().endswith(IMAGE_SUFFIXES):
                        path.write_bytes(content.read())
                        continue
                    path.touch()
                    waiting.append((str(path), content.read()))
                    if len(waiting) == IMAGES_PER_TASK:
                        tasks.append(pool.submit(_decode, waiting))
                        waiting = []
        except (tarfile.TarError, EOFError, OSError) as problem:
            raise DataError(
                f"The archive cannot be read: {problem}. Compare its parts with those it was cut into."
            ) from None
        tasks.append(pool.submit(_decode, waiting))
    return {path: pixels for task in tasks for path, pixels in task.result().items()}


def _inside(scratch: Path, name: str) -> Path:
    """Return the path of a member of the archive in `scratch`, in a folder that exists."""
    parts = PurePosixPath(name).parts  # hidden files were skipped, so no part is `..`
    if PurePosixPath(name).is_absolute():
        raise DataError(f"The archive has a file {name!r} outside of its own folder, so it is refused.")
    path = scratch.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)


def _decode(files: Sequence[tuple[str, bytes]]) -> dict[str, np.ndarray]:
    found = {}
    for path, content in files:
        try:
            found[path] = read_image(io.BytesIO(content)).numpy()
        except BROKEN_IMAGE as problem:
            raise DataError(f"{Path(path).name} in the archive cannot be decoded ({problem}).") from None
    return found


def _top(scratch: Path) -> Path:
    """Return the only folder of the archive, or the folder with `train`."""
    inside = [path for path in scratch.iterdir() if not path.name.startswith(".")]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else scratch


def _write(folder: Path, found: Found, pixels: dict[str, np.ndarray]) -> None:
    if found.validation is None:
        raise DataError("The archive has no validation images; add a folder val or validation.")
    sets = (found.train, found.validation)
    for name, images in zip(SETS, sets, strict=True):
        arrays = [pixels[file] for file in images.files]
        if len({array.shape for array in arrays}) > 1:
            raise DataError("The images of the archive have different sizes; arrays need one size.")
        with writing(folder / f"{name}.npy") as working, working.open("wb") as file:
            np.save(file, np.stack(arrays))
    labels = {name: images.labels.tolist() for name, images in zip(SETS, sets, strict=True)}
    write_text(folder / LABELS, json.dumps({"classes": list(found.classes), **labels}) + "\n")
