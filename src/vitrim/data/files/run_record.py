"""What a run folder remembers of files that could not be decoded, so that the run can go on when one was repaired.

A run ends with the images that it began with. Files that were left out at its start stay left out, and files that were
replaced in training stay replaced, also after they were repaired. So a resumed run ends like an uninterrupted one. A
file of another size than at the start was damaged or repaired since, and counts as unreadable.
"""

import json
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitrim.data.files.unreadable import Unreadable, short_names
from vitrim.data.images import ImageData, ImageSet
from vitrim.errors import CheckpointMismatch, counted
from vitrim.runs.digests import IS_DAMAGED, Digests, State, read_kept_text, write_text_noted, writing_noted
from vitrim.runs.files import DIGESTS, FILE_SIZES, UNREADABLE, save_tensors
from vitrim.runs.folder import parsed
from vitrim.runs.fresh import is_fresh
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log

MAX_CHANGED = 0.01  # of the files; if more have another size, it is another data set


@dataclass(frozen=True, kw_only=True)
class Record:
    """Names of files in the data set.

    Attributes:
        left_out: at the start.
        replaced: while the run went on, with their sizes in bytes at the start.
    """

    left_out: tuple[str, ...] = ()
    replaced: dict[str, int] = field(default_factory=dict)


def as_in_run(data: ImageData, run_dir: str | Path | None) -> ImageData:
    """Return the data with which the run in a folder began, as far as its unreadable files are concerned.

    Without a folder, this is the data as it is. Files that are found to be unreadable later are noted in the folder
    once `keep_record` was called.
    """
    if run_dir is None:
        return data
    folder = Path(run_dir)
    if data.run_dir == folder:
        return data
    record = _read(folder)
    repaired = sorted(set(record.left_out) - set(data.left_out))
    train, validation = (_without(images, data.root, repaired) for images in (data.train, data.validation))
    notes = data.notes
    if repaired:
        it_is = "it is" if len(repaired) == 1 else "they are"
        began = f"{counted(len(repaired), 'file')} could not be decoded when this run began"
        note = f"{began}, so {it_is} not used until it ends"
        notes = (*notes, f"{note}: {short_names(repaired)}")
        log(notes[-1])
    sizes = {os.path.join(data.root, name): size for name, size in record.replaced.items()}
    if changed := _changed_sizes(folder, train, validation, sizes):
        has = (
            "has another size than when this run began, so it is"
            if len(changed) == 1
            else ("have another size than when this run began, so they are")
        )
        log(f"{counted(len(changed), 'file')} {has} not used any more: {short_names(list(changed))}")
    before = (data.train.unreadable, data.validation.unreadable)
    unreadable = Unreadable.for_run(sizes | changed, before)
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
    file, digests = folder / _of_process(rank, UNREADABLE), Digests(folder, _of_process(rank, DIGESTS))

    def write() -> None:
        replaced = {_name(path, data.root): size for path, size in unreadable.sizes.items()}
        text = json.dumps({"left out": list(data.left_out), "replaced": replaced}, indent=2) + "\n"
        write_text_noted(file, text, digests, keep_text=True)

    if rank == 0 and is_fresh(folder):
        for path in (folder / FILE_SIZES, *folder.glob(f"*{UNREADABLE}")):  # of a run that ended before its results
            path.unlink(missing_ok=True)
            Digests(folder, _of_process(_rank_in(path), DIGESTS)).remove(path.name)
        _write_sizes(folder, data)
        if data.root:
            write()
    unreadable.on_new = write


def explain_unreadable(data: ImageData, run_dir: str | Path) -> str:
    """Which files the run in a folder did not leave out and cannot be decoded now, as a sentence; empty if none."""
    folder = Path(run_dir)
    new = sorted(set(data.left_out) - set(_read(folder).left_out))
    if not new or not list(folder.glob(f"*{UNREADABLE}")):
        return ""
    return (
        f" {counted(len(new), 'file')} cannot be decoded now that this run uses: {short_names(new)}. To continue it, "
        "put back what was there."
    )


def _of_process(rank: int, name: str) -> str:
    """The name of a file that each process has of its own."""
    return name if rank == 0 else f"{rank}-{name}"


def _rank_in(path: Path) -> int:
    """The number of the process that wrote a file."""
    start = path.name.partition("-")[0]
    return int(start) if start.isdecimal() else 0


def _write_sizes(folder: Path, data: ImageData) -> None:
    """Write the sizes of all image files, unless the images are in memory."""
    sets = {"train": data.train, "validation": data.validation}
    if found := {name: _sizes(images) for name, images in sets.items() if images.files}:
        with writing_noted(folder / FILE_SIZES) as working:
            save_tensors(working, found, {})


def _changed_sizes(folder: Path, train: ImageSet, validation: ImageSet, known: Collection[str]) -> dict[str, int]:
    """The files that have another size than when a run began, with the size at that time; none if there are many."""
    before, changed = _sizes_before(folder), {}
    for name, images in {"train": train, "validation": validation}.items():
        if name not in before or len(before[name]) != len(images.files):
            continue
        for index in (before[name] != _sizes(images)).nonzero().flatten().tolist():
            changed[images.files[index]] = int(before[name][index])
    changed = {path: size for path, size in changed.items() if path not in known}
    return changed if len(changed) <= MAX_CHANGED * (len(train.files) + len(validation.files)) else {}


def _sizes_before(folder: Path) -> dict[str, Tensor]:
    """The sizes that were noted when a run began; empty if there are none. A damaged file is named, and not read."""
    file = folder / FILE_SIZES
    if _has_no_results(folder):
        return {}
    digests = Digests(folder)
    compared = digests.compare(FILE_SIZES)
    if compared.state is State.MISSING and not digests.versions(FILE_SIZES):
        return {}
    problem = "is missing" if compared.state is State.MISSING else IS_DAMAGED
    if compared.state in (State.GOOD, State.UNKNOWN):
        try:
            return load_file(file)
        except SafetensorError as error:
            problem = f"is damaged: {error}"
    log(f"{file} {problem}; image files that were damaged since the run began are not told by their size")
    return {}


def _sizes(images: ImageSet) -> Tensor:
    """Sizes of the files in bytes, `(n,)` int64; of unreadable files at the start of the run."""
    return torch.from_numpy(images.unreadable.file_sizes(images.files))


def _read(folder: Path) -> Record:
    """The records of all processes of a run; empty if the folder has no results."""
    if _has_no_results(folder):
        return Record()
    left_out: set[str] = set()
    replaced: dict[str, int] = {}
    manifests = [Digests(folder, path.name) for path in folder.glob(f"*{DIGESTS}")]
    noted = {folder / name for digests in manifests for name in digests.names() if name.endswith(UNREADABLE)}
    for file in sorted({*noted, *folder.glob(f"*{UNREADABLE}")}):
        text = read_kept_text(file, Digests(folder, _of_process(_rank_in(file), DIGESTS)))
        try:
            found = Record() if text is None else parsed(file, _parse, text)
        except CheckpointMismatch as problem:
            raise CheckpointMismatch(f"{problem} Delete it and repeat the command.") from None
        left_out |= set(found.left_out)
        replaced |= found.replaced
    return Record(left_out=tuple(sorted(left_out)), replaced=replaced)


def _parse(text: str) -> Record:
    content = json.loads(text)
    replaced = {str(name): int(size) for name, size in content["replaced"].items()}
    return Record(left_out=tuple(map(str, content["left out"])), replaced=replaced)


def _has_no_results(folder: Path) -> bool:
    return not folder.is_dir() or is_fresh(folder)


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
