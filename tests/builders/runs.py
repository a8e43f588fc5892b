"""Small data sets, settings and recipes for tests that train: a few steps on digits of 8 x 8 pixels."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from builders.images import NO_AUGMENTATION
from builders.models import build
from vitrim.costs.budget import Budget
from vitrim.costs.latency import LatencySettings
from vitrim.data.images import ImageData
from vitrim.data.loading import load_data
from vitrim.importance.criteria import ImportanceSettings
from vitrim.models import describe
from vitrim.recipe import DepthSettings, Recipe
from vitrim.saving.checkpoint import save
from vitrim.training.settings import TrainingSettings

DIGITS_SIZES = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "num_heads": 4, "mlp_ratio": 4.0, "num_classes": 10}


def digits_model(*, depth: int = 3, seed: int = 0, **changes: Any) -> nn.Module:
    """A random model for digits. No bias of queries, keys and values: the loss has no gradient by the keys' bias, and
    Adam makes steps of full length out of the rounding errors that are there instead."""
    sizes = {**DIGITS_SIZES, "depth": depth, "qkv_bias": False, **changes}
    return build(seed=seed, dtype=torch.float32, **sizes)


@cache
def _digits() -> ImageData:
    return load_data("digits")


def digits(num_train: int = 60, num_validation: int = 50) -> ImageData:
    whole = _digits()
    return replace(
        whole,
        train=whole.train.subset(range(num_train)),
        validation=whole.validation.subset(range(num_validation)),
    )


def short_training(**changes: Any) -> TrainingSettings:
    plain = {"epochs": 1, "batch_size": 20, "learning_rate": 1e-3, "warmup_epochs": 0, "ema_decay": 0.0}
    return TrainingSettings(**{**plain, "augmentation": NO_AUGMENTATION, **changes})


def short_recipe(*, keep: float = 0.6, blocks: Any = 0, budget: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    training = short_training()
    values = {
        "budget": Budget(**{"params": keep, "macs": keep, "min_neurons": 4, **(budget or {})}),
        "importance": ImportanceSettings(num_images=40, batch_size=20),
        "depth": DepthSettings(blocks=blocks, search_images=40, search_epochs=1),
        "width_training": training,
        "depth_training": training,
        "latency": LatencySettings(rounds=2, warmup=1),
    }
    return Recipe(**{**values, **changes})


def save_digits_model(folder: Path, **changes: Any) -> Path:
    return save(digits_model(**changes), folder)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def smallest_step(model: nn.Module, multiple_of: int = 1) -> tuple[int, int]:
    """Parameters and multiply-adds of the least that can be added to a model: one group of neurons."""
    group = describe(model).blocks[0].neurons
    return multiple_of * group.params, multiple_of * group.macs
