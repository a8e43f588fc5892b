"""Small data sets, settings and recipes for tests that train: a few steps on digits of 8 x 8 pixels."""

import copy
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.images import NO_AUGMENTATION
from builders.models import build
from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.importance.criteria import ImportanceSettings
from vitrim.models import describe
from vitrim.pipeline import Compressed, compress
from vitrim.recipe import DepthSettings, HeadSettings, Recipe
from vitrim.recovery.recover import RecoverySettings
from vitrim.saving.checkpoint import save
from vitrim.training.settings import TrainingSettings

DIGITS_SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 4, "mlp_ratio": 4.0, "num_classes": 10}


def digits_model(*, depth: int = 3, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model for digits, without a bias of queries, keys and values.

    The gradient of the loss by the keys' bias is zero, so it consists of rounding errors only. Adam would make full
    steps of them, and equal trainings would end with different weights.
    """
    sizes = {**DIGITS_SIZES, "depth": depth, "qkv_bias": False, **changes}
    return build(seed=seed, dtype=torch.float32, **sizes)


@cache
def _digits() -> ImageData:
    return load_data("digits")


def digits(num_train: int = 60, num_validation: int = 50) -> ImageData:
    """The first images of the digits of scikit-learn, 8 x 8 pixels."""
    whole = _digits()
    return replace(
        whole,
        train=whole.train.subset(range(num_train)),
        validation=whole.validation.subset(range(num_validation)),
    )


def short_training(**changes: Any) -> TrainingSettings:
    """One epoch without augmentation."""
    values = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-3, "warmup_epochs": 0, "ema_decay": 0.0}
    return TrainingSettings(**{**values, "augmentation": NO_AUGMENTATION, **changes})


def short_recipe(*, keep: float = 0.6, blocks: Any = 0, budget: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    """A recipe of `compress` for digits. The width is narrowed in two steps, and heads keep their width.

    Args:
        keep: fraction of parameters and multiply-adds.
        blocks: number of blocks to remove, or `auto`.
        budget: other fields of the budget.
        changes: other fields of the recipe.
    """
    training = short_training()
    values = {
        "budget": Budget(**{"params": keep, "macs": keep, "min_neurons": 4, **(budget or {})}),
        "importance": ImportanceSettings(num_images=40, batch_size=20, steps=2),
        "heads": HeadSettings(width="full"),
        "depth": DepthSettings(blocks=blocks, search_images=40, search_epochs=1),
        "width_training": training,
        "depth_training": training,
        "latency": LatencySettings(rounds=2, warmup=1),
    }
    return Recipe(**{**values, **changes})


def one_class_model() -> nn.Module:
    """A model for digits that predicts the class 3 for every image."""
    model = digits_model()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(10) == 3)
    return model


def save_digits_model(folder: Path, **changes: Any) -> Path:
    """Save a model for digits, and return its folder."""
    return save(digits_model(**changes), folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def smallest_step(model: nn.Module, multiple_of: int = 1) -> tuple[int, int]:
    """Parameters and multiply-adds of `multiple_of` neurons of the first block."""
    group = describe(model).blocks[0].neurons
    return multiple_of * group.params, multiple_of * group.macs


RANDOM = short_training(  # everything that uses random numbers
    epochs=2, drop_path=0.2, ema_decay=0.9, checkpoint_minutes=0.0, augmentation=AugmentationSettings()
)
RECIPES = {
    "width": short_recipe(keep=0.7),
    "depth": short_recipe(keep=0.6, blocks=1),
    "two blocks": short_recipe(keep=0.35, blocks=2),
    "auto": short_recipe(keep=0.6, blocks="auto"),
    "parameters": short_recipe(budget={"params": 0.5, "macs": 1.0}),
    "multiply-adds": short_recipe(blocks=1, budget={"params": 1.0, "macs": 0.5}),
    "multiple of 8": short_recipe(blocks=1, budget={"multiple_of": 8, "min_neurons": 8}),
    "no recovery": short_recipe(blocks=1, recovery=RecoverySettings(enabled=False)),
    "everything is kept": short_recipe(keep=1.0),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedRun:
    """A run of `compress` with one of `RECIPES`, and a copy of the dense model as it was before."""

    dense: nn.Module
    dense_before: nn.Module
    recipe: Recipe
    folder: Path
    result: Compressed


def finish_run(name: str, folder: Path) -> FinishedRun:
    """Compress a random model of four blocks with one of `RECIPES`."""
    dense, recipe = digits_model(depth=4).train(), RECIPES[name]
    before = copy.deepcopy(dense)
    result = compress(dense, digits(), recipe, folder)
    return FinishedRun(dense=dense, dense_before=before, recipe=recipe, folder=folder, result=result)


def files_in(folder: Path) -> dict[str, bytes]:
    """The content of every file, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Stopped(Exception):
    """Raised by a test in place of a computation."""


def stop(*arguments: Any, **options: Any) -> Any:
    """Put in place of a function that must not be called."""
    raise Stopped
