"""Files that cannot be decoded when their images are needed, in sets that are too large to be decoded at the start.

How such an image is replaced in training and left out in evaluation is in `batches`. What a run folder remembers of
them is in `run_record`.
"""

import os
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from accelerate.utils import gather_object

from vitrim.errors import counted
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log

MAX_NAMES = 3  # in a message
_NAMES_OF_FILES = re.compile(  # and what stands before them, in each note on files
    r"(readable images?|were used instead|are not counted|not used until it ends): .*", re.DOTALL
)


class Unreadable:
    """The unreadable files of an image set and of all sets that are made from it.

    Attributes:
        sizes: the files that were found, with their sizes in bytes when the fingerprint was computed.
        on_new: called after a file was found.
    """

    def __init__(self, sizes: dict[str, int] | None = None) -> None:
        self.sizes = dict(sizes or {})
        self.on_new: Callable[[], None] = lambda: None
        self._measured: list[tuple[Sequence[str], np.ndarray]] = []  # what `file_sizes` returned

    @classmethod
    def for_run(cls, sizes: dict[str, int], before: Iterable["Unreadable"]) -> "Unreadable":
        """Return an object for a run, in which other files were found than in `before`; it knows the same sizes."""
        made = cls(sizes)
        made._measured = [pair for one in before for pair in one._measured]
        return made

    def among(self, files: Sequence[str]) -> list[str]:
        """Return the unreadable ones of some files."""
        return [file for file in files if file in self.sizes] if self.sizes else []

    def add(self, file: str, reason: str, consequence: str) -> None:
        """Note and log a file that cannot be decoded, unless it is known."""
        if file in self.sizes:
            return
        measured = (int(sizes[files.index(file)]) for files, sizes in self._measured if file in files)
        self.sizes[file] = next(measured, None) or _size(file)
        log(f"{file} cannot be decoded ({reason}); {consequence}")
        self.on_new()

    def file_sizes(self, files: Sequence[str]) -> np.ndarray:
        """Sizes in bytes when they were first asked for, `(n,)` int64.

        Of unreadable files, the sizes are those at the start of the run, so a repaired file is no other data set.
        """
        found = next((sizes for measured, sizes in self._measured if measured is files), None)
        if found is None:
            sizes = (_size(file) for file in files)
            found = np.fromiter(sizes, dtype=np.int64, count=len(files))
            self._measured.append((files, found))
        if not self.sizes:
            return found
        pairs = zip(files, found.tolist(), strict=True)
        return np.array([self.sizes.get(file, size) for file, size in pairs], dtype=np.int64)


def log_replaced(files: list[str], stage: str) -> None:
    """Say at the end of a training which images were replaced. All processes call this together, each with its own."""
    if this_process().num_processes > 1:
        files = gather_object(files)
    if files:
        log(f"{stage}: {replaced_note(files)}")


def replaced_note(files: Sequence[str]) -> str:
    """Say which training images were replaced."""
    what = counted(len(set(files)), "training image")
    return f"{what} could not be decoded, and others of the same class were used instead: {short_names(files)}"


def not_counted_note(files: Sequence[str], num_images: int) -> str:
    """Say which validation images are not counted."""
    return f"{len(set(files))} of {num_images} images cannot be decoded and are not counted: {short_names(files)}"


def short_names(files: Sequence[str]) -> str:
    """The first names of some files, each with its folder."""
    names = sorted(set(files))
    shown = [os.path.join(*os.path.normpath(name).split(os.sep)[-2:]) for name in names[:MAX_NAMES]]
    return ", ".join(shown) + (", ..." if len(names) > MAX_NAMES else "")


def without_file_names(note: str) -> str:
    """A note about image files without their names: only their number stays. Other notes do not change."""
    return _NAMES_OF_FILES.sub(r"\1", note)


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:
        return 0
