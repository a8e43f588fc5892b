"""`vitrim demo`: train a small ViT on the digits of scikit-learn, compress it to 70 % and to 50 %, and report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitrim.data.loading import load_data
from vitrim.models import adapter_of_library
from vitrim.pipeline import compress_once, fit
from vitrim.recipe import load_recipe
from vitrim.runs.environment import versions
from vitrim.runs.folder import RunFolder
from vitrim.runs.locks import locking
from vitrim.runs.outputs import output_folder
from vitrim.sizes.several import compress_to_sizes
from vitrim.source import Source

KEEPS = (0.7, 0.5)
TITLE = "vitrim demo: a small ViT on handwritten digits"
# Trap: with timm's default initialisation, a model of this width learns slowly.
SHAPE: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "weight_init": "reset",
}


def run_demo(folder: Path) -> dict[str, Any]:
    """Train one dense model and compress it to two sizes. Called again, it continues an interrupted run.

    Args:
        folder: for the runs (`dense`, `keep-0.7`, `keep-0.5`), `report.json` and `report.md`.

    Returns:
        The content of `report.json`: all three models, with latencies that were measured together.

    Raises:
        FolderInUse: the folder has other files, or a demo of another version, or another command works in it.
        SettingError: it is no folder, or cannot be written.
    """
    return _run(output_folder(folder))


@locking("folder")
def _run(folder: Path) -> dict[str, Any]:
    training, demo = load_recipe("demo-train"), load_recipe("demo")
    recipe = replace(demo, sizes=replace(demo.sizes, keeps=KEEPS))
    run = RunFolder(folder, {"command": "demo", "version": versions()["vitrim"], "sizes": list(KEEPS)})
    data = load_data("digits")
    torch.manual_seed(training.seed)
    new = adapter_of_library("timm").create("vit_tiny_patch16_224", num_classes=10, **SHAPE)
    source = Source.of(fit(new, data, training, folder / "dense"), data)
    return compress_to_sizes(run, source, recipe, compress_once, title=TITLE).report
