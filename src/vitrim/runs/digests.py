"""Digests of files: what a run and `save` wrote is told from what was damaged or changed since.

Each run folder and each model folder has one file `digests.json` with the SHA-256 of what vitrim wrote there. It has a
digest of its own content too. A new digest is written before its file is moved into place, and former digests stay. So
a process that is killed in between leaves no file that looks damaged.

What is done about damage is decided where a file is read; see also `vitrim.runs.damage`.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import Any

from vitrim.errors import CheckpointMismatch
from vitrim.runs.files import (
    CONFIG,
    DIGESTS,
    MODELING,
    PROCESSOR,
    WEIGHTS,
    read_json,
    write_text,
    writing,
)
from vitrim.runs.processes import is_main_process
from vitrim.runs.progress import log
from vitrim.runs.text_files import MAX_JSON_BYTES, read_text

FORMAT = 1
MODEL = "."  # name of the files of a model in its own `digests.json`
IS_DAMAGED = "is damaged: its content is not what vitrim wrote"
MAX_VERSIONS = 8  # of one file, as long as it is not certain which of them is there

Digest = str | dict[str, str]  # of a file; of a folder, by the names of its files

_LOCK = threading.RLock()  # a manifest is read, changed and written again
_IN_PLACE: set[tuple[Path, str]] = set()  # manifest and name of what this process has moved into place


class State(Enum):
    """What is known about a file or a folder."""

    UNKNOWN = "no digest was noted"
    GOOD = "has a noted digest"
    MISSING = "is not there"
    DAMAGED = "has another digest"


@dataclass(frozen=True, kw_only=True)
class Version:
    """One content of a file or a folder.

    Attributes:
        sha256: of the file; of a folder, those of its files.
        made_from: what the content was made from, as plain data; None if it is not known.
        text: the content of a small text file, if it is kept so that the file can be made again; else empty.
    """

    sha256: Digest
    made_from: dict[str, Any] | None = None
    text: str = ""

    @property
    def digest(self) -> str:
        """One digest of the whole content."""
        return self.sha256 if isinstance(self.sha256, str) else digest_of_data(self.sha256)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A file or a folder, compared with its noted digests.

    Attributes:
        version: the content that is there; None if it is not noted.
        changed: paths of files that differ from the newest version, if the content is damaged.
    """

    state: State
    version: Version | None = None
    changed: tuple[Path, ...] = ()


@dataclass
class _Content:
    """The content of a manifest.

    Attributes:
        files: the versions of each file or folder by its name, the newest first.
        trainings: by stage, what the training was begun from.
    """

    files: dict[str, list[Version]] = field(default_factory=dict)
    trainings: dict[str, Any] = field(default_factory=dict)


