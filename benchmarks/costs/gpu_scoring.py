"""The section `gpu-scoring`: the time and memory of scoring, of the statistics for rotation and of recovery on a GPU.

Times are divided by that of one forward pass of the dense model over the same images, without gradients. Everything is
in float32, as vitrim scores. All runs of a model take turns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.costs.cases import TINY, VIT_TI
from benchmarks.costs.found import Found, Parts
from benchmarks.costs.gpu import STUDENT, VIT_B_16, VIT_S_8, allocated_bytes, peak_bytes, uneven_plan
from benchmarks.costs.ratios import Ratio, seconds_in_turns
from vitrim.importance.blocks import Batch
from vitrim.importance.criteria import score
from vitrim.models.timm.adapter import create_model
from vitrim.plan import PruningPlan
from vitrim.recovery.recover import recover
from vitrim.rotation import RotationStatistics, rotate
from vitrim.surgery import prune

FORWARD = "one forward pass of the dense model"
FORWARD_BF16 = "one forward pass of the dense model in bf16 autocast"
SCORE = "score, for heads, neurons and blocks"
BOTH = "score, with the statistics for rotation"
STATISTICS = "one forward pass with the statistics for rotation"
ROTATION = "rotation of all heads, from the statistics"
RECOVER = "recover"
ROUNDS = 3


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and the number of its calibration images."""

    name: str
    architecture: str
    sizes: dict[str, int]
    num_images: int
    batch_size: int


def _shape(model: tuple[str, str, dict[str, int]], *, num_images: int, batch_size: int) -> Shape:
    name, architecture, sizes = model
    return Shape(name=name, architecture=architecture, sizes=sizes, num_images=num_images, batch_size=batch_size)


SHAPES = (_shape(VIT_S_8, num_images=2048, batch_size=128), _shape(VIT_B_16, num_images=512, batch_size=64))
SMOKE = (_shape(("a tiny ViT", VIT_TI, TINY), num_images=8, batch_size=4),)


def parts(*, smoke: bool = False, device: str = "cuda") -> Parts:
    """Return one part for each model.

    Args:
        smoke: a tiny model and one round. The figures mean nothing.
        device: device of the models.
    """
    shapes = SMOKE if smoke else SHAPES
    return {shape.name: partial(_measure, shape, rounds=1 if smoke else ROUNDS, device=device) for shape in shapes}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Models:
    """A dense model, a student pruned from it, and batches, all on the device."""

    model: nn.Module
    student: nn.Module
    plan: PruningPlan
    batches: Sequence[Batch]

    @classmethod
    def of(cls, shape: Shape, device: str) -> "_Models":
        torch.manual_seed(0)
        model = create_model(shape.architecture, **shape.sizes).eval()  # type: ignore[arg-type]
        plan = uneven_plan(model)
        side = shape.sizes["img_size"]
        images = torch.randn(shape.num_images, 3, side, side, device=device)
        labels = torch.arange(shape.num_images, device=device) % shape.sizes["num_classes"]
        batches = zip(images.split(shape.batch_size), labels.split(shape.batch_size), strict=True)
        student = prune(model, plan).to(device)
        return cls(model=model.to(device), student=student, plan=plan, batches=list(batches))

    def runs(self, device: str) -> dict[str, Callable[[], object]]:
        """Return what is timed, by name."""
        statistics = RotationStatistics()
        with torch.no_grad(), statistics.watching(self.model):
            self.model(self.batches[0][0])
        return {
            FORWARD: self._forward,
            FORWARD_BF16: partial(self._forward_bf16, torch.device(device).type),
            SCORE: partial(score, self.model, self.batches),
            BOTH: partial(self._watched, partial(score, self.model, self.batches)),
            STATISTICS: partial(self._watched, self._forward),
            ROTATION: lambda: rotate(self.model, statistics.rotation(self.model)),
            RECOVER: partial(recover, self.student, self.model, self.plan, self.batches),
        }

    @torch.no_grad()
    def _forward(self) -> None:
        for images, _ in self.batches:
            self.model(images)

    def _forward_bf16(self, device_type: str) -> None:
        with torch.autocast(device_type, torch.bfloat16):
            self._forward()

    def _watched(self, run: Callable[[], object]) -> None:
        with RotationStatistics().watching(self.model):
            run()


def _measure(shape: Shape, *, rounds: int, device: str) -> Iterator[Found]:
    """Measure one model. Memory and times are yielded as soon as they are known."""
    base = allocated_bytes(device)
    models = _Models.of(shape, device)
    runs = models.runs(device)
    detail = f"{shape.num_images} random images in batches of {shape.batch_size}, {rounds} rounds"
    about = {"section": "gpu-scoring", "setting": f"{shape.name}, float32, {detail}, {STUDENT}"}
    yield Found(ratios=_memory(shape, runs, about, device=device, base=base))
    seconds = seconds_in_turns(runs, rounds=rounds, warmup=0, device=device)
    yield Found(ratios=_times(shape, seconds, about))


def _memory(
    shape: Shape, runs: dict[str, Callable[[], object]], about: dict[str, Any], *, device: str, base: int
) -> list[Ratio]:
    """Run each run once, which also warms up, and return the peak memory of the long ones."""
    found = {name: peak_bytes(run, device, base=base) for name, run in runs.items()}
    return [
        Ratio.counted(
            peak / 2**30,
            measure=f"peak memory, with both models and the images: {shape.name}, {name}",
            against="",
            unit="GiB",
            **about,
        )
        for name, peak in found.items()
        if peak is not None and name in (FORWARD, SCORE, BOTH, RECOVER)
    ]


def _times(shape: Shape, seconds: dict[str, Any], about: dict[str, Any]) -> list[Ratio]:
    """Return for each run its time as a ratio, and its images per second or, for the rotation, its seconds."""
    rows = []
    for name, values in seconds.items():
        if name != FORWARD:
            ratios = values / seconds[FORWARD]
            rows.append(Ratio.timed(ratios, measure=f"time: {shape.name}, {name}", against=FORWARD, **about))
    for name, values in seconds.items():
        if name == ROTATION:
            rows.append(Ratio.timed(values, measure=f"time: {shape.name}, {name}", against="", unit="s", **about))
        else:
            speed = shape.num_images / values
            rows.append(
                Ratio.timed(speed, measure=f"speed: {shape.name}, {name}", against="", unit="images/s", **about)
            )
    return rows
