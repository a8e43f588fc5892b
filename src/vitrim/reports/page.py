"""The page of a run, `report.html`: one file for people who did not make the run. Nothing is measured here.

The file needs nothing else: style, charts and pictures are in it, and it asks for nothing from a network. Names of
classes, files and models come from others, so the templates escape all text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from vitrim.errors import SettingError, counted, visible
from vitrim.recipe import load_recipe, to_table
from vitrim.reports import charts, formats, tables
from vitrim.reports.latency import latency_lines
from vitrim.reports.model_section import model_section
from vitrim.reports.report import zero_lines
from vitrim.reports.stages import LARGER
from vitrim.reports.tables import Table
from vitrim.runs.progress import duration

TEMPLATES = Path(__file__).parents[1] / "templates"
MAX_BYTES = 3_000_000  # of a page; it may be sent by mail
PICTURES = ("changed", "mistakes")  # sections of `details.json` with pictures
NO_PICTURES = "Single images are left out here, because the page would be too large. Each size has a page with them."
NO_DETAILS = "Each model in detail is left out here, because the page would be too large. Each size has a page with it."


def to_html(report: dict[str, Any], details: Mapping[str, dict[str, Any]]) -> str:
    """Make the text of `report.html`.

    Args:
        report: content of `report.json`, also of earlier versions.
        details: content of `details.json` by the name of the smaller model; of a run of `train`, by the name of its
            only model. Models may be missing.

    Returns:
        A complete page. The same arguments always make the same text. A page of many sizes that would be larger than
        3 MB has no pictures of images, or no section about each model, and says so.
    """
    page = _render(report, details)
    for kept, note in ((_without_pictures(details), NO_PICTURES), ({}, NO_DETAILS)):
        if len(page.encode()) <= MAX_BYTES:
            break
        page = _render({**report, "notes": [note, *(report.get("notes") or ())]}, kept)
    return page


def _without_pictures(details: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: section for key, section in sections.items() if key not in PICTURES}
        for name, sections in details.items()
    }


def _render(report: dict[str, Any], details: Mapping[str, dict[str, Any]]) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=True,
    )
    templates.filters.update(name=_isolated)
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return templates.get_template("report.html.jinja").render(page=_page(report, details), style=style)


def _isolated(text: Any) -> Markup:
    """A text from outside, whose direction of writing does not change the text around it."""
    text = visible(str(text)).replace(" %", "\u00a0%")  # a line does not begin with it
    return Markup(f"<bdi>{escape(text)}</bdi>")


def _page(report: dict[str, Any], details: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """All that the template shows."""
    models = report["models"]
    smaller = [row for row in models[1:] if row["name"] != formats.CONTROL]
    shown = smaller or models[:1]
    search = report.get("search") or {}
    found = [charts.accuracy_chart(f"chart-{key}", models, key) for key in ("params", "latency_ms")]
    return {
        "title": visible(str(report.get("title", ""))),
        "verdict": str(report.get("verdict") or ""),
        "about": _about(report),
        "is_train": not smaller,
        "cards": _cards(models[0], smaller[0] if smaller else None) if len(smaller) < 2 else [],
        "sizes": tables.sizes_table(models) if len(models) > 2 else None,
        "figures_note": _figures_note(report),
        "charts": [chart for chart in found if chart],
        "search": {"sentence": str(search.get("sentence") or ""), "table": tables.search_table(search)}
        if search
        else None,
        "sections": [
            model_section(f"model{number}", row["name"], report, details.get(row["name"]) or {})
            for number, row in enumerate(shown, 1)
        ],
        "command": str(report.get("command") or ""),
        "took": duration(report["seconds"]) if formats.is_number(report.get("seconds")) else "",
        "settings": _settings(report),
        "machine": _machine(report.get("environment") or {}),
        "versions": [
            (str(key), str(value)) for key, value in (report.get("environment") or {}).get("versions", {}).items()
        ],
        "remarks": _remarks(report),
        "teachers": report.get("teachers") or [],
        "commands": _commands(report),
        "statistics": tables.statistics_table(models),
        "search_statistics": search if search.get("num_looks") else None,
    }


def _commands(report: dict[str, Any]) -> list[dict[str, str]]:
    """Sentences about teachers that end with a command: the control of a target, and the use of snapshots."""
    found = [(report.get("target") or {}, "control"), (report.get("snapshots") or {}, "command")]
    return [{"sentence": str(row["sentence"]), "command": str(row[key])} for row, key in found if key in row]


def _about(report: dict[str, Any]) -> str:
    """One line below the title: model, data, and on how many images the accuracy was measured."""
    data = report.get("data") or {}
    sizes = report.get("changed_sizes")
    parts = [f"{report.get('architecture') or ''}{f' with {sizes}' if sizes else ''}"]
    if data.get("num_classes"):
        parts.append(f"{data.get('name', '')}, {counted(data['num_classes'], 'class')}")
    if data.get("num_validation"):
        parts.append(f"accuracy measured on {data['num_validation']:,} images that vitrim did not train on")
    return " \u00b7 ".join(part for part in parts if part)


def _cards(dense: dict[str, Any], small: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The figures of one compressed model beside those of the dense one; of the dense one alone if `small` is None."""
    columns = (
        ("Accuracy", "top1", formats.percents, "images whose class is right"),
        ("Parameters", "params", formats.count, "numbers that the model consists of"),
        ("Multiply-adds", "macs", formats.count, "arithmetic for one image"),
        ("Latency", "latency_ms", formats.milliseconds, "time for one batch"),
        ("File size", "file_bytes", formats.size, "weights on disk"),
    )
    cards = []
    for label, key, text, about in columns:
        value = (small or dense).get(key)
        if not formats.is_number(value):
            continue
        card: dict[str, Any] = {"label": label, "about": about, "value": text(value), "before": ""}
        if small:
            card |= {"before": text(dense.get(key)), "percent": _percent_of(value, dense.get(key))}
            if key == "top1":
                card |= {"change": f"{formats.signed(tables.difference(small, dense))} points", "tone": _tone(small)}
            else:
                tone = "" if not formats.is_number(dense.get(key)) else "good" if value <= dense[key] else "bad"
                card |= {"change": formats.change(value, dense.get(key)), "tone": tone}
        cards.append(card)
    return cards


