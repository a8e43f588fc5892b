"""The report of a run. `report.json` holds the numbers. Printed tables and `report.md` are made from it.

A new section needs a key in `build` and a paragraph in `templates/report.md.jinja`. Nothing is measured here.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from torch import nn

from vitrim.costs.counting import count_cost
from vitrim.costs.latency import Latency, LatencySettings
from vitrim.data.matching import device_of
from vitrim.errors import percent
from vitrim.evaluation import Evaluation, compare
from vitrim.recipe import Recipe, to_table
from vitrim.runs.environment import environment
from vitrim.saving.checkpoint import file_bytes
from vitrim.source import Source
from vitrim.training.teachers import Teacher

TEMPLATES = Path(__file__).parent / "templates"
MAX_PREDICTION_ERROR = 0.05  # relative; the report warns above it
OLD_KEY_OF_PREDICTED_MS = "promised_ms"  # in reports of version 0.1.0; still written, because scripts may read it


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The results of a run.

    Attributes:
        student: the compressed model.
        before: evaluation of the dense model.
        after: evaluation of the student.
        latencies: of the dense model and of the student, timed in the same rounds.
        stages: one row for each stage, see `stage_row`.
        predicted_ms: milliseconds of the student, as its plan predicted; 0 without a budget in milliseconds.
        dense_ms: milliseconds of the dense model when the plan was made; 0 without a budget in milliseconds.
    """

    student: nn.Module
    before: Evaluation
    after: Evaluation
    latencies: tuple[Latency, Latency]
    stages: Sequence[dict[str, Any]]
    predicted_ms: float = 0.0
    dense_ms: float = 0.0


