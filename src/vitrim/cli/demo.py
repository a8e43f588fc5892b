"""`vitrim demo`: train a small ViT on the digits of scikit-learn, compress it to 70 % and to 50 %, and report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitrim.costs.latency import busy_note, measure_latencies
from vitrim.data.loading import load_data
from vitrim.errors import CheckpointMismatch
from vitrim.importance.scores import Scores
from vitrim.models import adapter_of_library
from vitrim.pipeline import Compressed, compress, fit
from vitrim.recipe import Recipe, load_recipe
from vitrim.reports import report as reports
from vitrim.reports.verdict import with_verdict
from vitrim.reports.writing import write_pages_of_sizes
from vitrim.runs.digests import digest_of_data
from vitrim.runs.environment import versions
from vitrim.runs.folder import RunFolder
from vitrim.runs.locks import locking
from vitrim.runs.outputs import output_folder
from vitrim.runs.progress import log

KEEPS = (0.7, 0.5)
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
    """Train one dense model and compress it twice. Called again, it continues an interrupted run.

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
    training = load_recipe("demo-train")
    recipe = load_recipe("demo")
    run = RunFolder(folder, {"command": "demo", "version": versions()["vitrim"]})
    data = load_data("digits")
    torch.manual_seed(training.seed)
    new = adapter_of_library("timm").create("vit_tiny_patch16_224", num_classes=10, **SHAPE)
    dense = fit(new, data, training, folder / "dense")
    results: list[Compressed] = []
    for keep in KEEPS:
        budget = replace(recipe.budget, params=keep, macs=keep)
        scores = _scores_in(folder / f"keep-{KEEPS[0]}") if results else None
        results.append(compress(dense, data, replace(recipe, budget=budget), folder / f"keep-{keep}", scores=scores))
    made_from = {f"keep-{keep}": digest_of_data(result.report) for keep, result in zip(KEEPS, results, strict=True)}
    report: dict[str, Any] = run.once_json(
        "report.json", lambda: _joined(dense, results, recipe), reports.parse, made_from=made_from
    )
    names = [row["name"] for row in report["models"][1:]]
    runs = {name: folder / f"keep-{keep}" for name, keep in zip(names, KEEPS, strict=True)}
    write_pages_of_sizes(folder, report, runs)
    return report


def _scores_in(folder: Path) -> Scores | None:
    """The scores of a finished run; None if they are damaged. The model is then scored again."""
    try:
        return Scores.load(folder / "scores.safetensors")
    except CheckpointMismatch as problem:
        log(f"{problem} The model is scored again.")
        return None


def _joined(dense: nn.Module, results: list[Compressed], recipe: Recipe) -> dict[str, Any]:
    """Make one report of all models. Their latencies are measured in one run, so they can be compared."""
    first = results[0].report
    rows = [first["models"][0], *(result.report["models"][1] for result in results)]
    busy = busy_note()
    times = measure_latencies([dense, *(result.model for result in results)], recipe.latency)
    for row, columns in zip(rows, reports.latency_columns(times), strict=True):
        row |= columns
    stages = [stage for result in results for stage in result.report["stages"]]
    title = "vitrim demo: a small ViT on handwritten digits"
    return with_verdict({**first, "title": title, "models": rows, "stages": stages, "busy": busy})
