"""Reading the records of `python -m benchmarks.run`: one `arm.json` for each cell, fraction to keep, arm and seed.

This file checks that records belong together. Statistics over them belong to `results`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vitrim.errors import DataError

VITRIM, CONTROL, DISTILLED = "vitrim", "dense-control", "dense-distilled"
CONTROLS = (CONTROL, DISTILLED)  # have one measurement for all fractions to keep
ARMS = (
    VITRIM,
    "vitrim-whole-heads",
    "paper",
    "hard-labels",
    "torch-pruning",
    "torch-pruning-head-widths",
    "random",
    "magnitude",
    "scratch",
    "timm-small",
    *CONTROLS,
)
LATENCIES = "latency.json"  # written by `benchmarks.latencies`
CURVES, EPOCHS_FOLDER = "curves.json", "epochs-"  # written by `benchmarks.curves`: a file, and folders of other cells
_REQUIRED_KEYS = (
    *("cell", "model", "dataset", "keep", "arm", "seed", "student_epochs", "search_epochs", "dense_epochs", "tuning"),
    *("stages", "evaluation", "after_cut", "after_recover", "dense", "params_ratio", "macs_ratio", "seconds"),
    *("images_per_second", "train_macs_per_image", "environment", "command", "commit"),
)

Key = tuple[str, float, str]  # cell, keep, arm


@dataclass(frozen=True, kw_only=True, eq=False)
class Measurement:
    """One `arm.json`.

    Attributes:
        path: the file.
        values: its content.
        correct: for each test image, whether the final model's top-1 prediction is right, `(N,)` of bool.
        dense: the same for the dense model.
        after_cut: the same right after the first pruning. None for arms that do not prune.
        after_recover: the same after the recovery. None for arms without recovery.
        same: whether the final model and the dense model predict the same class, `(N,)` of bool. None in records of
            earlier versions, which do not compare the outputs.
        divergence: KL(dense || final model) of the outputs for each image, in nats, `(N,)`. None in such records.
        divergence_after_recover: the same after the recovery. None in such records and for arms without recovery.
        latency: how fast the final model is compared with the dense model, as `benchmarks.latencies` wrote it. Of
            several batch sizes, the largest. None if it was not measured, or with another seed.
    """

    path: Path
    values: dict[str, Any] = field(repr=False)
    correct: np.ndarray = field(repr=False)
    dense: np.ndarray = field(repr=False)
    after_cut: np.ndarray | None = field(repr=False)
    after_recover: np.ndarray | None = field(repr=False)
    same: np.ndarray | None = field(repr=False)
    divergence: np.ndarray | None = field(repr=False)
    divergence_after_recover: np.ndarray | None = field(repr=False)
    latency: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def key(self) -> Key:
        """The cell, the fraction to keep and the arm."""
        return self.values["cell"], float(self.values["keep"]), self.values["arm"]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.values["seed"])


Groups = dict[Key, list[Measurement]]


def read_measurements(folders: Iterable[Path]) -> tuple[list[Measurement], list[str]]:
    """Read all measurements in the folders. Also return one sentence for each incomplete file, which is skipped.

    Raises:
        DataError: a folder does not exist or has no complete measurement.
    """
    found: list[Measurement] = []
    notes: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}; expected a folder that `python -m benchmarks.run` wrote.")
        paths = [path for path in sorted(folder.rglob("arm.json")) if not _has_other_epochs(path.relative_to(folder))]
        before, latencies = len(found), read_latencies(folder)
        for path in paths:
            measurement = _read(path)
            if isinstance(measurement, str):
                notes.append(measurement)
            else:
                found.append(replace(measurement, latency=_latency_of(measurement, latencies)))
        if len(found) == before:
            raise DataError(
                f"{folder} holds no complete arm.json ({len(paths)} incomplete); run `python -m benchmarks.run` first."
            )
    return found, notes


def read_latencies(folder: Path) -> list[dict[str, Any]]:
    """Read what `benchmarks.latencies` wrote into the folder of a cell. No entries if it has not run.

    Raises:
        DataError: the file is not valid JSON.
    """
    file = folder / LATENCIES
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else []
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise DataError(f"{file} is not valid JSON: {problem}. Delete it and measure the latencies again.") from None


def group(measurements: Sequence[Measurement]) -> Groups:
    """Group measurements by cell, fraction to keep and arm. Each group is sorted by seed.

    Raises:
        DataError: one seed was measured twice, or the files of one cell are from different experiments.
    """
    groups: Groups = {}
    for measurement in sorted(measurements, key=lambda m: m.seed):
        groups.setdefault(measurement.key, []).append(measurement)
    for members in groups.values():
        for first, second in pairwise(members):
            if first.seed == second.seed:
                raise DataError(
                    f"{first.path} and {second.path} both hold seed {first.seed} of {describe(first.key)}; "
                    "pass only one of their folders."
                )
            _check_same(first, second, ("student_epochs", "dense_epochs", "tuning"))
    firsts: dict[str, Measurement] = {}
    for measurement in measurements:
        first = firsts.setdefault(measurement.key[0], measurement)
        _check_same(first, measurement, ("model", "dataset"))
        if len(first.correct) != len(measurement.correct):
            raise DataError(
                f"{first.path} and {measurement.path} were evaluated on {len(first.correct)} and "
                f"{len(measurement.correct)} images; one cell needs the same images for all its arms."
            )
    return groups


def describe(key: Key) -> str:
    """Return the key as text for messages."""
    cell, keep, arm = key
    return f"{cell}, keep {keep:g}, {arm}"


def _read(path: Path) -> Measurement | str:
    """Read one measurement, or return the sentence that says why it is skipped."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        return f"{path} is left out: it is not valid JSON ({problem})."
    missing = [name for name in _REQUIRED_KEYS if name not in values]
    if missing or not values["evaluation"] or not values["dense"]:
        return f"{path} is left out: it lacks {', '.join(missing) or 'the evaluation of the final or the dense model'}."
    if values["arm"] not in ARMS:
        raise DataError(f"{path} names the arm {values['arm']!r}; expected one of {', '.join(ARMS)}.")
    names = {"correct": "evaluation", "dense": "dense", "after_cut": "after_cut", "after_recover": "after_recover"}
    arrays = {name: _marks(values[source]) for name, source in names.items()}
    near, near_recovered = (values.get(key) for key in ("against_dense", "recovered_against_dense"))
    arrays["same"] = _marks(near, "same")
    arrays["divergence"], arrays["divergence_after_recover"] = _numbers(near), _numbers(near_recovered)
    sizes = {len(array) for array in arrays.values() if array is not None}
    if len(sizes) != 1 or 0 in sizes:
        raise DataError(f"{path} holds evaluations on {sizes} images; expected the same number of images for all.")
    return Measurement(path=path, values=values, **arrays)  # type: ignore[arg-type]


