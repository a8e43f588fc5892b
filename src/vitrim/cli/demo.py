"""`vitrim demo`: train a small ViT on scikit-learn's digits, compress it twice, and report; nothing is downloaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrim import report as reports
from vitrim.costs.latency import measure_latencies
from vitrim.data.loading import load_data
from vitrim.importance import Scores
from vitrim.models import adapter_of_library
from vitrim.pipeline import Compressed, compress, fit
from vitrim.recipe import Recipe, TrainRecipe, load_recipe
from vitrim.runs.environment import versions
from vitrim.runs.files import write_text
from vitrim.runs.folder import RunFolder
from vitrim.runs.processes import is_main_process

KEEPS = (0.7, 0.5)
# 16 tokens; timm's own initialisation is made for wide models and learns slowly at this width
SHAPE: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 2,
    "embed_dim": 64,
    "depth": 4,
    "num_heads": 4,
    "weight_init": "reset",
}


def run_demo(folder: Path) -> dict[str, Any]:
    """Make `folder`/report.json: the dense model, one with 30 % and one with 50 % less. Goes on where it stopped."""
    training = load_recipe(TrainRecipe, "demo-train")
    recipe = load_recipe(Recipe, "demo")
    run = RunFolder(folder, {"command": "demo", "version": versions()["vitrim"]})
    data = load_data("digits")
    torch.manual_seed(training.seed)
    new = adapter_of_library("timm").create("vit_tiny_patch16_224", num_classes=10, **SHAPE)
    dense = fit(new, data, training, folder / "dense")
    results: list[Compressed] = []
    for keep in KEEPS:
        budget = replace(recipe.budget, params=keep, macs=keep)
        scores = Scores.load(folder / f"keep-{KEEPS[0]}" / "scores.safetensors") if results else None
        wanted = replace(recipe, budget=budget)
        results.append(compress(dense, data, wanted, folder / f"keep-{keep}", scores=scores))
    report = run.once_json("report.json", lambda: _joined(dense, results, recipe))
    if is_main_process():
        write_text(folder / "report.md", reports.to_markdown(report))
    return report


def _joined(dense: nn.Module, results: list[Compressed], recipe: Recipe) -> dict[str, Any]:
    """One report of all models, their latencies measured in one run."""
    first = results[0].report
    rows = [first["models"][0], *(result.report["models"][1] for result in results)]
    times = measure_latencies([dense, *(result.model for result in results)], recipe.latency)
    for row, latency in zip(rows, times, strict=True):
        row |= {"latency_ms": latency.median_ms, "latency_p90_ms": latency.p90_ms, "latency_ratio": latency.ratio}
    stages = [stage for result in results for stage in result.report["stages"]]
    return {**first, "title": "vitrim demo: a small ViT on handwritten digits", "models": rows, "stages": stages}
