"""The folder of a run: it keeps the result of each stage, so the same command continues an interrupted run."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from vitrim.errors import FolderInUse
from vitrim.plan import PruningPlan
from vitrim.runs.files import (
    FILE_SIZES,
    HOLDER,
    LOCK,
    RUN,
    UNREADABLE,
    is_partial,
    read_json,
    unknown_files,
    write_text,
    writing,
)
from vitrim.runs.processes import is_main_process, wait_for_all

Result = TypeVar("Result")
NOT_COMPLETED = {"arguments", "images"}  # a version that wrote them wrote all of their keys
STAGES = "stages"  # subfolder of a run for what only continues it; docs/run-folder.md lists all files


class RunFolder:
    """The folder of one run. Each stage writes one file, and a rerun skips the stages whose file exists.

    `run.json` has the identity of the run: its recipe, model and data. A run with another identity is refused.

    Attributes:
        path: of the folder.
        num_made: number of results that were made since the folder was opened, and not read from it.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        before: Mapping[str, Any] | None = None,
        changed: Mapping[str, tuple[Any, Any]] | None = None,
        ignored: Collection[str] = (),
    ) -> None:
        """Open or create a run folder. All processes call this together.

        Args:
            path: of the folder.
            identity: what the run depends on, as plain data for JSON.
            before: values of keys that earlier versions did not write, in the form of `identity`.
            changed: by the key with dots, a value of an earlier version and the value that has replaced it. They count
                as equal.
            ignored: keys with dots that are written and not compared.

        Raises:
            FolderInUse: the folder has other files, or a run with another identity; the message lists the differences.
        """
        self.path, self.num_made = Path(path), 0
        if self.path.exists() and not self.path.is_dir():
            raise FolderInUse(f"{self.path} is a file; expected a folder for the run.")
        file = self.path / RUN
        identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        if file.is_file() and not is_fresh(self.path):
            old = _with_missing(read_json(file), before or {})
            changed = changed or {}
            differences = [
                f"{name} was {json.dumps(earlier)}, now {json.dumps(now)}"
                for name, earlier, now in _differences(old, identity)
                if name not in ignored and (earlier, now) != changed.get(name)
            ]
            if differences:
                raise FolderInUse(
                    f"{self.path} has a run with other settings: {'; '.join(differences[:8])}. Choose another folder "
                    "with -o, or repeat the earlier command to continue its run."
                )
        elif not file.is_file() and self.path.exists() and unknown_files(self.path):
            raise FolderInUse(f"{self.path} is not empty and has no vitrim run; choose another folder with -o.")
        wait_for_all()
        if is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(identity, indent=2) + "\n")
        wait_for_all()

    def once(
        self,
        name: str,
        make: Callable[[], Result],
        write: Callable[[Result, Path], Any],
        read: Callable[[Path], Result],
        *,
        on_all_processes: bool = False,
    ) -> Result:
        """Return the result of a stage. It is computed and written once; a rerun reads the file.

        All processes call this together, and each reads the file. So the result is the same after a rerun.

        Args:
            name: of the file or folder of the stage, below the folder of the run.
            make: computes the result.
            write: writes a result to a path.
            read: reads it.
            on_all_processes: call `make` on all processes. By default only the first process calls it.
        """
        path = find_result(self.path, name)
        wait_for_all()
        exists = path.exists()
        wait_for_all()  # no process may write before all processes have looked
        self.num_made += not exists
        if not exists and (on_all_processes or is_main_process()):
            result = make()
            if is_main_process():
                path.parent.mkdir(exist_ok=True)
                with writing(path) as working:
                    write(result, working)
        wait_for_all()
        return read(path)

    def once_json(self, name: str, make: Callable[[], Any], *, on_all_processes: bool = False) -> Any:
        """As `once`, for plain data in a JSON file."""

        def write(value: Any, path: Path) -> None:
            path.write_text(json.dumps(value) + "\n", encoding="utf-8")

        return self.once(name, make, write, read_json, on_all_processes=on_all_processes)

    def delete_checkpoints(self) -> None:
        """Delete the training checkpoints of a finished run. Each is four times as large as the model."""
        if is_main_process():
            for file in self.path.glob("*.checkpoint.safetensors"):
                file.unlink()

    def once_plan(self, name: str, make: Callable[[], PruningPlan]) -> PruningPlan:
        """As `once`, for a plan in a JSON file."""

        def read(path: Path) -> PruningPlan:
            return PruningPlan.from_json(path.read_text(encoding="utf-8"))

        return self.once(name, make, lambda plan, path: path.write_text(plan.to_json()), read)


def in_stages(name: str) -> str:
    """The path, below the folder of a run, of a result that only continues the run."""
    return f"{STAGES}/{name}"


def find_result(folder: Path, name: str) -> Path:
    """The path of a result. Runs of version 0.1.0 have it in the folder of the run itself.

    Args:
        folder: of the run.
        name: path below the folder, from `in_stages` if the result is a stage's.
    """
    old = folder / Path(name).name
    return old if old.exists() else folder / name


def is_fresh(folder: Path) -> bool:
    """Whether a run folder has no result yet, so that it may be reused for another run."""
    names = {path.name for path in folder.iterdir() if not path.name.endswith(UNREADABLE) and not is_partial(path.name)}
    if STAGES in names and not any((folder / STAGES).iterdir()):  # made for a result that was not written
        names.remove(STAGES)
    return names <= {RUN, "recipe.toml", FILE_SIZES}


def delete_if_fresh(folder: Path, keep: Collection[str]) -> None:
    """Delete what a run left in its folder, if it has ended before its first result.

    Args:
        keep: names of files that are not deleted.
    """
    with suppress(OSError):
        if is_fresh(folder):
            for path in [path for path in folder.iterdir() if path.name not in {*keep, LOCK, HOLDER}]:
                path.rmdir() if path.is_dir() else path.unlink()


def _with_missing(old: Any, before: Mapping[str, Any]) -> Any:
    """`old`, with the values in `before` where it lacks a key."""
    if not isinstance(old, dict):
        return old
    for key, value in before.items():
        if key not in old:
            old[key] = value
        elif isinstance(value, Mapping) and key not in NOT_COMPLETED:
            _with_missing(old[key], value)
    return old


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys with dots that differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
