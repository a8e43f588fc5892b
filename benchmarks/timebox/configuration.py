"""The models and data sets of the benchmark, and the configuration of the cell that a schedule makes.

Nothing is computed here. What fits the time belongs to `schedule`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli_w

from benchmarks.config import CONTROL
from benchmarks.timebox.schedule import DENSE, MAIN_KEEP, Schedule, Work
from vitrim.errors import SettingError

ModelName = Literal["vit-s", "vit-b", "smoke"]
SEED = 0
PATCHES_PER_SIDE = 8  # of images whose size no data set fixes
CHECKPOINT_MINUTES = 1.5


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model of the benchmark, and how it is trained.

    Attributes:
        architecture: timm's name.
        title: name in the tables, without the size of the patches.
        batch_size: images per update.
        scale: seconds besides training, relative to those of ViT-S.
        args: further arguments of the architecture.
        search_images: training images of one epoch of the depth search.
        calibration_images: images that score units.
        multiple_of: numbers of units that are kept are multiples of this. bf16 products of odd widths take far longer.
        augmentation: changes to the augmentation of all trainings.
        probe_steps: training steps of one epoch in the measurement of speeds.
    """

    architecture: str
    title: str
    batch_size: int
    scale: float
    args: Mapping[str, Any] = field(default_factory=dict)
    search_images: int = 20_000
    calibration_images: int = 2048
    multiple_of: int = 8
    augmentation: Mapping[str, Any] = field(default_factory=dict)
    probe_steps: int = 20


MODELS: dict[ModelName, Model] = {
    "vit-s": Model(architecture="vit_small_patch16_224", title="ViT-S", batch_size=512, scale=1.0),
    "vit-b": Model(architecture="vit_base_patch16_224", title="ViT-B", batch_size=512, scale=2.5),
    "smoke": Model(
        architecture="vit_tiny_patch16_224",
        title="tiny ViT",
        batch_size=64,
        scale=0.1,
        args={"embed_dim": 48, "depth": 3, "num_heads": 4, "weight_init": "reset"},
        search_images=128,
        calibration_images=128,
        multiple_of=1,
        augmentation={"rand_augment_ops": 0},
        probe_steps=3,
    ),
}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of the benchmark.

    Attributes:
        title: name in the tables.
        img_size: side of the images in pixels.
        patch_size: side of the patches in pixels.
        num_classes: number of classes; 0 if only the images tell it.
    """

    title: str
    img_size: int
    patch_size: int
    num_classes: int = 0


DATA_SETS = {
    "tiny-imagenet": DataSet(title="Tiny ImageNet", img_size=64, patch_size=8, num_classes=200),
    "cifar100": DataSet(title="CIFAR-100", img_size=32, patch_size=4, num_classes=100),
    "digits": DataSet(title="digits", img_size=8, patch_size=2, num_classes=10),
}


def data_set_of(source: str, img_size: int | None) -> DataSet:
    """Return the sizes of a named data set, or of a folder whose images are `img_size` pixels high and wide.

    Raises:
        SettingError: the images of the folder have different sizes or cannot be divided into patches.
    """
    if source in DATA_SETS:
        return DATA_SETS[source]
    if img_size is None or img_size % PATCHES_PER_SIDE:
        found = "different sizes, or are not square" if img_size is None else f"a side of {img_size} pixels"
        raise SettingError(
            f"The images in {source} have {found}; expected square images of one size, whose side is a multiple of "
            f"{PATCHES_PER_SIDE} pixels."
        )
    return DataSet(title=Path(source).name, img_size=img_size, patch_size=img_size // PATCHES_PER_SIDE)


def compile_setting(compiled: bool) -> bool:
    """Return the value of the setting `training.compile` of a training. It is written in this place only."""
    return compiled


def work_for(name: ModelName, *, num_images: int, num_validation: int, **choices: Any) -> Work:
    """Return the sizes of the work for a model and a number of images.

    Args:
        name: the model.
        num_images: training images.
        num_validation: validation images.
        **choices: `dense_ratio`, `keeps`, `max_epochs` and `with_torch_pruning` of `Work`.
    """
    model = MODELS[name]
    return Work(
        num_images=num_images,
        num_validation=num_validation,
        num_calibration=min(num_images, model.calibration_images),
        search_images=min(model.search_images, num_images // 2),
        scale=model.scale,
        **choices,
    )


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights from which the dense model starts, and the epochs that made them. None if they are not known."""

    weights: Path
    epochs: int | None


