"""What a run folder remembers of files that could not be decoded, so that the run can go on when one was repaired.

A run ends with the images that it began with. Files that were left out at its start stay left out, and files that were
replaced in training stay replaced, also after they were repaired. So a resumed run ends like an uninterrupted one.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from vitrim.data.images import ImageData, ImageSet
from vitrim.data.unreadable import short_names
from vitrim.runs.files import UNREADABLE, read_json, write_text
from vitrim.runs.folder import is_fresh
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log


@dataclass(frozen=True, kw_only=True)
class Record:
    """Names of files in the data set.

    Attributes:
        left_out: at the start.
        replaced: while the run went on, with their sizes in bytes at the start.
    """

    left_out: tuple[str, ...] = ()
    replaced: dict[str, int] = field(default_factory=dict)


def as_in_run(data: ImageData, run_dir: str | Path) -> ImageData:
    """Return the data with which the run in a folder began, as far as its unreadable files are concerned.

    Files that are found to be unreadable later are noted in the folder once `keep_record` was called.
    """
    folder = Path(run_dir)
    if data.run_dir == folder:
        return data
    record = _read(folder)
    repaired = sorted(set(record.left_out) - set(data.left_out))
    train, validation = (_without(images, data.root, repaired) for images in (data.train, data.validation))
    notes = data.notes
    if repaired:
        count = "1 file" if len(repaired) == 1 else f"{len(repaired)} files"
        note = f"{count} could not be decoded when this run began, and stay left out until it ends"
        notes = (*notes, f"{note}: {short_names(repaired)}")
        log(notes[-1])
    sizes = {os.path.join(data.root, name): size for name, size in record.replaced.items()}
    unreadable = data.train.unreadable.for_run(sizes)
    return replace(
        data,
        train=train.with_unreadable(unreadable),
        validation=validation.with_unreadable(unreadable),
        notes=notes,
        left_out=(*data.left_out, *repaired),
        run_dir=folder,
    )


def keep_record(data: ImageData, run_dir: str | Path) -> None:
    """Note in a run folder which files are left out, and from now on those that are replaced.

    Args:
        data: as returned by `as_in_run`.
        run_dir: folder of the run; it exists.
    """
    folder, unreadable = Path(run_dir), data.train.unreadable
    rank = this_process().process_index
    file = folder / (UNREADABLE if rank == 0 else f"{rank}-{UNREADABLE}")

    def write() -> None:
        replaced = {_name(path, data.root): size for path, size in unreadable.sizes.items()}
        write_text(file, json.dumps({"left out": list(data.left_out), "replaced": replaced}, indent=2) + "\n")

    if rank == 0 and (data.left_out or unreadable.sizes):
        write()
    unreadable.on_new = write


def explain_unreadable(data: ImageData, run_dir: str | Path) -> str:
    """Which files the run in a folder did not leave out and cannot be decoded now, as a sentence; empty if none."""
    new = sorted(set(data.left_out) - set(_read(Path(run_dir)).left_out))
    if not new:
        return ""
    files = (
        "1 file cannot be decoded now that this run uses"
        if len(new) == 1
        else (f"{len(new)} files cannot be decoded now that this run uses")
    )
    return f" {files}: {short_names(new)}. To continue it, put them back as they were."


def _read(folder: Path) -> Record:
    """The records of all processes of a run; empty if the folder has no results."""
    if not folder.is_dir() or is_fresh(folder):
        return Record()
    left_out: set[str] = set()
    replaced: dict[str, int] = {}
    for file in sorted(folder.glob(f"*{UNREADABLE}")):
        content = read_json(file)
        left_out |= set(content["left out"])
        replaced |= content["replaced"]
    return Record(left_out=tuple(sorted(left_out)), replaced=replaced)


def _without(images: ImageSet, root: str, names: Sequence[str]) -> ImageSet:
    """The images without those of some files."""
    if not names:
        return images
    dropped = set(names)
    kept = [index for index, name in enumerate(_names(images, root)) if name not in dropped]
    return images if len(kept) == len(images) else images.subset(torch.tensor(kept, dtype=torch.int64))


def _names(images: ImageSet, root: str) -> Iterator[str]:
    return (_name(file, root) for file in images.files or images.decoded_from)


def _name(file: str, root: str) -> str:
    return file.removeprefix(root).replace(os.sep, "/").lstrip("/")