class Digests:
    """The manifest of one folder. Names are paths relative to the folder, with `/`."""

    def __init__(self, folder: str | Path, file: str = DIGESTS) -> None:
        """Nothing is read or written yet.

        Args:
            folder: which may have no manifest.
            file: name of the manifest. Each process but the first of a distributed run has its own.
        """
        self.folder = Path(folder)
        self.path = self.folder / file

    def versions(self, name: str) -> list[Version]:
        """The noted contents of a file or folder, the newest first; empty if there is none.

        Raises:
            CheckpointMismatch: the manifest is damaged.
        """
        return self._read().files.get(name, [])

    def names(self) -> list[str]:
        """The names of all files and folders whose digest is noted. Raises as `versions`."""
        return list(self._read().files)

    def note(self, name: str, version: Version) -> None:
        """Note a new content of a file or folder, before it is moved into place. Raises as `versions`."""
        with _LOCK:
            content = self._read()
            before = [old for old in content.files.get(name, []) if old.sha256 != version.sha256]
            kept = 1 if (self.path, name) in _IN_PLACE else MAX_VERSIONS - 1
            _IN_PLACE.discard((self.path, name))
            content.files[name] = [version, *before[:kept]]
            self._write(content)

    def landed(self, name: str) -> None:
        """Tell that the noted content was moved into place. When the next one is noted, only this one is kept."""
        _IN_PLACE.add((self.path, name))

    def remove(self, *names: str) -> None:
        """Remove what is noted about files and folders that were deleted. Raises as `versions`."""
        with _LOCK:
            content = self._read()
            found = [name for name in names if content.files.pop(name, None)]
            if found:
                self._write(content)

    def clear(self) -> None:
        """Remove everything that is noted, and the manifest.

        Raises:
            CheckpointMismatch: there is a folder in place of the manifest.
        """
        if self.path.is_dir() and not self.path.is_symlink():
            raise _irregular(self.path)
        with _LOCK:
            self.path.unlink(missing_ok=True)

    def begun_from(self, stage: str) -> Any:
        """What a training was begun from; None if nothing is noted. Raises as `versions`."""
        return self._read().trainings.get(stage)

    def note_training(self, stage: str, made_from: Any) -> None:
        """Note what a training is begun from. Raises as `versions`."""
        with _LOCK:
            content = self._read()
            if content.trainings.get(stage) != made_from:
                content.trainings[stage] = made_from
                self._write(content)

    def compare(self, name: str, only: tuple[str, ...] = ()) -> Compared:
        """Compare a file or folder with its noted digests.

        Args:
            name: of the file or folder.
            only: the names of the files of a folder that are compared; by default all that are noted.

        Raises:
            CheckpointMismatch: the manifest is damaged. OSError: a file cannot be read.
        """
        path, versions = self.folder / name, self.versions(name)
        if not path.exists():
            return Compared(state=State.MISSING)
        if not versions:
            return Compared(state=State.UNKNOWN)
        found: dict[str, str] = {}
        for version in versions:
            if _fits(path, version.sha256, found, only):
                return Compared(state=State.GOOD, version=version)
        expected, changed = versions[0].sha256, [path]
        if isinstance(expected, dict) and path.is_dir():
            changed = [path / file for file, digest in expected.items() if found.get(file, digest) != digest] or [path]
        return Compared(state=State.DAMAGED, changed=tuple(changed))

    def is_readable(self) -> bool:
        """Whether there is a manifest, and it is not damaged."""
        try:
            self._read()
        except CheckpointMismatch:
            return False
        return self.path.is_file()

    def _read(self) -> _Content:
        if not self.path.is_symlink() and not self.path.exists():
            return _Content()
        try:
            found: Any = read_json(self.path) if self.path.is_file() else None
            digest = found.pop("digest")
            if digest != digest_of_data(found) or found["format"] != FORMAT:
                raise ValueError("its digest differs")
            files = {_inside(name): [_version(one) for one in all_of] for name, all_of in found["files"].items()}
            return _Content(files=files, trainings=dict(found["trainings"]))
        except (AttributeError, KeyError, TypeError, ValueError):
            raise _damaged_manifest(self.path) from None

    def _write(self, content: _Content) -> None:
        data: dict[str, Any] = {
            "format": FORMAT,
            "files": {
                name: [{key: value for key, value in asdict(one).items() if value not in (None, "")} for one in all_of]
                for name, all_of in sorted(content.files.items())
            },
            "trainings": content.trainings,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps({**data, "digest": digest_of_data(data)}, indent=1) + "\n")


@contextmanager
def writing_noted(
    path: Path,
    digests: Digests | None = None,
    *,
    made_from: Mapping[str, Any] | None = None,
    keep_text: bool = False,
) -> Iterator[Path]:
    """As `writing`, and note the digest of the new content before it is moved into place.

    Args:
        path: of the file or folder, in the folder of `digests`.
        digests: by default those of the folder that has the file.
        made_from: what the content is made from, as plain data.
        keep_text: keep the content of a small text file, so that the file can be made again.
    """
    digests = digests or Digests(path.parent)
    name = path.relative_to(digests.folder).as_posix()
    with writing(path) as working:
        yield working
        text = working.read_text(encoding="utf-8") if keep_text else ""
        source = None if made_from is None else dict(made_from)
        digests.note(name, Version(sha256=digest_of(working), made_from=source, text=text))
    digests.landed(name)


def write_text_noted(path: Path, text: str, digests: Digests | None = None, *, keep_text: bool = False) -> None:
    """Write a text file and note its digest; for the arguments see `writing_noted`.

    Raises:
        OSError: with the name of the file. CheckpointMismatch: the manifest is damaged.
    """
    with writing_noted(path, digests, keep_text=keep_text) as working:
        working.write_text(text, encoding="utf-8")


