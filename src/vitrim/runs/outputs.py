"""What a command may write to, decided before anything is computed.

Symbolic links are followed, for files and for folders: what counts is the place that they lead to, and a link stays a
link. A file is replaced only if a command of the same kind wrote it, as its content shows. An input of the command is
never replaced. Whether a folder has the same run is decided in `folder`.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vitrim.errors import PlanMismatch, SettingError
from vitrim.plan import PruningPlan
from vitrim.runs.files import CONFIG, FILE_SIZES, RUN, SNAPSHOTS, STAGES, UNREADABLE, WEIGHTS

KINDS = {  # of files that are no regular files
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


RESULTS = {
    RUN,
    "plan.json",
    "report.json",
    "report.md",
    "report.html",
    "evaluation.json",
    "metrics.jsonl",
    "recipe.toml",
}  # of a run
RESULTS |= {"details.json", "scores.safetensors", UNREADABLE, FILE_SIZES}


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A kind of file that a command writes.

    Attributes:
        form: of the file, such as `JSON file`.
        content: such as `plan`.
        is_ours: whether a command of the same kind wrote what exists.
        is_folder: whether it is a folder, with one content. Else it is a regular file.
    """

    form: str
    content: str
    is_ours: Callable[[Path], bool]
    is_folder: bool = False


MAX_PLAN_BYTES = 100 * 2**20


def _is_plan(path: Path) -> bool:
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            return False
        PruningPlan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, PlanMismatch, RecursionError):
        return False
    return True


PLAN = FileKind(form="JSON file", content="plan", is_ours=_is_plan)


def output_file(path: Path, kind: FileKind, inputs: Iterable[str | Path] = (), option: str = "-o") -> Path:
    """Check that a command may write a file, and return the place that it leads to.

    Args:
        path: as the user named it. It need not exist, and neither need its folder.
        kind: of the file.
        inputs: files and folders that the command reads. Names of other things, such as models, are ignored.
        option: that named the path.

    Raises:
        SettingError: the file may not be written; the message says why.
    """
    place, found = _followed(path, option)
    expected = f"expected the name of a {kind.form} for the {kind.content} after {option}"
    if found is not None and stat.S_ISDIR(found.st_mode) and not kind.is_folder:
        raise SettingError(f"{path} is a folder; {expected}.")
    is_expected = stat.S_ISDIR if kind.is_folder else stat.S_ISREG
    if found is not None and not is_expected(found.st_mode):
        other = "a file" if kind.is_folder and stat.S_ISREG(found.st_mode) else "no file"
        raise SettingError(f"{path} is {KINDS.get(stat.S_IFMT(found.st_mode), other)}; {expected}.")
    for name in inputs:
        if is_same(place, Path(name)):
            raise SettingError(
                f"{path} is read by this command, so it is not replaced. Name another file with {option}."
            )
    if _is_of_run(place):
        raise SettingError(f"{path} is the place of a result of a run. Name another file with {option}.")
    if found is not None and not kind.is_ours(place):
        raise SettingError(
            f"{path} exists and is no {kind.content} that vitrim wrote, so it is not replaced. Name another file with "
            f"{option}, or delete this one."
        )
    _check_writable(place.parent, path)
    return place


def output_folder(path: Path, inputs: Iterable[str | Path] = (), option: str = "-o") -> Path:
    """Check that a command may have its run in a folder, and return the path as it was named.

    Args:
        path: as the user named it. It need not exist, and neither need its parents.
        inputs: files and folders that the command reads. Names of other things, such as models, are ignored.
        option: that named the path.

    Raises:
        SettingError: it is no folder, it cannot be written, it is an input of the command, or in a model folder or
            in a folder of images that the command reads.
    """
    place, found = _followed(path, option)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        kind = "a file" if stat.S_ISREG(found.st_mode) else KINDS.get(stat.S_IFMT(found.st_mode), "no folder")
        raise SettingError(f"{path} is {kind}; expected a folder for the run after {option}.")
    for name in inputs:
        if Path(name).is_dir() and is_same(place, Path(name)) and not (place / RUN).is_file():
            raise _no_run(path, "it is read by this command", option)
        if _is_data(Path(name)) and Path(name).resolve() in place.parents:
            raise SettingError(
                f"{path} is in {name}, from which this command reads, and would become a part of it. Choose another "
                f"folder with {option}."
            )
    for parent in (place, *place.parents):
        if (parent / CONFIG).is_file() and (parent / WEIGHTS).is_file():
            if parent == place:
                raise _no_run(path, "it is the folder of a model", option)
            raise SettingError(f"{path} is in the folder of a model. Choose another folder with {option}.")
    _check_writable(place, path)
    return path


def _is_data(folder: Path) -> bool:
    """Whether a folder is one of images. The current folder may hold both images and runs, as a project does."""
    is_other = any((folder / name).is_file() for name in (RUN, CONFIG))
    return folder.is_dir() and not is_other and folder.resolve() not in (Path.cwd(), *Path.cwd().parents)


def _no_run(path: Path, why: str, option: str) -> SettingError:
    return SettingError(f"{path} is not empty and has no vitrim run: {why}. Choose another folder with {option}.")


def is_same(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file or folder, whatever they are called."""
    try:
        return first.samefile(second)
    except (OSError, ValueError):  # one does not exist, or is no path
        return False


def _followed(path: Path, option: str) -> tuple[Path, os.stat_result | None]:
    """The place that a path leads to, and what is there; None for nothing."""
    try:
        place = Path(os.path.realpath(path))
        return place, place.stat()
    except FileNotFoundError:
        return place, None
    except (OSError, ValueError) as problem:
        reason = os.strerror(problem.errno) if isinstance(problem, OSError) and problem.errno else str(problem)
        raise SettingError(f"{path} cannot be written ({reason}). Name another place with {option}.") from None


def _is_of_run(place: Path) -> bool:
    """Whether a path is that of a result in the folder of a run."""
    in_run, in_stages = (place.parent / RUN).is_file(), (place.parent.parent / RUN).is_file()
    return (in_run and place.name in RESULTS) or (in_stages and place.parent.name in (STAGES, SNAPSHOTS))


def _check_writable(folder: Path, path: Path) -> None:
    """Refuse a folder in which nothing can be written. If it does not exist, its first parent that does counts."""
    place = next((parent for parent in (folder, *folder.parents) if parent.exists()), Path())
    if not place.is_dir():
        raise SettingError(f"{path} cannot be written ({place}: {os.strerror(errno.ENOTDIR)}). Name another place.")
    try:
        with tempfile.TemporaryFile(dir=place):  # a permission may be there, and the file system be read-only
            pass
    except OSError as problem:
        raise SettingError(f"{path} cannot be written ({place}: {problem.strerror}). Name another place.") from None
