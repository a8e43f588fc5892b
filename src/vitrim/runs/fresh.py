"""Run folders without a result: they may be reused for another run, and a run that ends there leaves nothing."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

from vitrim.runs.files import (
    DIGESTS,
    FILE_SIZES,
    FORECAST,
    HOLDER,
    LOCK,
    METRICS,
    RUN,
    SNAPSHOTS,
    STAGES,
    TENSORBOARD,
    TRACKING,
    UNREADABLE,
    is_partial,
)

NO_RESULTS = {RUN, "recipe.toml", FILE_SIZES, FORECAST, METRICS, TENSORBOARD, TRACKING}


def is_fresh(folder: Path) -> bool:
    """Whether a run folder has no result yet, so that it may be reused for another run."""
    names = {path.name for path in folder.iterdir() if not is_partial(path.name)}
    names = {name for name in names if not name.endswith((UNREADABLE, DIGESTS))}
    for name in names & {STAGES, SNAPSHOTS}:
        if not any((folder / name).iterdir()):  # made for a result that was not written
            names.remove(name)
    return names <= NO_RESULTS and not _has_epochs(folder / METRICS)


def _has_epochs(metrics: Path) -> bool:
    """Whether a training has finished an epoch. One that failed before has only rows about what went wrong."""
    if not metrics.is_file():
        return False
    return any('"event"' not in line for line in metrics.read_text("utf-8", errors="replace").splitlines())


def delete_if_fresh(folder: Path, keep: Collection[str]) -> None:
    """Delete what a run left in its folder, if it has ended before its first result.

    Args:
        keep: names of files that are not deleted.
    """
    with suppress(OSError):
        if is_fresh(folder) and not (folder / METRICS).exists():  # which says what went wrong
            for path in [path for path in folder.iterdir() if path.name not in {*keep, LOCK, HOLDER}]:
                if path.name == TENSORBOARD:
                    rmtree(path)
                else:
                    path.rmdir() if path.is_dir() else path.unlink()
