"""The report: what came out, beside what went in. `report.json` holds the numbers; everything else is made from it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from torch import nn

from vitrim.costs.counting import count_cost
from vitrim.costs.latency import Latency, LatencySettings
from vitrim.evaluation import Evaluation, compare
from vitrim.saving.checkpoint import file_bytes

TEMPLATES = Path(__file__).parent / "templates"
NEAR_PROMISE = 0.05


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
    """`latency` in `report.json`: what a budget in milliseconds allowed, what the plan promised, what came out."""
    return {
        "on": settings.on,
        "batch_size": settings.batch_size,
        "budget_ms": budget_ms,
        "promised_ms": predicted_ms,
        "measured_ms": measured_ms,
        "difference": measured_ms / predicted_ms - 1,
    }


def latency_line(report: dict[str, Any]) -> str:
    """A sentence on a budget in milliseconds."""
    found = report["latency"]
    line = (
        f"Latency on {report['environment']['device'] if found['on'] == 'model' else found['on']}, batch "
        f"{found['batch_size']}: budget {found['budget_ms']:.4g} ms, promised {found['promised_ms']:.4g} ms, measured "
        f"{found['measured_ms']:.4g} ms ({found['difference']:+.1%})"
    )
    if abs(found["difference"]) <= NEAR_PROMISE:
        return f"{line}."
    return (
        f"{line}: further from the promise than {NEAR_PROMISE:.0%}; the machine may have been busy when it was timed."
    )


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
