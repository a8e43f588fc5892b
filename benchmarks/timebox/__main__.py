"""The command `python -m benchmarks.timebox`, which fits a benchmark into a given time. This file reads arguments."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from benchmarks.run import status_of

ModelName = Literal["vit-s", "vit-b", "smoke"]
Output = Annotated[Path, Parameter(name=["-o", "--output"])]

app = App(
    name="benchmarks.timebox",
    help="Fit the benchmark into a given time: choose epochs and arms by measured speeds.",
    help_format="markdown",
    suppress_keyboard_interrupt=False,  # `status_of` prints how to continue
)


@app.default
def timebox(
    *,
    output: Output,
    seconds: float | None = None,
    model: ModelName = "vit-s",
    data: str = "tiny-imagenet",
    data_dir: Path | None = None,
    arrays: Path | None = None,
    weights: Path | None = None,
    dense_only: Annotated[bool, Parameter(negative="")] = False,
    keeps: str = "0.7",
    max_epochs: int = 50,
    pack_mb: float = 16.0,
    pack_files: int = 8,
    pack_weights: str = "dense",
) -> None:
    """Train a dense model and run the arms that fit the time. The same command continues after it was killed.

    Example: `python -m benchmarks.timebox --seconds 800 --model vit-s --data tiny-imagenet -o runs/timebox`

    Parameters
    ----------
    output
        Folder of the run. Results in small files are in its folder pack.
    seconds
        Time for everything, from the first start (default: wait until another command sets the deadline).
    model
        Model to train.
    data
        Images: tiny-imagenet, cifar100, digits, or a folder of square images of one size.
    data_dir
        Folder of a named data set (default: the cache, or a download).
    arrays
        Folder that `feed` writes, used instead of image files (default: none). It may still be written.
    weights
        Weights of the dense model from an earlier run: a file, or its pieces by the name before .piece-
        (default: the dense model is trained).
    dense_only
        Train the dense model only, for a later run with --weights.
    keeps
        Fractions to keep whose arms must fit the time, e.g. 0.7,0.5. Others run if time is left.
    max_epochs
        Max epochs of a student. The dense model gets 2 to 2.5 times as many.
    pack_mb
        Max megabytes of one packed file.
    pack_files
        Max number of packed files.
    pack_weights
        Models whose weights are packed, e.g. dense,keep-0.7/vitrim.
    """
    from benchmarks.timebox.pack import PackLimits
    from benchmarks.timebox.work import Settings, run_timebox

    settings = Settings(
        model=model,
        data=data,
        data_dir=data_dir,
        arrays=arrays,
        weights=weights,
        dense_only=dense_only,
        keeps=_fractions(keeps),
        max_epochs=max_epochs,
        pack_models=_words(pack_weights),
        limits=PackLimits(files=pack_files, megabytes=pack_mb),
    )
    run_timebox(settings, output, seconds)


@app.command
def speeds(*, output: Output, model: ModelName = "vit-s", data: str = "tiny-imagenet", compiled: bool = True) -> None:
    """Measure the speeds that the schedule needs, before the images are there. It may be killed at any time.

    Parameters
    ----------
    output
        Folder of the run.
    model
        Model to train.
    data
        A named data set.
    compiled
        Also measure compiled training.
    """
    from benchmarks.timebox.configuration import DATA_SETS
    from benchmarks.timebox.speeds import SPEEDS, Probe, measure_speeds
    from vitrim.errors import SettingError

    if data not in DATA_SETS:
        raise SettingError(f"--data is {data!r}; speeds are measured before only for {', '.join(DATA_SETS)}.")
    sizes = DATA_SETS[data]
    probe = Probe(model=model, data=sizes, num_classes=sizes.num_classes)
    measure_speeds(probe, output / SPEEDS, compiled=compiled)


@app.command
def feed(parts: list[Path], /, *, output: Output, timeout: float = 900.0) -> None:
    """Decode an archive of images into arrays while its parts arrive.

    Example: `python -m benchmarks.timebox feed parts/t.tar.xz.part0 parts/t.tar.xz.part1 -o arrays`

    Parameters
    ----------
    parts
        Parts of a tar archive in their order. They need not be there yet, and must appear whole.
    output
        Folder of the arrays.
    timeout
        Seconds to wait for one part.
    """
    from benchmarks.timebox.feed import feed as decode

    decode(parts, output, timeout=timeout)


@app.command
def pack(
    run: Path, to: Path, /, *, pack_mb: float = 16.0, pack_files: int = 8, weights: str = "dense", first_piece: int = 0
) -> None:
    """Write the results of a run into a few small files: records first, then weights in half precision.

    Parameters
    ----------
    run
        Folder of the run. It may still be written.
    to
        Folder for the files.
    pack_mb
        Max megabytes of one file.
    pack_files
        Max number of files.
    weights
        Models whose weights are packed, e.g. dense,keep-0.7/vitrim.
    first_piece
        First piece of the first model; earlier pieces are left out.
    """
    from benchmarks.timebox.pack import PackLimits
    from benchmarks.timebox.pack import pack as write

    limits = PackLimits(files=pack_files, megabytes=pack_mb)
    write(run, to, limits, models=_words(weights), first_piece=first_piece)


@app.command
def prepare(
    output: Path,
    /,
    *,
    archive: list[Path] | None = None,
    weights: Path | None = None,
    wheels: Path | None = None,
    commit: str = "HEAD",
    limit_mib: float = 64.0,
    besides_mib: float = 0.0,
) -> None:
    """Make the folders that are carried to a rented machine: code, wheels, parts of an archive, and weights.

    Parameters
    ----------
    output
        Folder for call0, call1, ...
    archive
        Parts of the archive of images, in their order (default: none).
    weights
        Weights for --weights: a file, or its pieces by the name before .piece- (default: none).
    wheels
        Folder with the folders need and maybe (default: the wheels are downloaded into OUTPUT/wheels).
    commit
        Commit of the code.
    limit_mib
        Max MiB carried with one call.
    besides_mib
        MiB that each call carries besides its folder.
    """
    from benchmarks.timebox.prepare import make_calls

    make_calls(
        output,
        parts=archive or [],
        weights=weights,
        wheels=wheels,
        commit=commit,
        max_bytes=int((limit_mib - besides_mib) * 2**20),
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _fractions(text: str) -> tuple[float, ...]:
    from vitrim.errors import SettingError

    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise SettingError(f"--keeps is {text!r}; expected fractions such as 0.7,0.5.") from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