def read_kept_text(
    path: Path, digests: Digests | None = None, remedy: str = "Delete it and repeat the command."
) -> str | None:
    """Read a text file of which the manifest keeps the content. If it is damaged or missing, it is written again.

    Args:
        path: of the file, in the folder of `digests`.
        digests: by default those of the folder that has the file.
        remedy: what to do about a file without a digest that is not UTF-8.

    Returns:
        The content; None if there is no such file and none was written.

    Raises:
        CheckpointMismatch: the file has no digest and is not UTF-8, or the manifest is damaged.
    """
    digests = digests or Digests(path.parent)
    name = path.relative_to(digests.folder).as_posix()
    compared, versions = digests.compare(name), digests.versions(name)
    if compared.state in (State.GOOD, State.UNKNOWN):
        try:
            return read_text(path, MAX_JSON_BYTES, CheckpointMismatch)
        except CheckpointMismatch as problem:
            raise CheckpointMismatch(f"{problem} {remedy}") from None
    if not versions or not versions[0].text:
        return None
    log(f"{path} {'is missing' if compared.state is State.MISSING else IS_DAMAGED}; it is written again")
    if is_main_process():
        write_text(path, versions[0].text)
    return versions[0].text


def note_model_folder(folder: Path) -> None:
    """Note the files of a model folder as they are, after a library has written into it. Only if it has a manifest."""
    digests = Digests(folder)
    if digests.path.exists():
        files = {name: folder / name for name in (CONFIG, WEIGHTS, MODELING, PROCESSOR)}
        found = {name: sha256_of(file) for name, file in files.items() if file.is_file()}
        digests.note(MODEL, Version(sha256=found))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits.

    Raises:
        CheckpointMismatch: the path is no regular file. OSError: the file cannot be read.
    """
    if not path.is_file():  # reading a pipe or a device would never end
        raise _irregular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(path: Path) -> Digest:
    """The digest of a file, or of all files of a folder but its manifests and hidden files. Raises as `sha256_of`."""
    if not path.is_dir():
        return sha256_of(path)
    files = (file for file in sorted(path.rglob("*")) if not file.is_dir())
    names = {file: file.relative_to(path).as_posix() for file in files}
    return {name: sha256_of(file) for file, name in names.items() if not is_left_out(name)}


def _fits(path: Path, expected: Digest, found: dict[str, str], only: tuple[str, ...]) -> bool:
    """Whether a file or folder has this content. `found` keeps the digests that were computed, by file."""
    if isinstance(expected, str):
        files = {"": expected}
    elif path.is_dir():
        files = {name: digest for name, digest in expected.items() if not only or name in only}
    else:
        raise CheckpointMismatch(f"{path} is no folder. Delete it and repeat the command.")
    for name in files:
        if name not in found:
            file = path / name if name else path
            found[name] = sha256_of(file) if file.exists() else ""
    return all(found[name] == digest for name, digest in files.items())


def is_left_out(name: str) -> bool:
    """Whether a file, by its name in a folder, is a manifest or hidden. Such files have no digest."""
    parts = PurePosixPath(name).parts
    return parts[-1].endswith(DIGESTS) or any(part.startswith(".") for part in parts)


def _version(stored: Any) -> Version:
    """One entry of a manifest. Raises TypeError or ValueError for anything else."""
    version = Version(**stored)
    digests = version.sha256 if isinstance(version.sha256, dict) else {"": version.sha256}
    if not all(isinstance(_inside(name), str) and isinstance(digest, str) for name, digest in digests.items()):
        raise TypeError("a digest is a text")
    return version


def _inside(name: str) -> str:
    """The name, if it is a path inside the folder. Raises ValueError otherwise."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(name)
    return name


def digest_of_data(data: Any) -> str:
    """The SHA-256 of plain data, as hexadecimal digits. The order of keys does not matter."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _irregular(path: Path) -> CheckpointMismatch:
    return CheckpointMismatch(f"{path} is no regular file. Delete it and repeat the command.")


def _damaged_manifest(path: Path) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{path} {IS_DAMAGED}. Delete it and repeat the command. The files of the folder are then used as they are."
    )
