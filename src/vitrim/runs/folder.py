"""The folder of a run: what was made stays, and the same command goes on where it stopped."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitrim.errors import FolderInUse
from vitrim.plan import PruningPlan
from vitrim.runs.files import RUN, read_json, unknown_files, write_text, writing
from vitrim.runs.processes import is_main_process, wait_for_all

Result = TypeVar("Result")


class RunFolder:
    """The folder of one run: each stage leaves one file, and a rerun skips what exists.

    `run.json` holds what the run was made from; the same command goes on, another one is refused.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any]) -> None:
        """Open or create a run folder.

        Raises:
            FolderInUse: the folder holds something else, or a run made from something else; lists the differences.
        """
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise FolderInUse(f"{self.path} is a file; expected a folder for the run.")
        file = self.path / RUN
        wanted = json.loads(json.dumps(identity))
        if file.is_file() and not self._is_fresh():
            differences = list(_differences(read_json(file), wanted))
            if differences:
                raise FolderInUse(
                    f"{self.path} holds a run made from something else: {'; '.join(differences[:8])}. Choose another "
                    "folder with -o, or repeat the same command to go on with that run."
                )
        elif not file.is_file() and self.path.exists() and unknown_files(self.path):
            raise FolderInUse(f"{self.path} is not empty and holds no vitrim run; choose another folder with -o.")
        wait_for_all()
        if is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(wanted, indent=2) + "\n")
        wait_for_all()

    def _is_fresh(self) -> bool:
        """Whether the folder holds nothing yet but what it is to be made from: another command may have it."""
        return {path.name for path in self.path.iterdir()} <= {RUN, "recipe.toml"}

    def once(
        self,
        name: str,
        make: Callable[[], Result],
        write: Callable[[Result, Path], Any],
        read: Callable[[Path], Result],
        *,
        on_all_processes: bool = False,
    ) -> Result:
        """The content of file (or folder) `name`: read if it is there, else made, written whole, and read back.

        The first process makes it alone. With `on_all_processes`, all processes make it together. Every process reads
        the same file.
        """
        path = self.path / name
        wait_for_all()
        exists = path.exists()
        wait_for_all()  # nobody writes before everybody has looked
        if not exists and (on_all_processes or is_main_process()):
            result = make()
            if is_main_process():
                with writing(path) as working:
                    write(result, working)
        wait_for_all()
        return read(path)

    def once_json(self, name: str, make: Callable[[], Any], *, on_all_processes: bool = False) -> Any:
        def write(value: Any, path: Path) -> None:
            path.write_text(json.dumps(value) + "\n", encoding="utf-8")

        return self.once(name, make, write, read_json, on_all_processes=on_all_processes)

    def delete_checkpoints(self) -> None:
        """Remove the checkpoints of finished trainings; they are four times as large as the model."""
        if is_main_process():
            for file in self.path.glob("*.checkpoint.safetensors"):
                file.unlink()

    def once_plan(self, name: str, make: Callable[[], PruningPlan]) -> PruningPlan:
        def read(path: Path) -> PruningPlan:
            return PruningPlan.from_json(path.read_text(encoding="utf-8"))

        return self.once(name, make, lambda plan, path: path.write_text(plan.to_json()), read)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield f"{name} was {json.dumps(old)}, now {json.dumps(new)}"
