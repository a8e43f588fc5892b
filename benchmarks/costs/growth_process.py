"""One point of the section `growth`, measured in a process of its own.

Linux counts the peak memory of a process, so each point needs its own: `python -m benchmarks.costs.growth_process
--point JSON` prints one line of JSON. A tiny model is compressed there first, so that imports and first calls are not
counted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.costs.cases import TINY, random_data
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData
from vitrim.data.matching import preprocessing_of
from vitrim.hooks import logits_of
from vitrim.importance.criteria import ImportanceSettings, score
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.pipeline import compress
from vitrim.recipe import DepthSettings, Recipe
from vitrim.surgery import prune
from vitrim.training.settings import TrainingSettings

KEEP = 0.7
BATCH_SIZE = 8
CALIBRATION_IMAGES = 16
VALIDATION_IMAGES = 16
NUM_TRAININGS = 2  # one epoch after pruning width, one after pruning depth
STEPS_TIMED = 5
SIZES = {"ViT-Ti": "tiny", "ViT-S": "small", "ViT-B": "base", "ViT-L": "large"}
Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One model and data set.

    Attributes:
        along: the axis of the point: `size`, `images` or `classes`.
        name: name of the model.
        architecture: timm's name.
        num_images: training images.
        num_classes: classes.
        rounds: how often the model is compressed and timed. Peak memory is that of the first round.
        arguments: arguments of the architecture.
    """

    along: str
    name: str
    architecture: str
    num_images: int = 64
    num_classes: int = 100
    rounds: int = 1
    arguments: Mapping[str, Any] = field(default_factory=lambda: {"img_size": 32, "patch_size": 8})

    @property
    def updates(self) -> int:
        """Weight updates in one `compress`."""
        return NUM_TRAININGS * (self.num_images // BATCH_SIZE)

    def make(self) -> tuple[nn.Module, ImageData]:
        """Make the model with random weights, and images of random pixels."""
        torch.manual_seed(0)
        model = create_model(self.architecture, num_classes=self.num_classes, **self.arguments)
        data = random_data(self.num_images, self.arguments["img_size"], self.num_classes)
        return model.eval(), replace(data, validation=data.train.subset(range(min(VALIDATION_IMAGES, self.num_images))))


def points_of(*, smoke: bool = False) -> list[Point]:
    """Return all points. The points of one axis are ordered from small to large."""
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
        Point(along="size", name=name, architecture=architecture(size), rounds=3 if size in ("tiny", "small") else 1)
        for name, size in SIZES.items()
    ]
    tiny: Mapping[str, Any] = {"name": "ViT-Ti", "architecture": architecture("tiny")}
    images = [Point(along="images", num_images=count, **tiny) for count in (256, 512, 1024, 2048)]
    classes = [Point(along="classes", num_classes=count, rounds=3, **tiny) for count in (10, 100, 1000)]
    return [*sizes, *images, *classes]


def in_its_own_process(question: Values) -> Values:
    """Start a process without a GPU that answers the question, and return its answer."""
    command = [sys.executable, "-m", "benchmarks.costs.growth_process", "--point", json.dumps(question)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def answer(question: Values) -> Values:
    """Measure in this process: `compress` or `step` of a point, or `score` or `prune` of a model."""
    question = dict(question)
    run = question.pop("run")
    if run in ("compress", "step"):
        return {"compress": _compress, "step": _steps}[run](Point(**question))
    return {"score": _score, "prune": _prune}[run](**question)


def _compress(point: Point) -> Values:
    compress_once(*points_of(smoke=True)[0].make())
    model, data = point.make()
    before = _start_peak()
    rounds = [{"compress": compress_once(model, data)}]
    peak = _peak_beyond(before)
    rounds[0]["step"] = seconds_of_step(model, data)
    for _ in range(1, point.rounds):
        rounds.append({"compress": compress_once(model, data), "step": seconds_of_step(model, data)})
    return {**_size(model), "rounds": rounds, "peak_bytes": peak}


def _steps(point: Point) -> Values:
    seconds_of_step(*points_of(smoke=True)[0].make())
    model, data = point.make()
    before = _start_peak()
    seconds_of_step(model, data)
    return {**_size(model), "peak_bytes": _peak_beyond(before)}


def _score(architecture: str, arguments: Values, num_images: int, batch_size: int) -> Values:
    model = create_model(architecture, **arguments).eval()
    structure = describe(model)
    images = torch.randn(num_images, structure.in_chans, *structure.img_size)
    labels = torch.arange(num_images) % structure.num_classes
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    _start_peak()
    start = time.perf_counter()
    score(model, batches)
    return {**_size(model), "seconds": time.perf_counter() - start, "whole_peak_bytes": _memory("VmHWM")}


def _prune(architecture: str, arguments: Values, num_images: int, batch_size: int) -> Values:
    model = create_model(architecture, **arguments).eval()
    plan = allocate(describe(model), score(model, [], "random"), Budget(params=KEEP, macs=KEEP))
    _start_peak()
    start = time.perf_counter()
    student = prune(model, plan)
    seconds = time.perf_counter() - start
    assert _size(student)["params"] <= KEEP * _size(model)["params"]
    return {**_size(model), "seconds": seconds, "whole_peak_bytes": _memory("VmHWM")}


def compress_once(model: nn.Module, data: ImageData) -> float:
    """Run `compress` with all its stages, and return its seconds."""
    training = TrainingSettings(epochs=1, batch_size=BATCH_SIZE, warmup_epochs=0, evaluate_every=0)
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
    """Return the median of the seconds of a few plain training steps. The weights do not change.

    A first step, which allocates the optimiser's moments, is not counted.
    """
    images, labels = next(eval_batches(data.train, preprocessing_of(model), batch_size=BATCH_SIZE))
    # with learning rate and decay of zero, everything is computed, but the weights stay the same
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


def _size(model: nn.Module) -> Values:
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "model_bytes": sum(tensor.nbytes for tensor in model.state_dict().values()),
    }


def _start_peak() -> int:
    """Reset the peak memory of this process, and return the bytes resident now.

    `ru_maxrss` is not used, because it starts with the value of the parent process.
    """
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _peak_beyond(before: int) -> int:
    return max(1, _memory("VmHWM") - before)  # not 0: ratios divide by it, and a tiny model may need no new memory


def _memory(key: str) -> int:
    """Return bytes of this process as Linux counts them: `VmRSS` is the memory now, `VmHWM` its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"/proc/self/status has no line {key}")


def architecture(size: str) -> str:
    """Return timm's name of the ViT of this size."""
    return f"vit_{size}_patch16_224"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure one point in this process and print one line of JSON.")
    parser.add_argument("--point", type=json.loads, required=True, help="the question, as JSON")
    print(json.dumps(answer(parser.parse_args().point)))
