"""Files that cannot be decoded when their images are needed, in sets that are too large to be decoded at the start.

How such an image is replaced in training and left out in evaluation is in `batches`. What a run folder remembers of
them is in `run_record`.
"""

import os
from array import array
from collections.abc import Callable, Sequence

from accelerate.utils import gather_object

from vitrim.runs.processes import this_process
from vitrim.runs.progress import log

MAX_NAMES = 3  # in a message


class Unreadable:
    """The unreadable files of an image set and of all sets that are made from it.

    Attributes:
        sizes: the files that were found, with their sizes in bytes when the fingerprint was computed.
        on_new: called after a file was found.
    """

    def __init__(self, sizes: dict[str, int] | None = None) -> None:
        self.sizes = dict(sizes or {})
        self.on_new: Callable[[], None] = lambda: None
        self._measured: list[tuple[Sequence[str], array[int]]] = []  # what `file_sizes` returned

    def for_run(self, sizes: dict[str, int]) -> "Unreadable":
        """Return an object of its own for a run, in which other files were found."""
        made = Unreadable(sizes)
        made._measured = list(self._measured)
        return made

    def add(self, file: str, reason: str, consequence: str) -> None:
        """Note and log a file that cannot be decoded, unless it is known."""
        if file in self.sizes:
            return
        measured = (sizes[files.index(file)] for files, sizes in self._measured if file in files)
        self.sizes[file] = next(measured, None) or _size(file)
        log(f"{file} cannot be decoded ({reason}); {consequence}")
        self.on_new()

    def file_sizes(self, files: Sequence[str]) -> Sequence[int]:
        """Sizes in bytes; of unreadable files those at the start, so that a repaired file is no other data set."""
        found = array("q", (self.sizes[file] if file in self.sizes else os.path.getsize(file) for file in files))
        self._measured.append((files, found))
        return found


def log_replaced(unreadable: Unreadable, stage: str) -> None:
    """Say at the end of a training how many of its images were replaced. All processes call this together."""
    files = list(unreadable.sizes)
    if this_process().num_processes > 1:
        files = gather_object(files)
    if files:
        log(f"{stage}: {replaced_note(files)}")


def replaced_note(files: Sequence[str]) -> str:
    """Say which training images were replaced."""
    count = len(set(files))
    what = "1 training image" if count == 1 else f"{count} training images"
    return f"{what} could not be decoded, and others of the same class were used instead: {short_names(files)}"


def not_counted_note(files: Sequence[str], num_images: int) -> str:
    """Say which validation images are not counted."""
    return f"{len(set(files))} of {num_images} images cannot be decoded and are not counted: {short_names(files)}"


def short_names(files: Sequence[str]) -> str:
    """The first names of some files, each with its folder."""
    names = sorted(set(files))
    shown = [os.path.join(*os.path.normpath(name).split(os.sep)[-2:]) for name in names[:MAX_NAMES]]
    return ", ".join(shown) + (", ..." if len(names) > MAX_NAMES else "")


def _size(file: str) -> int:
    try:
        return os.path.getsize(file)
    except OSError:
        return 0
