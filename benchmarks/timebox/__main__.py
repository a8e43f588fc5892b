"""The command `python -m benchmarks.timebox`, which fits a benchmark into a given time. This file reads arguments."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from benchmarks.run import app_of, status_of

ModelName = Literal["vit-s", "vit-b", "smoke"]
Output = Annotated[Path, Parameter(name=["-o", "--output"])]

app = app_of("benchmarks.timebox", "Fit the benchmark into a given time: choose epochs and arms by measured speeds.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Where the images are."""

    data: Annotated[
        str, Parameter(help="images: tiny-imagenet, cifar100, digits, or a folder of square images of one size")
    ] = "tiny-imagenet"
    data_dir: Annotated[
        Path | None, Parameter(help="folder of a named data set (default: the cache, or a download)")
    ] = None
    arrays: Annotated[
        Path | None,
        Parameter(help="folder that `feed` writes, used instead of image files (default: none); may still be written"),
    ] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is run in the time."""

    weights: Annotated[
        Path | None,
        Parameter(
            help="weights of the dense model from an earlier run: a file, or its pieces by the name before .piece- "
            "(default: the dense model is trained)"
        ),
    ] = None
    dense_only: Annotated[
        bool, Parameter(negative="", help="train the dense model only, for a later run with --weights")
    ] = False
    keeps: Annotated[
        str, Parameter(help="fractions to keep whose arms must fit the time, e.g. 0.7,0.5; others run if time is left")
    ] = "0.7"
    max_epochs: Annotated[
        int, Parameter(help="max epochs of a student; the dense model has 2 to 2.5 times as many")
    ] = 50


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """Limits on the packed files."""

    pack_mb: Annotated[float, Parameter(help="max megabytes of one packed file")] = 16.0
    pack_files: Annotated[int, Parameter(help="max number of packed files")] = 8
    pack_weights: Annotated[str, Parameter(help="models whose weights are packed, e.g. dense,keep-0.7/vitrim")] = (
        "dense"
    )


@app.default
def timebox(
    *,
    output: Output,
    seconds: float | None = None,
    model: ModelName = "vit-s",
    images: ImageOptions | None = None,
    plan: PlanOptions | None = None,
    packing: PackOptions | None = None,
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
    """
    from benchmarks.timebox.pack import PackLimits
    from benchmarks.timebox.work import Settings, run_timebox

    images, plan, packing = images or ImageOptions(), plan or PlanOptions(), packing or PackOptions()
    settings = Settings(
        model=model,
        data=images.data,
        data_dir=images.data_dir,
        arrays=images.arrays,
        weights=plan.weights,
        dense_only=plan.dense_only,
        keeps=_fractions(plan.keeps),
        max_epochs=plan.max_epochs,
        pack_models=_words(packing.pack_weights),
        limits=PackLimits(files=packing.pack_files, megabytes=packing.pack_mb),
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
def pack(run: Path, to: Path, /, *, packing: PackOptions | None = None, first_piece: int = 0) -> None:
    """Write the results of a run into a few small files: records first, then weights in half precision.

    Parameters
    ----------
    run
        Folder of the run. It may still be written.
    to
        Folder for the files.
    first_piece
        First piece of the first model; earlier pieces are left out.
    """
    from benchmarks.timebox.pack import PackLimits
    from benchmarks.timebox.pack import pack as write
    from vitrim.errors import SettingError

    if not run.is_dir():
        raise SettingError(f"There is no folder {run}.")
    packing = packing or PackOptions()
    limits = PackLimits(files=packing.pack_files, megabytes=packing.pack_mb)
    write(run, to, limits, models=_words(packing.pack_weights), first_piece=first_piece)


@app.command
def prepare(
    output: Path,
    /,
    *,
    archive: Annotated[list[Path] | None, Parameter(consume_multiple=True)] = None,
    weights: Path | None = None,
    wheels: Path | None = None,
    commit: str = "HEAD",
    limit_mib: float = 64.0,
    besides_mib: float = 0.0,
) -> None:
    """Make the folders that are copied to a rented machine: code, wheels, parts of an archive, and weights.

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
        Max MiB copied for one call.
    besides_mib
        MiB that are copied for each call besides its folder.
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
