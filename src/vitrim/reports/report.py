"""The report of a run. `report.json` holds the numbers. Printed tables and `report.md` are made from it.

A new section needs a key in `build` and a paragraph in `templates/report.md.jinja`. Nothing is measured here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from torch import nn

from vitrim.class_accuracy import ClassesAtZero, classes_at_zero
from vitrim.costs.counting import count_cost
from vitrim.costs.latency import Latency, difference_text, ratio_text
from vitrim.data.images import ImageData
from vitrim.data.matching import device_of
from vitrim.errors import counted, percent, visible
from vitrim.evaluation import Evaluation, compare
from vitrim.models import describe, origin_of
from vitrim.models.sizes import shown
from vitrim.recipe import Recipe, to_table
from vitrim.reports.formats import with_prefix
from vitrim.reports.latency import latency_columns, latency_lines, latency_row
from vitrim.reports.verdict import verdict_in, with_verdict
from vitrim.runs.environment import command_line, environment
from vitrim.runs.files import read_json
from vitrim.runs.folder import parsed
from vitrim.saving.checkpoint import file_bytes
from vitrim.source import Source
from vitrim.structure import ViTStructure

TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """The results of a run.

    Attributes:
        student: the compressed model.
        before: evaluation of the dense model.
        after: evaluation of the student.
        latencies: of the dense model and of the student, timed in the same rounds.
        stages: one row for each stage, see `stage_row`.
        notes: what else is to be said about the run, in sentences.
        busy: says that the machine was busy when latencies were measured; empty if it was not.
        predicted_ms: milliseconds of the student, as its plan predicted; 0 without a budget in milliseconds.
        dense_ms: milliseconds of the dense model when the plan was made; 0 without a budget in milliseconds.
        target: the entry `target`; empty if the output of the dense model is learned.
    """

    student: nn.Module
    before: Evaluation
    after: Evaluation
    latencies: tuple[Latency, Latency]
    stages: Sequence[dict[str, Any]]
    notes: Sequence[str] = ()
    busy: str = ""
    predicted_ms: float = 0.0
    dense_ms: float = 0.0
    target: Mapping[str, Any] = field(default_factory=dict)


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
    dense = model_row("dense", 1.0, source.model, outcome.before)
    small = model_row(name, max(budget.params, budget.macs), outcome.student, outcome.after)
    for row, columns in zip((dense, small), latency_columns(outcome.latencies), strict=True):
        row |= columns
    dense["classes_at_zero"] = classes_at_zero(outcome.before, data).to_dict()
    small["classes_at_zero"] = classes_at_zero(outcome.after, data, outcome.before).to_dict()
    small["kept"] = kept_text(source.structure, describe(outcome.student))
    latency = _latency_section(recipe, outcome)
    report = {
        "title": f"{model_title(source)} on {data.name}: {_with_measured(name, latency)}",
        "architecture": source.structure.model,
        "changed_sizes": changed_sizes(source.model),
        "models": [dense, {**small, **difference_to(outcome.before, outcome.after)}],
        "stages": list(outcome.stages),
        "data": about_data(data),
        "latency": latency,
        **about_teachers(source),
        **({"target": dict(outcome.target)} if outcome.target else {}),
        "busy": outcome.busy,
        "notes": [*outcome.notes, *data.all_notes()],
        "environment": environment(device_of(outcome.student)),
        "recipe": to_table(recipe),
        "command": command_line(),
    }
    return with_verdict(report)


def model_title(source: Source) -> str:
    """What a title calls the dense model of a run: its architecture, and whether it has other sizes."""
    return source.structure.model + (" with changed sizes" if changed_sizes(source.model) else "")


def changed_sizes(model: nn.Module) -> str:
    """The sizes that a model of timm was built with and that its name does not have; empty if there are none.

    Models of other libraries state all of their arguments, so it is not known which ones were changed.

    Returns:
        The arguments, such as `img_size=64, embed_dim=96`.
    """
    origin = origin_of(model)
    if origin.library != "timm":
        return ""
    in_name = {  # such as vit_tiny_patch16_224
        "img_size": re.findall(r"_(\d+)", origin.architecture),
        "patch_size": re.findall(r"patch(\d+)", origin.architecture),
    }
    sizes = {
        key: value
        for key, value in origin.model_args.items()
        if key != "num_classes" and _is_size(value) and str(value) not in in_name.get(key, ())
    }
    return shown(sizes)


def _is_size(value: Any) -> bool:
    """Whether an argument is a whole number, or several."""
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_size, value))
    return isinstance(value, int) and not isinstance(value, bool)


def about_data(data: ImageData) -> dict[str, Any]:
    """Make the entry `data` of `report.json`."""
    return {
        "name": data.name,
        "num_classes": len(data.classes),
        "num_train": len(data.train),
        "num_validation": len(data.validation),
    }


def kept_text(dense: ViTStructure, small: ViTStructure) -> str:
    """Say what is left of a model: `5 of 6 blocks, 15 of 18 heads of width 48 (before: 64), 2,874 of 4,608 neurons`."""
    parts = [f"{len(small.blocks)} of {counted(len(dense.blocks), 'block')}"]
    for kind in ("heads", "neurons"):
        before, after = ([g for block in s.blocks for g in block.groups if g.kind == kind] for s in (dense, small))
        if not before:
            continue
        numbers = f"{sum(g.count for g in after):,} of {sum(g.count for g in before):,} {kind}"
        widths = [sorted({g.width for g in groups if g.output_proj}) for groups in (before, after)]
        is_narrower = kind == "heads" and widths[0] != widths[1] and all(widths)
        texts = [" to ".join(str(width) for width in dict.fromkeys((w[0], w[-1]))) for w in widths if w]
        parts.append(numbers + (f" of width {texts[1]} (before: {texts[0]})" if is_narrower else ""))
    return ", ".join(parts)


def model_row(name: str, keep: float, model: nn.Module, found: Evaluation) -> dict[str, Any]:
    """Make one entry of `models` in `report.json`, without its latency: accuracy in percent, cost, bytes.

    Args:
        name: of the model in tables.
        keep: the budget, as a fraction of the dense model's parameters or multiply-adds; 1 for the dense model.
        model: the model.
        found: its evaluation.
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
        "file_bytes": file_bytes(model),
    }


