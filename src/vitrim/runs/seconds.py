"""How long the results of a run took to make. A file in the run folder keeps it, so that it survives a kill."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrim.errors import UserError
from vitrim.runs.damage import check_file
from vitrim.runs.digests import Digests, write_text_noted
from vitrim.runs.files import read_json
from vitrim.runs.processes import is_main_process

FORMAT = 1


class StepSeconds:
    """The seconds of the results of one run. Only the first process writes.

    Nothing is written if the folder of the file does not exist: runs without stages have no file, and a person may
    delete the stages of a finished run.
    """

    def __init__(self, file: Path, digests: Digests) -> None:
        """Nothing is read or written yet.

        Args:
            file: that keeps the seconds.
            digests: those of the run.
        """
        self.file, self._digests = file, digests
        self._inside = 0.0  # seconds of results that were made while another one is made

    @contextmanager
    def measuring(self, name: str) -> Iterator[None]:
        """Note the seconds of the block, without those of other blocks in it. A block that raises is not noted.

        Args:
            name: of the result that the block makes. If it was made before, its former seconds are replaced.
        """
        began, outside = time.monotonic(), self._inside
        self._inside = 0.0
        try:
            yield
            if is_main_process() and self.file.parent.is_dir():
                found = {**read_seconds(self.file), name: round(time.monotonic() - began - self._inside, 3)}
                text = json.dumps({"format": FORMAT, "seconds": found}, indent=1) + "\n"
                write_text_noted(self.file, text, self._digests)
        finally:
            self._inside = outside + time.monotonic() - began


def read_seconds(file: Path) -> dict[str, float]:
    """The seconds of each result by its name; empty if there is no such file, or if it is damaged."""
    if not file.is_file():
        return {}
    try:
        check_file(file)
        found: Any = read_json(file)
        return {str(name): float(seconds) for name, seconds in found["seconds"].items()}
    except (UserError, AttributeError, KeyError, TypeError, ValueError):
        return {}  # it is only shown