def build(source: Source, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """Make the content of `report.json`.

    Args:
        source: the dense model and the data.
        recipe: of the run.
        outcome: the results of the run.

    Returns:
        Plain data for JSON.
    """
    name, budget, data = recipe.budget.label, recipe.budget, source.data
    dense_latency, latency = outcome.latencies
    dense = model_row("dense", 1.0, source.model, outcome.before, dense_latency)
    small = model_row(name, max(budget.params, budget.macs), outcome.student, outcome.after, latency)
    return {
        "title": f"{source.structure.model} on {data.name}: {name}",
        "architecture": source.structure.model,
        "models": [dense, {**small, **difference_to(outcome.before, outcome.after)}],
        "stages": list(outcome.stages),
        "data": {
            "name": data.name,
            "num_classes": len(data.classes),
            "num_train": len(data.train),
            "num_validation": len(data.validation),
        },
        "latency": _latency_section(recipe, outcome),
        **({"teachers": [_teacher_row(teacher) for teacher in source.teachers]} if source.teachers else {}),
        "notes": data.all_notes(),
        "environment": environment(device_of(outcome.student)),
        "recipe": to_table(recipe),
    }


def model_row(name: str, keep: float, model: nn.Module, found: Evaluation, latency: Latency) -> dict[str, Any]:
    """Make one entry of `models` in `report.json`: accuracy in percent, cost, milliseconds of a batch, bytes.

    Args:
        name: of the model in tables.
        keep: the budget, as a fraction of the dense model's parameters or multiply-adds; 1 for the dense model.
        model: the model.
        found: its evaluation.
        latency: of one forward pass.
    """
    cost = count_cost(model)
    return {
        "name": name,
        "keep": keep,
        "top1": found.top1,
        "top1_low": found.low,
        "top1_high": found.high,
        "top5": found.top5,
        "params": cost.params,
        "macs": cost.macs,
        "latency_ms": latency.median_ms,
        "latency_p90_ms": latency.p90_ms,
        "latency_ratio": latency.ratio,
        "file_bytes": file_bytes(model),
    }


def difference_to(dense: Evaluation, found: Evaluation) -> dict[str, float]:
    """Make the keys `difference...` of a model: its top-1 minus that of the dense model, in percentage points.

    Returns:
        The difference, both ends of its 95 % interval over images, and the p-value.

    Raises:
        DataError: the models were evaluated on different numbers of images.
    """
    difference = compare(dense, found)
    return {f"difference{'' if key == 'points' else '_' + key}": value for key, value in asdict(difference).items()}


def latency_row(settings: LatencySettings, budget_ms: float, predicted_ms: float, measured_ms: float) -> dict[str, Any]:
    """Make the entry `latency` of `report.json`.

    Args:
        settings: runtime and batch size.
        budget_ms: the maximum milliseconds of one forward pass.
        predicted_ms: milliseconds that the plan predicted.
        measured_ms: milliseconds that were measured.

    Returns:
        These numbers, and `difference`: the relative error of the prediction.
    """
    return {
        "on": settings.on,
        "batch_size": settings.batch_size,
        "budget_ms": budget_ms,
        "predicted_ms": predicted_ms,
        **{OLD_KEY_OF_PREDICTED_MS: predicted_ms},
        "measured_ms": measured_ms,
        "difference": measured_ms / predicted_ms - 1,
    }


def _teacher_row(teacher: Teacher) -> dict[str, Any]:
    """One entry of `teachers` in `report.json`."""
    return {"name": teacher.name, "weights": teacher.weights, "about": teacher.about}


def latency_line(report: dict[str, Any]) -> str:
    """Say in one or two sentences whether the budget in milliseconds was met. `report` must have `latency`."""
    found = report["latency"]
    runtime = report["environment"]["device"] if found["on"] == "model" else found["on"]
    predicted_ms = found.get("predicted_ms", found.get(OLD_KEY_OF_PREDICTED_MS))
    difference = percent(found["difference"], 1, sign=True)
    line = (
        f"Latency on {runtime}, batch {found['batch_size']}: budget {found['budget_ms']:.4g} ms, predicted "
        f"{predicted_ms:.4g} ms, measured {found['measured_ms']:.4g} ms ({difference})."
    )
    if abs(found["difference"]) <= MAX_PREDICTION_ERROR:
        return line
    return (
        f"{line} The prediction is wrong by more than {percent(MAX_PREDICTION_ERROR)}; the machine may have been busy "
        "when the model was timed."
    )


def _latency_section(recipe: Recipe, outcome: Outcome) -> dict[str, Any] | None:
    """The entry `latency` of `report.json`; None without a budget in milliseconds.

    The speed of the machine may differ between planning and this measurement. The measured ratio to the dense model,
    multiplied by the dense model's milliseconds at planning, corrects for that.
    """
    if not recipe.budget.latency_ms:
        return None
    measured_ms = outcome.latencies[1].ratio * outcome.dense_ms
    return latency_row(recipe.latency, recipe.budget.latency_ms, outcome.predicted_ms, measured_ms)


def stage_row(model_name: str, name: str, model: nn.Module, found: Evaluation) -> dict[str, Any]:
    """Make one entry of `stages` in `report.json`: accuracy in percent and cost of the model after a stage."""
    cost = count_cost(model)
    return {"model": model_name, "name": name, "top1": found.top1, "params": cost.params, "macs": cost.macs}


def to_markdown(report: dict[str, Any]) -> str:
    """Make the text of `report.md` from the content of `report.json`."""
    templates = markdown_templates(TEMPLATES)
    templates.globals.update(table_rows=table_rows, latency_line=latency_line)
    templates.filters.update(thousands=_with_prefix)
    return templates.get_template("report.md.jinja").render(report=report, dense=report["models"][0])


def table_rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Make the table of models that `vitrim compress` and `vitrim demo` print.

    Returns:
        The header, and the cells of each row.
    """
    dense = report["models"][0]
    header = ["model", "top-1 [95 % interval]", "parameters", "multiply-adds", "ms / batch", "file"]
    rows = [
        [
            row["name"],
            f"{row['top1']:.2f} % [{row['top1_low']:.2f}, {row['top1_high']:.2f}]",
            _with_fraction(_with_prefix(row["params"]), row["params"], dense["params"]),
            _with_fraction(_with_prefix(row["macs"]), row["macs"], dense["macs"]),
            f"{row['latency_ms']:.2f} (x {row['latency_ratio']:.2f})",
            _with_fraction(_megabytes(row["file_bytes"]), row["file_bytes"], dense["file_bytes"]),
        ]
        for row in report["models"]
    ]
    return header, rows


def _with_fraction(text: str, value: float, dense: float) -> str:
    """The text, and the value as a fraction of the dense model's in brackets, if they differ."""
    return text if value == dense else f"{text} ({percent(value / dense, 1)})"


def _with_prefix(count: int) -> str:
    """A count with three or more digits and a prefix, such as `1.23 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def markdown_templates(folder: Path) -> jinja2.Environment:
    """Open the templates of a folder, for Markdown. A template that uses an undefined name raises an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the text is not HTML
    )
