"""The section `growth`: how time and memory of `compress` grow with the model, the images and the classes.

`compress` is compared with plain training steps of the dense model: forward, cross entropy, backward, AdamW. There are
as many steps as `compress` makes updates, with the same batch size. Two measurements at different sizes give the
growth:

* Time of `compress`, from its first stage to its report. Its parts without training may grow as fast as training.
* Peak memory of the process, without model and images, against that of one plain step.

Only growth has a limit. A constant factor is allowed, such as a teacher in addition to the student. Settings that the
user chooses (batch size, calibration images, number of epochs) are the same at all points. Training is very short here,
so that the parts without training weigh more than in a real run. How one point is measured belongs to `growth_process`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.costs.cases import TINY
from benchmarks.costs.growth_process import (
    BATCH_SIZE,
    CALIBRATION_IMAGES,
    KEEP,
    VALIDATION_IMAGES,
    Point,
    Values,
    answer,
    architecture,
    in_its_own_process,
    points_of,
)
from benchmarks.costs.ratios import Ratio
from vitrim.runs.progress import log

LIMIT = 1.10
MAX_GIB = 16.0


def measure_growth(*, smoke: bool = False) -> tuple[list[Ratio], list[Values]]:
    """Measure all lines of the section, and the points of its plot.

    A point holds `x` (parameters, training images or classes), `seconds` of `compress`, and `step_seconds` of as many
    plain training steps as `compress` makes updates. `model_bytes` are the bytes of the weights. `peak_bytes` and
    `step_peak_bytes` are the peak memory of `compress` and of a step, without model and images.

    Args:
        smoke: two tiny models in this process. The figures mean nothing.
    """
    ask = answer if smoke else in_its_own_process

    @cache  # points that differ only in the number of images share their step
    def step_peak(question: str) -> int:
        return ask(json.loads(question))["peak_bytes"]

    found = [_measured(point, ask, step_peak) for point in points_of(smoke=smoke)]
    rows = [row for along in dict.fromkeys(each["along"] for each in found) for row in _growth(along, found)]
    shown = [{key: value for key, value in each.items() if key != "rounds"} for each in found]
    return rows + _large(ask, smoke=smoke), shown


def _measured(point: Point, ask: Callable[[Values], Values], step_peak: Callable[[str], int]) -> Values:
    log(f"{point.name}, {point.num_images} images, {point.num_classes} classes: compress")
    found = ask({"run": "compress", **asdict(point)})
    step = asdict(replace(point, along="", rounds=1, num_images=BATCH_SIZE))
    seconds = [each["compress"] for each in found["rounds"]]
    steps = [each["step"] * point.updates for each in found["rounds"]]
    axes = {"size": found["params"], "images": point.num_images, "classes": point.num_classes}
    return {
        "along": point.along,
        "x": axes[point.along],
        "name": point.name,
        "seconds": float(np.median(seconds)),
        "step_seconds": float(np.median(steps)),
        "steps": point.updates,
        "num_images": point.num_images,
        "rounds": np.divide(seconds, steps),
        "model_bytes": found["model_bytes"],
        "peak_bytes": found["peak_bytes"],
        "step_peak_bytes": step_peak(json.dumps({"run": "step", **step})),
    }


def _growth(along: str, found: Sequence[Values]) -> Iterator[Ratio]:
    """Compare the ends of the axis, and its last two points, where constant costs matter least."""
    chosen = [each for each in found if each["along"] == along]
    pairs = dict.fromkeys([(0, len(chosen) - 1), list(pairwise(range(len(chosen))))[-1]])
    for small, large in ((chosen[start], chosen[end]) for start, end in pairs):
        setting = f"{_setting(chosen)}; compress {{}}, steps {{}}"
        ends, about = f"{_end(small)} to {_end(large)}", {"section": "growth", "limit": LIMIT}
        yield Ratio.timed(
            np.divide.outer(large["rounds"], small["rounds"]).ravel(),
            measure=f"growth of the time of compress: {ends}",
            against="growth of the time of as many training steps",
            setting=setting.format(*(_grown(small, large, key, "s") for key in ("seconds", "step_seconds"))),
            **about,
        )
        yield Ratio.counted(
            large["peak_bytes"] / small["peak_bytes"] / (large["step_peak_bytes"] / small["step_peak_bytes"]),
            measure=f"growth of the peak memory of compress: {ends}",
            against="growth of the peak memory of a training step",
            setting=setting.format(*(_grown(small, large, key, "MB") for key in ("peak_bytes", "step_peak_bytes")))
            + "; without model and images",
            **about,
        )


def _setting(chosen: Sequence[Values]) -> str:
    images = " to ".join(str(count) for count in dict.fromkeys(chosen[end]["num_images"] for end in (0, -1)))
    return (
        f"images of 32 x 32, patches of 8, {images} for training, {CALIBRATION_IMAGES} for calibration, "
        f"{VALIDATION_IMAGES} for validation, batch {BATCH_SIZE}, two trainings of one epoch, keep {KEEP}, one block "
        f"removed, float32, {torch.get_num_threads()} threads"
    )


def _end(point: Values) -> str:
    return point["name"] if point["along"] == "size" else f"{point['x']} {point['along']}"


def _grown(small: Values, large: Values, key: str, unit: str) -> str:
    scale = 1e6 if unit == "MB" else 1
    return f"{small[key] / scale:.3g} to {large[key] / scale:.3g} {unit}"


def _large(ask: Callable[[Values], Values], *, smoke: bool) -> list[Ratio]:
    """Measure time and peak memory of scoring and pruning a large model."""
    arguments = {**TINY} if smoke else {}
    images, batch_size = (2, 2) if smoke else (8, 4)
    model = {"architecture": architecture("tiny" if smoke else "large"), "arguments": arguments}
    name = "a tiny ViT" if smoke else "ViT-L/16 at 224 x 224"
    about: Mapping[str, Any] = {"section": "growth", "against": ""}
    rows = []
    for run, of in (("score", f"{images} random images in batches of {batch_size}"), ("prune", "random scores")):
        log(f"{name}: {run}")
        found = ask({"run": run, "num_images": images, "batch_size": batch_size, **model})
        setting = f"{name}, {found['params'] / 1e6:.0f} M parameters, float32, {torch.get_num_threads()} threads, {of}"
        peak = found["whole_peak_bytes"] / 2**30
        rows += [
            Ratio.counted(found["seconds"], measure=f"time of {run}: {name}", unit="s", setting=setting, **about),
            Ratio.counted(
                peak,
                measure=f"peak memory of the process in {run}: {name}",
                unit="GiB",
                limit=MAX_GIB,
                setting=setting,
                **about,
            ),
        ]
    return rows
