"""The speed of dense training and of distillation on this machine, eager and compiled, on random pixels.

Each speed is written as soon as it is known, so the measurement may be killed.
"""

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.costs.cases import even_plan, random_data
from benchmarks.costs.gpu import peak_flops
from benchmarks.timebox.configuration import MODELS, DataSet, ModelName, compile_setting
from benchmarks.timebox.schedule import Rate, Speeds
from vitrim.costs.counting import count_cost
from vitrim.data.images import ImageData
from vitrim.errors import SettingError
from vitrim.losses import DistillationLoss
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.runs.files import read_json, write_text
from vitrim.runs.progress import log
from vitrim.surgery import prune
from vitrim.training.job import TrainingJob
from vitrim.training.loop import TrainingLoop
from vitrim.training.settings import TrainingSettings

SPEEDS = "speeds.json"
EAGER, COMPILED = ("dense", "distil"), ("dense_compiled", "distil_compiled")
EPOCHS = 3  # the first one warms up


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What is measured: a model and the sizes of its images."""

    model: ModelName
    data: DataSet
    num_classes: int


def measure_speeds(probe: Probe, file: Path, *, compiled: bool) -> None:
    """Measure the speeds that are not in the file yet, and write each to it.

    A compiled training that fails is written with its error and has no speed.

    Args:
        probe: what is measured.
        file: `speeds.json`.
        compiled: also measure compiled training.

    Raises:
        SettingError: the file has the speeds of another model.
    """
    found: dict[str, Any] = read_json(file) if file.is_file() else {}
    if found.get("probe", asdict(probe)) != asdict(probe):
        raise SettingError(
            f"{file} has the speeds of another model or other images ({found['probe']}); choose another folder with "
            "-o, or remove the file."
        )
    names = [name for name in (*EAGER, *(COMPILED if compiled else ())) if name not in found]
    if not names:
        return
    models = _Models.make(probe)
    found |= {"probe": asdict(probe), **models.about()}
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            found[name] = _measure(models, teacher=name.startswith("distil"), compiled=name in COMPILED)
        except (RuntimeError, SettingError) as problem:  # too little memory, or a compiler that does not work
            if name in EAGER:
                raise
            found[name] = {"error": str(problem).strip().splitlines()[0][:300]}
        write_text(file, json.dumps(found, indent=1) + "\n")
        log(f"speed of {name}: {_shown(found[name])}")
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def read_speeds(file: Path) -> Speeds:
    """Return the speeds in `speeds.json`."""
    found = read_json(file)
    return Speeds(**{name: _rate(found.get(name, {})) for name in (*EAGER, *COMPILED)})  # type: ignore[arg-type]


def has_speeds(file: Path) -> bool:
    """Return whether the file has the speeds that a schedule needs."""
    return file.is_file() and set(EAGER) <= set(read_json(file))


def _rate(row: dict[str, Any]) -> Rate | None:
    if "images_per_second" not in row:
        return None
    return Rate(**{field: row[field] for field in ("images_per_second", "first_seconds", "again_seconds")})


def _shown(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"failed ({row['error']})"
    return (
        f"{row['images_per_second']:.0f} images/s, the first epoch {row['first_seconds']:.1f} s longer, that of "
        f"another model {row['again_seconds']:.1f} s"
    )


@dataclass(frozen=True, kw_only=True)
class _Models:
    """A dense model, two students of different widths with their plans, and random images."""

    dense: nn.Module
    plans: tuple[PruningPlan, PruningPlan]
    data: ImageData
    batch_size: int
    steps: int

    @classmethod
    def make(cls, probe: Probe) -> "_Models":
        model, data = MODELS[probe.model], probe.data
        sizes = {"img_size": data.img_size, "patch_size": data.patch_size, "num_classes": probe.num_classes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            dense = create_model(model.architecture, **{**sizes, **model.args}).eval()
        plan = even_plan(dense)
        return cls(
            dense=dense,
            plans=(plan, _narrower(plan)),
            data=random_data(model.batch_size * model.probe_steps, data.img_size, probe.num_classes),
            batch_size=model.batch_size,
            steps=model.probe_steps,
        )

    def about(self) -> dict[str, Any]:
        """Return the device, its peak and the multiply-adds of one image, to compute fractions of the peak."""
        on_gpu = torch.cuda.is_available()
        peak = peak_flops("cuda" if on_gpu else "cpu")
        return {
            "device": torch.cuda.get_device_name(0) if on_gpu else "CPU",
            "torch": torch.__version__,
            "peak_flops": peak.flops if peak else None,
            "batch_size": self.batch_size,
            "dense_macs": count_cost(self.dense).macs,
            "student_macs": count_cost(prune(self.dense, self.plans[0])).macs,
        }


def _narrower(plan: PruningPlan) -> PruningPlan:
    """Return the plan with half of the neurons, so that all MLPs have other widths."""
    blocks = [
        KeptBlock.of(kept.block, {**dict(kept.items()), "neurons": kept.neurons[: len(kept.neurons) // 2]})
        for kept in plan.blocks
    ]
    return PruningPlan(model=plan.model, blocks=tuple(blocks))


def _measure(models: _Models, *, teacher: bool, compiled: bool) -> dict[str, float]:
    """Train two models, one after the other, without resetting the compiler between them."""
    torch.compiler.reset()
    rows = []
    for plan in models.plans if teacher else (None, None):
        seconds = _seconds_of_epochs(models, plan, compiled=compiled)
        rows.append((min(seconds[1:]), seconds[0]))
    (best, first), (other, again) = rows
    slowest = best if teacher else max(best, other)  # the second student is smaller
    return {
        "images_per_second": models.batch_size * models.steps / slowest,
        "first_seconds": max(0.0, first - best),
        "again_seconds": max(0.0, again - other),
    }


def _seconds_of_epochs(models: _Models, plan: PruningPlan | None, *, compiled: bool) -> list[float]:
    """Return the seconds of each epoch of training the dense model, or the student of a plan with its teacher."""
    dense = copy.deepcopy(models.dense)
    settings = TrainingSettings(
        batch_size=models.batch_size, epochs=1, warmup_epochs=0, compile=compile_setting(compiled)
    )
    student = dense if plan is None else prune(dense, plan)
    loss = None
    if plan is not None:
        loss = DistillationLoss.between(settings.distillation, describe(student), describe(dense), plan)
    loop = TrainingLoop(
        TrainingJob(
            model=student.requires_grad_(True),
            data=models.data,
            settings=settings,
            loss=loss,
            teacher=None if plan is None else dense,
            stage="speed",
        )
    )
    seconds = []
    with loop.forward_functions() as (forward, teach):
        for _ in range(EPOCHS):
            loop.step, start = 0, time.perf_counter()
            for batch in loop.batches():
                loop.update(batch, forward, teach, {})
            if loop.device.type == "cuda":
                torch.cuda.synchronize(loop.device)
            seconds.append(time.perf_counter() - start)
    return seconds