def _tone(small: dict[str, Any]) -> str:
    """The colour of a change of accuracy; none if chance may explain it."""
    low, high = small.get("difference_low"), small.get("difference_high")
    if formats.is_number(low) and low > 0:
        return "good"
    return "bad" if formats.is_number(high) and high < 0 else ""


def _percent_of(value: Any, dense: Any) -> float:
    """How long the bar of the compressed model is, if that of the dense one has length 100."""
    return round(max(0.0, min(100.0, 100 * value / dense)), 1) if formats.is_number(dense) and dense else 100.0


def _figures_note(report: dict[str, Any]) -> str:
    """Say how accuracy and latency were measured, in one or two sentences."""
    bars = "Upper bars: the original. Lower bars: the compressed model." if len(report["models"]) == 2 else ""
    settings = (report.get("recipe") or {}).get("latency") or {}
    if not formats.is_number(report["models"][0].get("latency_ms")) or not settings:
        return bars
    device = (report.get("environment") or {}).get("device", "")
    runtime = "ONNX Runtime" if settings.get("on") == "onnxruntime" else "PyTorch"
    on = f" on {device}" if device else ""
    batch = counted(settings.get("batch_size", 1), "image")
    return f"{bars} Latency is the time in which {runtime}{on} computes a batch of {batch}.".strip()


def _settings(report: dict[str, Any]) -> dict[str, Any] | None:
    """The settings that differ from the shipped recipe of the command; None if the report has no recipe."""
    recipe = report.get("recipe") or {}
    if not recipe:
        return None
    name = "train" if "training" in recipe else "default"
    try:
        default = dict(formats.flat(to_table(load_recipe(name))))
    except SettingError:  # the shipped file was changed by hand
        return None
    rows = [
        [key, _value(value), _value(default[key]) if key in default else "no such setting"]
        for key, value in formats.flat(recipe)
        if default.get(key) != value
    ]
    caption = f"Settings of this run that differ from the recipe {name}"
    table = Table(caption=caption, header=["Setting", "This run", "Recipe"], rows=rows)
    return {"name": name, "table": table, "note": _note_on_epochs(report)}


def _note_on_epochs(report: dict[str, Any]) -> str:
    """Say that the width stage had the epochs of both stages, if no block was removed; empty if it had not."""
    stages = [str(row.get("name", "")) for row in report.get("stages") or ()]
    if "width distil" not in stages or any(name.startswith("depth") for name in stages):
        return ""
    epochs = [report["recipe"].get(f"{stage}_training", {}).get("epochs") for stage in ("width", "depth")]
    if not all(map(formats.is_number, epochs)) or not epochs[1]:
        return ""
    note = "No block was removed, so the epochs of the depth stage were added to those of the width stage"
    is_alone = stages.count("width distil") == 1 and LARGER not in stages  # else a size may have had fewer
    return f"{note}: {epochs[0]} + {epochs[1]} = {sum(epochs)}." if is_alone else f"{note}."


def _value(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _machine(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """The computer, as pairs of a name and a value."""
    names = {
        "device": "Device",
        "cpu": "Processor",
        "cores": "Cores",
        "threads": "Threads used",
        "dtype": "Number format",
    }
    return [(title, str(environment[key])) for key, title in names.items() if environment.get(key) not in (None, "")]


def _remarks(report: dict[str, Any]) -> list[str]:
    """What is to be known about the numbers: a busy machine, a missed limit, classes at zero, notes of the run."""
    return [
        *([str(report["busy"])] if report.get("busy") else []),
        *latency_lines(report),
        *zero_lines(report),
        *map(str, report.get("notes") or ()),
    ]
