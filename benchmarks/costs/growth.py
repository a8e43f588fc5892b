"""How a whole `compress` grows with the model, the images and the classes, beside the model's own training steps.

The yardstick is as many plain training steps of the dense model as `compress` makes updates, with the same batches:
forward, cross entropy, backward, AdamW. They grow with the images by their number and with the model and its classes
by what each takes. Time: `compress` from its first stage to its report, so all that it does besides training may grow
as fast as training, not faster. Memory: what the process takes at most beyond model and images, against one such step.
Growth, not size: a constant factor, such as a teacher beside the student, is allowed. What the user sets once (batch,
calibration images, number of epochs) is the same at all points. Training is as short as it can be here, so that what
is not training weighs more than in any real run: by default 2048 images calibrate and thousands train for 40 epochs.

Each point runs in processes of its own, whose peaks Linux counts: `python -m benchmarks.costs.growth --point JSON`.
A tiny model is compressed there first, so that what is only imported or started is in no figure.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.costs.distillation import TINY, noise
from benchmarks.costs.ratios import Ratio
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData
from vitrim.data.matching import preprocessing_of
from vitrim.hooks import logits_of
from vitrim.importance import ImportanceSettings, score
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.pipeline import compress
from vitrim.recipe import DepthSettings, Recipe
from vitrim.runs.progress import log
from vitrim.surgery import prune
from vitrim.training import TrainingSettings

BOUND = 1.10
MAX_GIB = 16.0
KEEP = 0.7
BATCH_SIZE = 8
CALIBRATION_IMAGES = 16
VALIDATION_IMAGES = 16
TRAININGS = 2  # after the width and after the depth cut, an epoch each
STEPS_TIMED = 5
SIZES = {"ViT-Ti": "tiny", "ViT-S": "small", "ViT-B": "base", "ViT-L": "large"}
Found = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model and data set. rounds: how often it is compressed and timed; peaks are those of the first time."""

    along: str
    name: str
    architecture: str
    num_images: int = 64
    num_classes: int = 100
    rounds: int = 1
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"img_size": 32, "patch_size": 8})

    @property
    def updates(self) -> int:
        """Of the weights, in one `compress`."""
        return TRAININGS * (self.num_images // BATCH_SIZE)

    def make(self) -> tuple[nn.Module, ImageData]:
        torch.manual_seed(0)
        model = create_model(self.architecture, num_classes=self.num_classes, **self.arguments)
        data = noise(self.num_images, self.arguments["img_size"], self.num_classes)
        return model.eval(), replace(data, validation=data.train.subset(range(min(VALIDATION_IMAGES, self.num_images))))


def points_of(*, smoke: bool = False) -> list[Point]:
    """All points, those along one axis from small to large."""
    if smoke:
        arguments = {key: value for key, value in TINY.items() if key not in ("num_classes", "embed_dim")}
        return [
            Point(
                along="size",
                name=f"a tiny ViT, width {width}",
                architecture="vit_tiny_patch16_224",
                num_images=BATCH_SIZE,
                num_classes=10,
                arguments={**arguments, "embed_dim": width},
            )
            for width in (32, 48)
        ]
    sizes = [
        Point(along="size", name=name, architecture=_architecture(size), rounds=3 if size in ("tiny", "small") else 1)
        for name, size in SIZES.items()
    ]
    tiny: Mapping[str, Any] = {"name": "ViT-Ti", "architecture": _architecture("tiny")}
    images = [Point(along="images", num_images=count, **tiny) for count in (256, 512, 1024, 2048)]
    classes = [Point(along="classes", num_classes=count, rounds=3, **tiny) for count in (10, 100, 1000)]
    return [*sizes, *images, *classes]


def measure_growth(*, smoke: bool = False) -> tuple[list[Ratio], list[Found]]:
    """All lines of the section `growth`, and the points of its plot.

    A point holds `x` (parameters, training images or classes), `seconds` of `compress`, `step_seconds` of as many plain
    training steps as it makes updates, and in bytes the weights and what both take at most beyond them.

    Args:
        smoke: two tiny models in this process; the figures mean nothing.
    """
    ask = answer if smoke else in_its_own_process

    @cache  # points that differ in the number of images have the same step
    def step_peak(question: str) -> int:
        return ask(json.loads(question))["peak_bytes"]

    found = [_measured(point, ask, step_peak) for point in points_of(smoke=smoke)]
    rows = [row for along in dict.fromkeys(each["along"] for each in found) for row in _growth(along, found)]
    shown = [{key: value for key, value in each.items() if key != "rounds"} for each in found]
    return rows + _large(ask, smoke=smoke), shown


def _measured(point: Point, ask: Callable[[Found], Found], step_peak: Callable[[str], int]) -> Found:
    log(f"{point.name}, {point.num_images} images, {point.num_classes} classes: compress")
    whole = ask({"run": "compress", **asdict(point)})
    step = asdict(replace(point, along="", rounds=1, num_images=BATCH_SIZE))
    seconds = [each["compress"] for each in whole["rounds"]]
    steps = [each["step"] * point.updates for each in whole["rounds"]]
    axes = {"size": whole["params"], "images": point.num_images, "classes": point.num_classes}
    return {
        "along": point.along,
        "x": axes[point.along],
        "name": point.name,
        "seconds": float(np.median(seconds)),
        "step_seconds": float(np.median(steps)),
        "steps": point.updates,
        "num_images": point.num_images,
        "rounds": np.divide(seconds, steps),
        "model_bytes": whole["model_bytes"],
        "peak_bytes": whole["peak_bytes"],
        "step_peak_bytes": step_peak(json.dumps({"run": "step", **step})),
    }


def _growth(along: str, found: Sequence[Found]) -> Iterator[Ratio]:
    """Over the whole axis, where a constant part weighs most, and over its last stretch, where it weighs least."""
    chosen = [each for each in found if each["along"] == along]
    stretches = dict.fromkeys([(0, len(chosen) - 1), list(pairwise(range(len(chosen))))[-1]])
    for small, large in ((chosen[start], chosen[end]) for start, end in stretches):
        setting = f"{_setting(chosen)}; compress {{}}, steps {{}}"
        ends, about = f"{_end(small)} to {_end(large)}", {"section": "growth", "bound": BOUND}
        yield Ratio.timed(
            np.divide.outer(large["rounds"], small["rounds"]).ravel(),
            measure=f"growth of the time of compress: {ends}",
            against="the growth of as many training steps'",
            setting=setting.format(*(_grown(small, large, key, "s") for key in ("seconds", "step_seconds"))),
            **about,
        )
        yield Ratio.counted(
            large["peak_bytes"] / small["peak_bytes"] / (large["step_peak_bytes"] / small["step_peak_bytes"]),
            measure=f"growth of the peak memory of compress: {ends}",
            against="the growth of a training step's",
            setting=setting.format(*(_grown(small, large, key, "MB") for key in ("peak_bytes", "step_peak_bytes")))
            + "; beyond model and images",
            **about,
        )


def _setting(chosen: Sequence[Found]) -> str:
    images = " to ".join(str(count) for count in dict.fromkeys(chosen[end]["num_images"] for end in (0, -1)))
    return (
        f"images of 32 x 32, patches of 8, {images} for training, {CALIBRATION_IMAGES} for calibration, "
        f"{VALIDATION_IMAGES} for validation, batch {BATCH_SIZE}, two trainings of one epoch, keep {KEEP}, one block "
        f"fewer, float32, {torch.get_num_threads()} threads"
    )


def _end(point: Found) -> str:
    return point["name"] if point["along"] == "size" else f"{point['x']} {point['along']}"


def _grown(small: Found, large: Found, key: str, unit: str) -> str:
    scale = 1e6 if unit == "MB" else 1
    return f"{small[key] / scale:.3g} to {large[key] / scale:.3g} {unit}"


def _large(ask: Callable[[Found], Found], *, smoke: bool) -> list[Ratio]:
    """Whether a large model is scored and cut within this machine's memory."""
    arguments = {**TINY} if smoke else {}
    images, batch_size = (2, 2) if smoke else (8, 4)
    model = {"architecture": _architecture("tiny" if smoke else "large"), "arguments": arguments}
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
                measure=f"peak memory of {run}, the whole process: {name}",
                unit="GiB",
                bound=MAX_GIB,
                setting=setting,
                **about,
            ),
        ]
    return rows


