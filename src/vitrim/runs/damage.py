"""Finds damage: files of run folders and model folders that are not what vitrim wrote. Nothing is changed or mended."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrim.errors import CheckpointMismatch
from vitrim.runs.digests import IS_DAMAGED, MODEL, Compared, Digests, State
from vitrim.runs.files import CONFIG, DIGESTS, RUN, SNAPSHOTS, WEIGHTS


@dataclass(frozen=True, kw_only=True)
class Damage:
    """A file of a run folder or a model folder that is not what vitrim wrote.

    Attributes:
        path: of the file.
        kind: `changed`; `missing`, if its digest is noted and it is not there; `unlisted`, if no digest is noted.
    """

    path: Path
    kind: Literal["changed", "missing", "unlisted"]


def check_model_folder(folder: Path) -> None:
    """Check the configuration and the weights of a model folder. A folder without digests is accepted.

    Raises:
        CheckpointMismatch: a file is not what was saved; says which, and what to do.
    """
    digests = Digests(folder)
    noted = {name for version in digests.versions(MODEL) for name in version.sha256} & {CONFIG, WEIGHTS}
    missing = sorted(name for name in noted if not (folder / name).is_file())
    compared = Compared(state=State.DAMAGED) if missing else digests.compare(MODEL, only=(CONFIG, WEIGHTS))
    if compared.state is not State.DAMAGED:
        return
    run = folder.parent.parent if folder.parent.name == SNAPSHOTS else folder.parent
    is_of_run = (folder.name == "model" or run != folder.parent) and (run / RUN).is_file()
    remedy = "Repeat the command of its run, which writes it again" if is_of_run else "Get the folder again"
    files = " and ".join(map(str, compared.changed))
    damage = f"{files} {'are' if len(compared.changed) > 1 else 'is'} damaged: the content is not what was saved"
    raise CheckpointMismatch(
        f"{f'{folder} has no {missing[0]}, which was saved in it' if missing else damage}. {remedy}. If this was "
        f"changed on purpose, delete {digests.path}."
    )


def check_file(path: Path) -> None:
    """Check one file of a run folder or a model folder. A file whose digest is not noted is accepted.

    Raises:
        CheckpointMismatch: it is not what was written; says what to do.
    """
    for folder in (path.parent, path.parent.parent):
        digests = Digests(folder)
        if not digests.path.exists():
            continue
        name = path.relative_to(folder).as_posix()
        compared = digests.compare(name)
        if compared.state is State.UNKNOWN and folder == path.parent:  # it may be a file of a model
            compared = digests.compare(MODEL, only=(path.name,))
        if compared.state is State.DAMAGED:
            raise CheckpointMismatch(
                f"{path} {IS_DAMAGED}. Get the file again. If it was changed on purpose, copy it to another folder and "
                "use the copy."
            )


def check_folder(folder: Path) -> list[Damage]:
    """Compare all files of a run folder or a model folder with their digests. Nothing is changed.

    Args:
        folder: which may have other folders with digests in it. Hidden files are not looked at.

    Returns:
        The files that were changed since they were written, those that are missing, and those without a digest.
    """
    found: dict[Path, Damage] = {}
    listed: set[Path] = set()
    for manifest in sorted(path for path in folder.rglob(f"*{DIGESTS}") if not _hidden(path, folder)):
        listed.add(manifest)
        digests = Digests(manifest.parent, manifest.name)
        if not digests.is_readable():
            found[manifest] = Damage(path=manifest, kind="changed")
            continue
        for name in digests.names():
            for damage in _damages(digests, name, listed):
                found[damage.path] = damage
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file not in listed and file not in found and not _hidden(file, folder):
            found[file] = Damage(path=file, kind="unlisted")
    return [found[path] for path in sorted(found)]


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _damages(digests: Digests, name: str, listed: set[Path]) -> Iterator[Damage]:
    """The damages of one noted file or folder; its files are added to `listed`."""
    path, newest = digests.folder / name, digests.versions(name)[0]
    files = [path] if isinstance(newest.sha256, str) else [path / file for file in newest.sha256]
    listed.update(files)
    compared = digests.compare(name)
    if compared.state is State.GOOD:
        return
    for file in files:
        if not file.is_file():
            yield Damage(path=file, kind="missing" if not file.exists() else "changed")
        elif file in compared.changed or path in compared.changed:
            yield Damage(path=file, kind="changed")