def cell_table(
    name: ModelName, source: str, data: DataSet, schedule: Schedule, start: Start | None = None
) -> dict[str, Any]:
    """Return the configuration of the cell, as tables. Its name and the model's name tell the epochs.

    Args:
        name: the model.
        source: name of the data set, or folder of the images.
        data: sizes of the images.
        schedule: epochs and compilation.
        start: weights of the dense model; None to train it.
    """
    model = MODELS[name]
    dense = schedule.dense_epochs if start is None else start.epochs
    dense_text = "unknown" if dense is None else str(dense)
    slug = source if source in DATA_SETS else Path(source).name
    label = f"short schedule: {dense_text} dense and {schedule.student_epochs} student epochs"
    return {
        "name": f"{name}-{slug}-short-{dense_text}-{schedule.student_epochs}",
        "model_name": f"{model.title}/{data.patch_size} ({label})",
        "dataset": data.title,
        "hardware": "cpu" if name == "smoke" else "gpu",
        "seeds": [SEED],
        "keeps": [MAIN_KEEP, 0.5, 0.3],
        "arms": _arms(schedule),
        "student_epochs": schedule.student_epochs,
        "data": {"source": source},
        "model": {
            "architecture": model.architecture,
            "img_size": data.img_size,
            "patch_size": data.patch_size,
            "model_args": dict(model.args),
            **({"weights": str(start.weights)} if start else {}),
        },
        "dense": {"training": _dense_training(model, schedule, trained=start is not None)},
        "student": _student_training(model, schedule),
        "recipe": {
            "budget": {"multiple_of": model.multiple_of},
            "importance": {"num_images": model.calibration_images},
            "depth": {"search_images": model.search_images, "search_epochs": Work.search_epochs},
        },
    }


def _dense_training(model: Model, schedule: Schedule, *, trained: bool) -> dict[str, Any]:
    epochs = schedule.dense_epochs
    return {
        "epochs": 0 if trained else epochs,
        "batch_size": model.batch_size,
        "learning_rate": 1e-3,
        "warmup_epochs": max(1, epochs // 10),
        "drop_path": 0.0,  # for 100 epochs 0.1; a short training has no use for it
        "compile": compile_setting(schedule.compile_dense),
        "evaluate_every": max(1, epochs // 4),
        "checkpoint_minutes": CHECKPOINT_MINUTES,
        "augmentation": {"mix_probability": 0.5, **model.augmentation},
    }


def _student_training(model: Model, schedule: Schedule) -> dict[str, Any]:
    return {
        "batch_size": model.batch_size,
        "learning_rate": 5e-4,
        "warmup_epochs": 1,
        "compile": compile_setting(schedule.compile_students),
        "checkpoint_minutes": CHECKPOINT_MINUTES,
        "augmentation": dict(model.augmentation),
    }


def _arms(schedule: Schedule) -> list[str]:
    """Return the arms of the schedule in order of importance. A schedule of the dense model has the main arms."""
    arms = [arm for arm in dict.fromkeys(step.arm for step in schedule.steps) if arm != DENSE]
    return arms or ["vitrim", "paper", CONTROL]


def to_text(table: Mapping[str, Any], schedule: Schedule, device: str) -> str:
    """Return the configuration as TOML, with a comment on how it was made.

    Args:
        table: from `cell_table`.
        schedule: from which the table was made.
        device: name of the device.
    """
    fits = ", ".join(f"{epochs} {way}" for way, epochs in schedule.options.items())
    name = table["name"]
    comment = (
        f"# Made by benchmarks.timebox for {schedule.seconds:.0f} seconds on {device}. A short schedule: the accuracy\n"
        f"# of the dense model may still rise at its end. Student epochs that fit, by way of training: {fits}.\n"
        "#\n"
        f"# Command: python -m benchmarks.run benchmarks/configs/{name}.toml -o runs/{name}\n\n"
    )
    return comment + tomli_w.dumps(table)
