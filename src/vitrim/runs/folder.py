"""The folder of a run: it keeps the result of each stage, so the same command continues an interrupted run."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Generic, TypeVar

from vitrim.errors import CheckpointMismatch, FolderInUse, UserError
from vitrim.plan import PruningPlan
from vitrim.runs.digests import (
    IS_DAMAGED,
    MODEL,
    Digests,
    State,
    Version,
    digest_of,
    read_kept_text,
    write_text_noted,
    writing_noted,
)
from vitrim.runs.files import (
    CHECKPOINT,
    FORECAST,
    RUN,
    STAGES,
    TRACKING,
    find_result,
    read_json,
    unknown_files,
)
from vitrim.runs.fresh import is_fresh
from vitrim.runs.identity import differences, with_missing
from vitrim.runs.processes import is_main_process, raise_on_all, wait_for_all
from vitrim.runs.progress import log
from vitrim.runs.seconds import StepSeconds
from vitrim.runs.text_files import check_name

Result = TypeVar("Result")
SECONDS = "stages/seconds.json"


class RunFolder:
    """The folder of one run. Each stage writes one file, and a rerun skips the stages whose file is as it was written.

    `run.json` has the identity of the run: its recipe, model and data. A run with another identity is refused.

    Attributes:
        path: of the folder.
        num_made: number of results that were made since the folder was opened, and not read from it.
        digests: of the results.
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
        self.digests = Digests(self.path)
        self._current: dict[str, str] = {}  # digests of the results that this process has made or read
        self._said: set[str] = set()
        self._seconds = StepSeconds(self.path / SECONDS, self.digests)
        check_name(self.path, FolderInUse)
        if self.path.exists() and not self.path.is_dir():
            raise FolderInUse(f"{self.path} is a file; expected a folder for the run.")
        identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        fresh = self.path.is_dir() and is_fresh(self.path)
        old = identity_in(self.path) if self.path.is_dir() and not fresh else None
        if old is not None:
            old, changed = with_missing(old, before or {}), changed or {}
            found = [
                f"{name} was {json.dumps(earlier)}, now {json.dumps(now)}"
                for name, earlier, now in differences(old, identity)
                if name not in ignored and (earlier, now) != changed.get(name)
            ]
            if found:
                raise FolderInUse(
                    f"{self.path} has a run with other settings: {'; '.join(found[:8])}. Choose another folder "
                    "with -o, or repeat the earlier command to continue its run."
                )
        elif not (self.path / RUN).is_file() and self.path.exists() and unknown_files(self.path):
            raise FolderInUse(f"{self.path} is not empty and has no vitrim run; choose another folder with -o.")
        wait_for_all()
        if is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                self.digests.clear()  # of a run that ended before its first result
                (self.path / TRACKING).unlink(missing_ok=True)  # its trackers may show other settings
            text = json.dumps(identity, indent=2) + "\n"
            write_text_noted(self.path / RUN, text, self.digests, keep_text=True)
            self._drop_damaged(FORECAST)
        wait_for_all()

    def once(
        self,
        name: str,
        make: Callable[[], Result],
        write: Callable[[Result, Path], Any],
        read: Callable[[Path], Result],
        *,
        on_all_processes: bool = False,
        made_from: Mapping[str, Any] | None = None,
    ) -> Result:
        """Return the result of a stage. It is computed and written once; a rerun reads the file.

        A result is made again if its content is not what was written, or if it was made from something else. All
        processes call this together, and each reads the file. So the result is the same after a rerun.

        Args:
            name: of the file or folder of the stage, below the folder of the run.
            make: computes the result.
            write: writes a result to a path.
            read: reads it. It raises a `UserError` for a file of another form.
            on_all_processes: call `make` on all processes. By default only the first process calls it.
            made_from: what the result is made from, as plain data; see `digests_of`.

        Raises:
            CheckpointMismatch: a folder in place of the result, or a result of an earlier version, cannot be read.
        """
        path, source = find_result(self.path, name), json.loads(json.dumps(made_from or {}))
        wait_for_all()
        stored = self._stored(path, read, source)
        wait_for_all()  # no process may write before all processes have looked
        if stored is not None:
            self._current[name] = stored.version.digest
            if stored.is_new and is_main_process():
                self.digests.note(self._name(path), stored.version)
            return stored.value
        self.num_made += 1
        problem = None
        if on_all_processes or is_main_process():
            try:
                with self._seconds.measuring(name):
                    result = make()
                    if is_main_process():
                        path.parent.mkdir(exist_ok=True)
                        with writing_noted(path, self.digests, made_from=source) as working:
                            write(result, working)
            except UserError as found:
                if on_all_processes:
                    raise
                problem = found
        if not on_all_processes:
            raise_on_all(problem)
        wait_for_all()
        self._current[name] = self.digests.versions(self._name(path))[0].digest
        return read(path)

    def once_json(
        self,
        name: str,
        make: Callable[[], Any],
        parse: Callable[[Any], Any] = lambda value: value,
        *,
        on_all_processes: bool = False,
        made_from: Mapping[str, Any] | None = None,
    ) -> Any:
        """As `once`, for plain data in a JSON file.

        Args:
            parse: makes the result from the plain data.
        """

        def write(value: Any, path: Path) -> None:
            path.write_text(json.dumps(value) + "\n", encoding="utf-8")

        def read(path: Path) -> Any:
            return parsed(path, parse, read_json(path))

        return self.once(name, make, write, read, on_all_processes=on_all_processes, made_from=made_from)

    def once_plan(
        self, name: str, make: Callable[[], PruningPlan], *, made_from: Mapping[str, Any] | None = None
    ) -> PruningPlan:
        """As `once`, for a plan in a JSON file."""
        write = lambda plan, path: path.write_text(plan.to_json(), encoding="utf-8")  # noqa: E731
        return self.once(name, make, write, read_plan, made_from=made_from)

    def stored(self, name: str, read: Callable[[Path], Result]) -> Result | None:
        """Return a result that was made before; None if it is missing or damaged."""
        found = self._stored(find_result(self.path, name), read, None)
        return None if found is None else found.value

    def digests_of(self, *names: str) -> dict[str, str]:
        """The digests of results, by name; without those that this process has neither made nor read.

        Args:
            names: of results; `*` stands for any characters.
        """
        return {
            found: self._current[found] for name in names for found in sorted(self._current) if fnmatchcase(found, name)
        }

    def begin_training(self, stage: str, made_from: Mapping[str, Any]) -> None:
        """Delete the checkpoint of a training if it was begun from something else. All processes call this together.

        Args:
            stage: name of the training.
            made_from: what it is begun from, as plain data; see `digests_of`.
        """
        before, now = self.digests.begun_from(stage), json.loads(json.dumps(made_from))
        wait_for_all()  # no process may write before all processes have looked
        if is_main_process():
            file = self.path / CHECKPOINT.format(stage=stage)
            if before not in (None, now) and file.is_file():
                log(f"{file} is of a training of another model, which was made again since; {stage} starts again")
                file.unlink()
                self.digests.remove(file.name)
            self.digests.note_training(stage, now)
        wait_for_all()

    def delete_checkpoints(self) -> None:
        """Delete the training checkpoints of a finished run. Each is four times as large as the model."""
        if is_main_process():
            files = [file for file in self.path.glob(CHECKPOINT.format(stage="*")) if file.is_file()]
            for file in files:
                file.unlink()
            self.digests.remove(*(file.name for file in files))

    def _stored(self, path: Path, read: Callable[[Path], Result], made_from: Any) -> "_Stored[Result] | None":
        """Read a result; None if it must be made. All processes decide alike.

        Args:
            made_from: None to accept a result that was made from something else.
        """
        compared = self.digests.compare(self._name(path))
        if compared.state is State.MISSING:
            if self.digests.versions(self._name(path)):
                self._say(f"{path} is missing; it is made again")
            return None
        if compared.state is State.DAMAGED:
            for file in compared.changed:
                self._say(f"{file} {IS_DAMAGED}; it is made again")
            return None
        if compared.version is not None:
            source = compared.version.made_from
            if None not in (source, made_from) and source != made_from:
                self._say(f"{path} was made from other results than the run has now; it is made again")
                return None
            if path.is_dir():
                self._mend_digests(path)
            return _Stored(read(path), compared.version, is_new=False)
        self._say(
            f"{self.path} has results without a digest, as of earlier versions of vitrim; they are used as they are"
        )
        try:
            return _Stored(read(path), Version(sha256=digest_of(path)), is_new=True)
        except UserError as problem:
            if path.is_dir():  # it may have taken hours
                raise CheckpointMismatch(f"{problem} To make it again, delete {path} and repeat the command.") from None
            self._say(f"{problem} It is made again.")
            return None

    def _drop_damaged(self, name: str) -> None:
        """Delete a file from which nothing is computed if it is damaged. A finished run does not write it again."""
        if self.digests.compare(name).state is State.DAMAGED:
            self._say(f"{self.path / name} {IS_DAMAGED}; it begins again")
            (self.path / name).unlink()
        if not (self.path / name).exists():
            self.digests.remove(name)

    def _mend_digests(self, folder: Path) -> None:
        """Write the digests of a model folder again if they are damaged or missing. The folder itself is not."""
        own = Digests(folder)
        if own.is_readable():
            return
        wait_for_all()
        if is_main_process():
            self._say(f"{own.path} is damaged or missing; it is written again")
            own.clear()
            own.note(MODEL, Version(sha256=digest_of(folder)))
        wait_for_all()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _say(self, message: str) -> None:
        """Log a sentence once."""
        if message not in self._said:
            self._said.add(message)
            log(message)


