"""The command `python -m benchmarks.latencies OUT`, which times the final models of a cell against its dense model.

The final model of each arm and fraction to keep runs by turns with the dense model, in one process. The lowest seed is
timed, because the seeds of an arm have about the same size. `OUT/latency.json` is written after each model, and
`benchmarks.table` reads it. Latencies are measured after the runs, because a busy machine would change them.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measurements import LATENCIES, Measurement, group, read_latencies, read_measurements
from benchmarks.run import app_of, status_of

if TYPE_CHECKING:
    from torch import nn

    from vitrim.costs.latency import LatencySettings

app = app_of("benchmarks.latencies")


@app.default
def latencies(output: Path, /, *, batch_size: int = 64, rounds: int = 50, warmup: int = 5) -> None:
    """Time the final model of each arm against the dense model, and write OUT/latency.json.

    The same command continues after an interruption. Models that were timed are not timed again. The environment
    variable OMP_NUM_THREADS sets the number of threads.

    Example: `OMP_NUM_THREADS=1 python -m benchmarks.latencies runs/cifar100-small --batch-size 64`

    Parameters
    ----------
    output
        Folder that `python -m benchmarks.run` wrote.
    batch_size
        Images in one forward pass. The file keeps the results of other batch sizes.
    rounds
        Rounds that count. Each of the two models runs once in each round.
    warmup
        Rounds before them, which do not count.
    """
    from vitrim.costs.latency import LatencySettings, busy_note, ratio_text
    from vitrim.runs.files import write_text
    from vitrim.runs.progress import log

    settings = LatencySettings(batch_size=batch_size, rounds=rounds, warmup=warmup)
    found, notes = read_measurements([output])
    for note in [*notes, *filter(None, [busy_note()])]:
        log(note)
    dense = _DenseModels(output)
    for (cell, keep, arm), members in group(found).items():
        first, rows = members[0], read_latencies(output)
        row: dict[str, Any] = {"cell": cell, "keep": keep, "arm": arm, "seed": first.seed, "batch_size": batch_size}
        row["weights"] = [_weights_digest(first.path.parent), _weights_digest(dense.folder(first))]
        if any(row.items() <= earlier.items() for earlier in rows):
            continue
        row |= _measured(dense.model(first), _model_of(first, dense), settings)
        same = ("cell", "keep", "arm", "batch_size")
        rows = [earlier for earlier in rows if any(earlier[key] != row[key] for key in same)]
        write_text(output / LATENCIES, json.dumps([*rows, row], indent=1, allow_nan=False) + "\n")
        ratio = ratio_text(row["ratio"], row["low"], row["high"])
        log(f"keep {keep:g}, {arm}: {row['ms']:.2f} ms, dense model {row['dense_ms']:.2f} ms, {ratio}")


class _DenseModels:
    """The dense models of a cell. The last one stays in memory."""

    def __init__(self, output: Path) -> None:
        self._output = output
        self._model: tuple[Path, nn.Module] | None = None

    def folder(self, measurement: Measurement) -> Path:
        """Return the folder of the dense model with which an arm began."""
        values = measurement.values
        default = f"seed-{values.get('dense_seed', measurement.seed)}/dense"  # where earlier versions have it
        return self._output / values.get("dense_folder", default)

    def model(self, measurement: Measurement) -> "nn.Module":
        """Return the dense model with which an arm began."""
        folder = self.folder(measurement)
        if self._model is None or self._model[0] != folder:
            self._model = folder, _load(folder / "model")
        return self._model[1]


def _model_of(measurement: Measurement, dense: _DenseModels) -> "nn.Module":
    """Return the final model of an arm."""
    folder = measurement.path.parent
    if (folder / "model").is_dir():
        return _load(folder / "model")
    from benchmarks.torch_pruning_head_widths import read_narrow_model  # only one arm needs the package

    model: nn.Module = read_narrow_model(dense.model(measurement), folder / "model.safetensors")
    return model


def _load(folder: Path) -> "nn.Module":
    from vitrim.runs.processes import this_process
    from vitrim.saving.checkpoint import load

    return load(folder, device=this_process().device)


def _weights_digest(folder: Path) -> str:
    """Return the SHA-256 of the weights in the folder of an arm or of a dense model."""
    from vitrim.errors import DataError
    from vitrim.runs.digests import sha256_of

    files = [folder / "model" / "model.safetensors", folder / "model.safetensors"]
    for file in files:
        if file.is_file():
            return sha256_of(file)
    raise DataError(f"{folder} has no model; expected {files[0]}. Repeat the command that made this folder.")


def _measured(dense: "nn.Module", model: "nn.Module", settings: "LatencySettings") -> dict[str, Any]:
    """Time a model against the dense model. Return milliseconds of a batch, the ratio and its 95 % interval."""
    from benchmarks.cell import commit
    from vitrim.costs.latency import busy_note, measure_latencies
    from vitrim.runs.environment import environment

    busy = busy_note()
    of_dense, found = measure_latencies([dense, model], settings)
    place = environment(next(model.parameters()).device)
    threads = "one thread" if found.threads == 1 else f"{found.threads} threads"
    device = f"{threads} of {place['cpu']}" if place["device"] == "cpu" else place["device"]
    return {
        **{"ratio": found.ratio, "low": found.ratio_low, "high": found.ratio_high},
        **{"ms": found.median_ms, "dense_ms": of_dense.median_ms, "rounds": settings.rounds},
        **{"on": f"PyTorch, {device}", "busy": busy, "environment": place, "commit": commit()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    sys.exit(status_of(app, arguments))


if __name__ == "__main__":
    main()