# In the process of one point


def in_its_own_process(question: Found) -> Found:
    """The answer of a fresh process without a GPU."""
    command = [sys.executable, "-m", "benchmarks.costs.growth", "--point", json.dumps(question)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(question: Found) -> Found:
    """Run what is asked for: `compress` or `step` of a point, `score` or `prune` of a model."""
    question = dict(question)
    run = question.pop("run")
    if run in ("compress", "step"):
        return {"compress": _compress, "step": _steps}[run](Point(**question))
    return {"score": _score, "prune": _prune}[run](**question)


def _compress(point: Point) -> Found:
    compress_once(*points_of(smoke=True)[0].make())
    model, data = point.make()
    before = _start_peak()
    rounds = [{"compress": compress_once(model, data)}]
    peak = _peak_beyond(before)
    rounds[0]["step"] = seconds_of_step(model, data)
    for _ in range(1, point.rounds):
        rounds.append({"compress": compress_once(model, data), "step": seconds_of_step(model, data)})
    return {**_size(model), "rounds": rounds, "peak_bytes": peak}


def _steps(point: Point) -> Found:
    seconds_of_step(*points_of(smoke=True)[0].make())
    model, data = point.make()
    before = _start_peak()
    seconds_of_step(model, data)
    return {**_size(model), "peak_bytes": _peak_beyond(before)}


def _score(architecture: str, arguments: Found, num_images: int, batch_size: int) -> Found:
    model = create_model(architecture, **arguments).eval()
    structure = describe(model)
    images = torch.randn(num_images, structure.in_chans, *structure.img_size)
    labels = torch.arange(num_images) % structure.num_classes
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    _start_peak()
    start = time.perf_counter()
    score(model, batches)
    return {**_size(model), "seconds": time.perf_counter() - start, "whole_peak_bytes": _memory("VmHWM")}


def _prune(architecture: str, arguments: Found, num_images: int, batch_size: int) -> Found:
    model = create_model(architecture, **arguments).eval()
    plan = allocate(describe(model), score(model, [], "random"), Budget(params=KEEP, macs=KEEP))
    _start_peak()
    start = time.perf_counter()
    student = prune(model, plan)
    seconds = time.perf_counter() - start
    assert _size(student)["params"] <= KEEP * _size(model)["params"]
    return {**_size(model), "seconds": seconds, "whole_peak_bytes": _memory("VmHWM")}


def compress_once(model: nn.Module, data: ImageData) -> float:
    """Seconds of one whole `compress`, every stage in it."""
    training = TrainingSettings(epochs=1, batch_size=BATCH_SIZE, warmup_epochs=0)
    recipe = Recipe(
        budget=Budget(params=KEEP, macs=KEEP),
        importance=ImportanceSettings(num_images=CALIBRATION_IMAGES, batch_size=BATCH_SIZE, steps=2),
        depth=DepthSettings(blocks=1),
        width_training=training,
        depth_training=training,
        latency=LatencySettings(rounds=3, warmup=1),
    )
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        compress(model, data, recipe, Path(folder) / "run")
        return time.perf_counter() - start


def seconds_of_step(model: nn.Module, data: ImageData) -> float:
    """The median of a few plain training steps, behind one in which the moments are made; the weights are put back."""
    images, labels = next(eval_batches(data.train, preprocessing_of(model), batch_size=BATCH_SIZE))
    # no rate, no decay: all is computed, and the weights stay
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
    model.train()
    seconds = []
    for _ in range(1 + STEPS_TIMED):
        start = time.perf_counter()
        F.cross_entropy(logits_of(model(images)), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    model.eval()
    return float(np.median(seconds[1:]))


def _size(model: nn.Module) -> Found:
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "model_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
    }


def _start_peak() -> int:
    """Bytes resident now, from which on the peak counts; not `ru_maxrss`, which begins with that of the parent."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak_beyond(before: int) -> int:
    return max(1, _memory("VmHWM") - before)  # a tiny model may fit into what was freed, and ratios divide by it


def _memory(key: str) -> int:
    """Bytes, as Linux tells of this process: `VmRSS` resident now, `VmHWM` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"/proc/self/status does not tell {key}")


def _architecture(size: str) -> str:
    return f"vit_{size}_patch16_224"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure one point in this process and print one line of JSON.")
    parser.add_argument("--point", type=json.loads, required=True)
    print(json.dumps(answer(parser.parse_args().point)))
