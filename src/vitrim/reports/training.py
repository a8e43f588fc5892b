"""The report of a run of `train`: one dense model, in the form of the report of `compress`."""

import shlex
import sys
from typing import Any

from torch import nn

from vitrim.class_accuracy import classes_at_zero
from vitrim.data.matching import device_of
from vitrim.evaluation import Evaluation
from vitrim.recipe import TrainRecipe, to_table
from vitrim.reports import report as reports
from vitrim.reports.details import details_of_training
from vitrim.reports.target import data_options
from vitrim.reports.verdict import with_verdict
from vitrim.reports.writing import write_pages
from vitrim.runs.environment import command_line, environment
from vitrim.runs.files import PAGE, SNAPSHOTS
from vitrim.runs.folder import RunFolder, in_stages
from vitrim.runs.progress import log
from vitrim.source import Source
from vitrim.training.metrics import notes_on_events
from vitrim.training.validation import KeptEpoch

NAME = "dense"  # of the model


def report_training(
    folder: RunFolder,
    source: Source,
    recipe: TrainRecipe,
    model: nn.Module,
    evaluation: Evaluation,
    snapshots: Evaluation | None = None,
) -> dict[str, Any]:
    """Write the report of a finished training and its pages, or read the report. All processes call this together.

    Args:
        folder: of the run, in which the model and its evaluation were made or read.
        source: the model before the training, and the data.
        recipe: of the run.
        model: the trained model.
        evaluation: of the trained model.
        snapshots: evaluation of the mean output of all snapshots; None if there is one model only.

    Returns:
        The content of `report.json`.
    """
    names = ("model", "evaluation.json", *([in_stages("evaluation-snapshots.json")] if snapshots else []))
    report: dict[str, Any] = folder.once_json(
        "report.json",
        lambda: _with_snapshots(folder, _build(folder, source, recipe, model, evaluation), evaluation, snapshots),
        reports.parse,
        made_from=folder.digests_of(*names),
    )
    if snapshots:
        log(f"{report['snapshots']['sentence']} {report['snapshots']['command']}")
    write_pages(folder.path, report, {NAME: details_of_training(folder, source.data, evaluation)})
    log(f"report: {folder.path / PAGE}")
    return report


def _build(
    folder: RunFolder, source: Source, recipe: TrainRecipe, model: nn.Module, evaluation: Evaluation
) -> dict[str, Any]:
    data, kept = source.data, KeptEpoch.read(folder.path, "train")
    row = reports.model_row(NAME, 1.0, model, evaluation)
    row["classes_at_zero"] = classes_at_zero(evaluation, data).to_dict()
    notes = [*([f"train: {kept.sentence()}"] if kept else []), *notes_on_events(folder.path), *data.all_notes()]
    report = {
        "title": f"{reports.model_title(source)} trained on {data.name}",
        "architecture": source.structure.model,
        "changed_sizes": reports.changed_sizes(source.model),
        "models": [row],
        "stages": [],
        "data": reports.about_data(data),
        "latency": None,
        **reports.about_teachers(source),
        "busy": "",
        "notes": notes,
        "environment": environment(device_of(model)),
        "recipe": to_table(recipe),
        "command": command_line(),
    }
    return with_verdict(report)


def _with_snapshots(
    folder: RunFolder, report: dict[str, Any], last: Evaluation, mean: Evaluation | None
) -> dict[str, Any]:
    """The report with the entry `snapshots`, if there are some: the accuracy of their mean, and how they are used."""
    if mean is None:
        return report
    num = report["recipe"]["snapshots"]
    row = {
        "number": num,
        "top1": mean.top1,
        "top1_low": mean.low,
        "top1_high": mean.high,
        **reports.difference_to(last, mean),
    }
    sentence = (
        f"The mean output of the {num} snapshots has top-1 {mean.top1:.2f} % [{mean.low:.2f}, {mean.high:.2f}], and "
        f"the last one {last.top1:.2f} %: {row['difference']:+.2f} points [{row['difference_low']:+.2f}, "
        f"{row['difference_high']:+.2f}]. This command uses them as teachers:"
    )
    models = [folder.path / SNAPSHOTS / str(number) for number in range(1, num)] + [folder.path]
    words = [word for model in models for word in ("--teacher", str(model))]
    command = shlex.join(["vitrim", "compress", str(folder.path), *data_options(sys.argv[1:]), *words])
    return {**report, "snapshots": {**row, "sentence": sentence, "command": command}}