def difference_to(dense: Evaluation, found: Evaluation) -> dict[str, float]:
    """Make the keys `difference...` of a model: its top-1 minus that of the dense model, in percentage points.

    Returns:
        The difference, both ends of its 95 % interval over images, the p-value, and on how many images only one of the
        two models is right.

    Raises:
        DataError: the models were evaluated on different numbers of images.
    """
    difference = compare(dense, found)
    return {f"difference{'' if key == 'points' else '_' + key}": value for key, value in asdict(difference).items()}


def about_teachers(source: Source) -> dict[str, Any]:
    """Make the entry `teachers` of `report.json`; nothing if there are none."""
    rows = [{"name": one.name, "weights": one.weights, "about": one.about} for one in source.teachers]
    return {"teachers": rows} if rows else {}


def _with_measured(name: str, latency: dict[str, Any] | None) -> str:
    """The name of a compressed model, with its latency if this is not the one in the name."""
    if not latency or not difference_text(latency["measured_ms"], latency["budget_ms"]):
        return name
    return f"{name} (measured {latency['measured_ms']:.4g} ms)"


def _latency_section(recipe: Recipe, outcome: Outcome) -> dict[str, Any] | None:
    """The entry `latency` of `report.json`; None without a budget in milliseconds."""
    budget_ms = recipe.budget.latency_ms
    if not budget_ms:
        return None
    return latency_row(recipe.latency, budget_ms, outcome.predicted_ms, outcome.dense_ms, outcome.latencies[1])