@dataclass(frozen=True)
class _Stored(Generic[Result]):
    """A result that was read, and what is noted about it; `is_new` if it was not noted before."""

    value: Result
    version: Version
    is_new: bool


def identity_in(folder: Path) -> dict[str, Any] | None:
    """The identity of the run in a folder. A damaged or missing `run.json` is written again if its content is noted.

    Returns:
        None if the folder has no run.

    Raises:
        CheckpointMismatch: `run.json` cannot be read, and its content is not noted.
    """
    file, remedy = (
        folder / RUN,
        "Put back a copy of it, or use another folder: without it, the run cannot be continued.",
    )
    text = read_kept_text(file, remedy=remedy)
    if text is None:
        return None
    try:
        return parsed(file, _object, text)
    except CheckpointMismatch as problem:
        raise CheckpointMismatch(f"{problem} {remedy}") from None


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError("no object")
    return found


def parsed(path: Path, parse: Callable[[Any], Result], value: Any) -> Result:
    """Make a result from the plain data of a file.

    Raises:
        CheckpointMismatch: the data has another form.
    """
    try:
        return parse(value)
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as problem:
        kind = type(problem).__name__
        raise CheckpointMismatch(f"{path} does not have the content that vitrim writes ({kind}: {problem}).") from None


def read_plan(path: Path) -> PruningPlan:
    """Read a plan from a JSON file.

    Raises:
        PlanMismatch, CheckpointMismatch: this is not a plan.
    """
    return parsed(path, PruningPlan.from_dict, read_json(path))


def in_stages(name: str) -> str:
    """The path, below the folder of a run, of a result that only continues the run."""
    return f"{STAGES}/{name}"
