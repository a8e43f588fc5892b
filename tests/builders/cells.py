"""The configuration of a tiny cell on digits, for tests of the benchmark."""

from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.config import CellConfig
from builders.runs import DIGITS_SIZES
from vitrim.recipe import from_table

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {**{key: DIGITS_SIZES[key] for key in ("embed_dim", "num_heads")}, "depth": 2, "qkv_bias": False}
PLAIN = {"crop": "none", "flip": 0.0, "rand_augment_ops": 0, "mixup": 0.0, "cutmix": 0.0}
TRAINING = {"batch_size": 20, "warmup_epochs": 0, "augmentation": PLAIN}
CELL: dict[str, Any] = {
    "name": "tiny",
    "model_name": "tiny ViT",
    "dataset": "digits",
    "seeds": [0, 1],
    "keeps": [0.6, 0.5],
    "student_epochs": 2,
    "data": {"source": "digits", "limit_per_class": 6},
    "model": {"architecture": ARCHITECTURE, "img_size": 8, "patch_size": 4, "model_args": MODEL_ARGS},
    "dense": {"training": {"epochs": 4, **TRAINING}},
    "student": TRAINING,
    "recipe": {
        "budget": {"min_neurons": 4},
        "importance": {"num_images": 40, "batch_size": 20},
        "depth": {"search_images": 40, "search_epochs": 1, "max_share": 0.5},
        "latency": {"rounds": 1, "warmup": 0},
    },
    "vitrim": {"importance": {"steps": 2}},
}


def cell_file(folder: Path, **changes: Any) -> str:
    """Write the configuration to a file and return its path."""
    path = folder / "cell.toml"
    path.write_text(tomli_w.dumps({**CELL, **changes}))
    return str(path)


def cell_config(**changes: Any) -> CellConfig:
    """The configuration with changed tables."""
    return from_table(CellConfig, {**CELL, **changes})
