"""The report of a run. `report.json` holds the numbers; tables and `report.md` are made from it.

A section is one key of `build` and one paragraph of `templates/report.md.jinja`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
from torch import nn

from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.costs.latency import Latency, LatencySettings
from vitrim.data.matching import device_of
from vitrim.evaluation import Evaluation, compare
from vitrim.recipe import Recipe, to_table
from vitrim.runs.environment import environment
from vitrim.saving.checkpoint import file_bytes
from vitrim.source import Source

TEMPLATES = Path(__file__).parent / "templates"
MAX_PREDICTION_ERROR = 0.05  # relative; the report warns above it
FIRST_NAME_OF_PREDICTED_MS = "promised_ms"  # the key in reports of version 0.1.0; written for their readers, too


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What a run ended with.

    Attributes:
        student: the compressed model.
        before: evaluation of the dense model.
        after: evaluation of the student.
        latencies: of the dense model and of the student, timed in turns.
        stages: one row for each stage, see `stage_row`.
        predicted_ms: milliseconds of the student, as its plan predicted.
        dense_ms: milliseconds of the dense model when the plan was made. Both are 0 without a budget in milliseconds.
    """

    student: nn.Module
    before: Evaluation
    after: Evaluation
    latencies: tuple[Latency, Latency]
    stages: Sequence[dict[str, Any]]
    predicted_ms: float = 0.0
    dense_ms: float = 0.0


def build(source: Source, recipe: Recipe, outcome: Outcome) -> dict[str, Any]:
    """`report.json` of a run, as a dictionary."""
    name, budget, data = model_name(recipe.budget), recipe.budget, source.data
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
        "notes": list(data.notes),
        "environment": environment(device_of(outcome.student)),
        "recipe": to_table(recipe),
    }


def model_name(budget: Budget) -> str:
    """The name of a compressed model: `-30 %` for a budget of 0.7, `12 ms` for one of milliseconds alone."""
    latency = f"{budget.latency_ms:g} ms" if budget.latency_ms else ""
    if latency and budget.params == budget.macs == 1:
        return latency
    fractions = f"params {budget.params:g}, macs {budget.macs:g}"
    if budget.params == budget.macs:
        fractions = f"-{100 * (1 - budget.params):g} %"
    return f"{fractions}, {latency}" if latency else fractions


def model_row(name: str, keep: float, model: nn.Module, found: Evaluation, latency: Latency) -> dict[str, Any]:
    """One entry of `models` in `report.json`: accuracy in percent, cost, milliseconds, bytes."""
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
    """The paired difference to the dense model in points, with its 95 % interval over images."""
    difference = compare(dense, found)
    return {f"difference{'' if key == 'points' else '_' + key}": value for key, value in asdict(difference).items()}


def latency_row(settings: LatencySettings, budget_ms: float, predicted_ms: float, measured_ms: float) -> dict[str, Any]:
    """`latency` in `report.json`: the limit, the prediction of the plan, and the measurement, in milliseconds."""
    return {
        "on": settings.on,
        "batch_size": settings.batch_size,
        "budget_ms": budget_ms,
        "predicted_ms": predicted_ms,
        **{FIRST_NAME_OF_PREDICTED_MS: predicted_ms},
        "measured_ms": measured_ms,
        "difference": measured_ms / predicted_ms - 1,
    }


def latency_line(report: dict[str, Any]) -> str:
    """One or two sentences on a budget in milliseconds."""
    found = report["latency"]
    runtime = report["environment"]["device"] if found["on"] == "model" else found["on"]
    predicted_ms = found.get("predicted_ms", found.get(FIRST_NAME_OF_PREDICTED_MS))
    line = (
        f"Latency on {runtime}, batch {found['batch_size']}: budget {found['budget_ms']:.4g} ms, predicted "
        f"{predicted_ms:.4g} ms, measured {found['measured_ms']:.4g} ms ({found['difference']:+.1%})."
    )
    if abs(found["difference"]) <= MAX_PREDICTION_ERROR:
        return line
    return (
        f"{line} The prediction is off by more than {MAX_PREDICTION_ERROR:.0%}; the machine may have been busy when "
        "the model was timed."
    )


def _latency_section(recipe: Recipe, outcome: Outcome) -> dict[str, Any] | None:
    """None without a budget in milliseconds. Measured is at the machine's speed when the plan was made."""
    if not recipe.budget.latency_ms:
        return None
    measured_ms = outcome.latencies[1].ratio * outcome.dense_ms
    return latency_row(recipe.latency, recipe.budget.latency_ms, outcome.predicted_ms, measured_ms)


def stage_row(model_name: str, name: str, model: nn.Module, found: Evaluation) -> dict[str, Any]:
    """One entry of `stages` in `report.json`: the model after one stage."""
    cost = count_cost(model)
    return {"model": model_name, "name": name, "top1": found.top1, "params": cost.params, "macs": cost.macs}


def to_markdown(report: dict[str, Any]) -> str:
    """`report.md`."""
    found = markdown_templates(TEMPLATES)
    found.globals.update(table_rows=table_rows, latency_line=latency_line)
    found.filters.update(thousands=_thousands)
    return found.get_template("report.md.jinja").render(report=report, dense=report["models"][0])


def table_rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of models: what `vitrim compress` and `vitrim demo` print."""
    dense = report["models"][0]
    header = ["model", "top-1 [95 % interval]", "parameters", "multiply-adds", "ms / batch", "file"]
    rows = [
        [
            row["name"],
            f"{row['top1']:.2f} % [{row['top1_low']:.2f}, {row['top1_high']:.2f}]",
            _against(_thousands(row["params"]), row["params"], dense["params"]),
            _against(_thousands(row["macs"]), row["macs"], dense["macs"]),
            f"{row['latency_ms']:.2f} (x {row['latency_ratio']:.2f})",
            _against(_bytes(row["file_bytes"]), row["file_bytes"], dense["file_bytes"]),
        ]
        for row in report["models"]
    ]
    return header, rows


def _against(text: str, value: float, dense: float) -> str:
    return text if value == dense else f"{text} ({value / dense:.1%})"


def _thousands(count: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def markdown_templates(folder: Path) -> jinja2.Environment:
    """The templates of a folder, for Markdown; a name that is not given is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # nothing here is served
    )