def zero_lines(report: dict[str, Any]) -> list[str]:
    """Name the classes that a model never recognises, one line for each model that has such classes."""
    found = [(row["name"], row.get("classes_at_zero")) for row in report["models"]]  # 0.1.0 does not write them
    lines = [(name, ClassesAtZero.from_dict(values).sentence()) for name, values in found if values]
    return [f"{name}: {line}" for name, line in lines if line]


def stage_row(model_name: str, name: str, model: nn.Module, found: Evaluation) -> dict[str, Any]:
    """Make one entry of `stages` in `report.json`: accuracy in percent and cost of the model after a stage."""
    cost = count_cost(model)
    return {"model": model_name, "name": name, "top1": found.top1, "params": cost.params, "macs": cost.macs}


def read(path: Path) -> dict[str, Any]:
    """Read a `report.json`.

    Raises:
        CheckpointMismatch: it has another form.
    """
    return parsed(path, parse, read_json(path))


def parse(report: Any) -> dict[str, Any]:
    """Return a report that was read, if a page can be made from it; raises ValueError, KeyError or TypeError if not."""
    try:
        to_markdown(report)
    except jinja2.TemplateError as problem:
        raise ValueError(problem) from None
    found: dict[str, Any] = report
    return found


def to_markdown(report: dict[str, Any]) -> str:
    """Make the text of `report.md` from the content of `report.json`."""
    report = in_markdown({**report, "verdict": verdict_in(report)})
    templates = markdown_templates(TEMPLATES)
    templates.globals.update(table_rows=table_rows, latency_lines=latency_lines, zero_lines=zero_lines)
    templates.filters.update(thousands=with_prefix)
    return templates.get_template("report.md.jinja").render(report=report, dense=report["models"][0])


def in_markdown(value: Any) -> Any:
    """The same data, in which no text is read as HTML, as a link, or as a border of a table.

    Names of classes, models and folders come from files of others.
    """
    if isinstance(value, dict):
        return {key: in_markdown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [in_markdown(item) for item in value]
    if not isinstance(value, str):
        return value
    text = visible(" ".join(value.splitlines())).replace("<", "&lt;").replace("|", r"\|")
    return text.replace("](", r"]\(")


def table_rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Make the table of models that `vitrim compress` and `vitrim demo` print.

    Only the dense model has milliseconds. The others have the ratio to it, so no two numbers can contradict each other.

    Returns:
        The header, and the cells of each row.
    """
    dense = report["models"][0]
    is_timed = "latency_ms" in dense
    latency = [f"latency, batch {report['recipe']['latency']['batch_size']}"] if is_timed else []
    header = ["model", "top-1 [95 % interval]", "parameters", "multiply-adds", *latency, "file"]
    rows = [
        [
            row["name"] if row is dense else _with_measured(row["name"], row.get("latency") or report["latency"]),
            f"{row['top1']:.2f} % [{row['top1_low']:.2f}, {row['top1_high']:.2f}]",
            _with_fraction(with_prefix(row["params"]), row["params"], dense["params"]),
            _with_fraction(with_prefix(row["macs"]), row["macs"], dense["macs"]),
            *([f"{row['latency_ms']:.2f} ms" if row is dense else _latency_ratio(row)] if is_timed else []),
            _with_fraction(_megabytes(row["file_bytes"]), row["file_bytes"], dense["file_bytes"]),
        ]
        for row in report["models"]
    ]
    return header, rows


def _latency_ratio(row: dict[str, Any]) -> str:
    return ratio_text(row["latency_ratio"], row.get("latency_ratio_low"), row.get("latency_ratio_high"))


def _with_fraction(text: str, value: float, dense: float) -> str:
    """The text, and the value as a fraction of the dense model's in brackets, if they differ."""
    return text if value == dense else f"{text} ({percent(value / dense, 1)})"


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