def _has_other_epochs(path: Path) -> bool:
    """Whether a file is of the same cell with another number of student epochs."""
    return any(part.startswith(EPOCHS_FOLDER) for part in path.parts)


def _latency_of(measurement: Measurement, latencies: list[dict[str, Any]]) -> dict[str, Any] | None:
    key = (*measurement.key, measurement.seed)
    found = [row for row in latencies if (row["cell"], row["keep"], row["arm"], row["seed"]) == key]
    return max(found, key=lambda row: row["batch_size"], default=None)


def _marks(values: dict[str, Any] | None, key: str = "correct") -> np.ndarray | None:
    """Read a text of 0 and 1, such as `correct` of `Evaluation.to_dict`, without importing torch."""
    return np.frombuffer(values[key].encode(), dtype=np.uint8) == ord("1") if values else None


def _numbers(values: dict[str, Any] | None) -> np.ndarray | None:
    """Read the divergence for each image from the text of `divergence.compare_logits`."""
    return np.array(values["kl_images"].split(), dtype=np.float32) if values else None


def _check_same(first: Measurement, second: Measurement, names: Sequence[str]) -> None:
    for name in names:
        one, other = first.values[name], second.values[name]
        if one != other:
            raise DataError(
                f"{first.path} has {name} {one!r} and {second.path} has {other!r} in one cell; "
                "give the two configurations different names."
            )
