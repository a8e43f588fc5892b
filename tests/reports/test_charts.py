"""Laws of the charts: their numbers are in the picture and in the table, and names are text."""

import re
import warnings
from itertools import combinations
from typing import Any

import pytest

from builders.reports import calibration, details_of, digits_demo, model_row, photo_run
from vitrim.reports.charts import (
    LETTER,
    VARIABLES,
    Chart,
    accuracy_chart,
    curves_chart,
    reliability_chart,
    stages_chart,
)

REPORT = photo_run()[0]
CURVE = details_of()["curves"][0]["rows"]


def charts() -> list[Chart]:
    made = [
        accuracy_chart("a", REPORT["models"], "params"),
        accuracy_chart("b", REPORT["models"], "latency_ms"),
        stages_chart("c", REPORT["stages"]),
        curves_chart("d", "width", CURVE, "loss"),
        curves_chart("e", "", CURVE, "top1"),
        reliability_chart("f", {"dense": calibration(0.1), "small": calibration(0.2)}),
    ]
    return [chart for chart in made if chart]


def test_every_chart_has_a_description_a_table_and_ids_of_its_own() -> None:
    found = charts()
    assert len(found) == 6
    ids = [ident for chart in found for ident in re.findall(r' id="([^"]+)"', chart.svg)]
    assert len(set(ids)) == len(ids)
    for chart in found:
        assert "<desc id=" in chart.svg and chart.caption in chart.svg and 'role="img"' in chart.svg
        assert chart.table.rows and all(len(row) == len(chart.table.header) for row in chart.table.rows)
        used = re.findall(r'(?:url\(|href=")#([^)"]+)', chart.svg)
        assert used and set(used) <= set(ids)


def test_colours_are_those_of_the_page() -> None:
    for chart in charts():
        assert not re.search(r"#[0-9a-f]{6}\b", chart.svg)
        assert {"muted", "small"} <= set(re.findall(r"var\(--(\w+)\)", chart.svg)) <= set(VARIABLES.values())


def test_the_same_numbers_make_the_same_bytes_also_with_other_settings_of_matplotlib() -> None:
    import matplotlib

    matplotlib.use("pdf")
    before = [chart.svg for chart in charts()]
    assert matplotlib.get_backend() == "pdf"
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.facecolor": "red"}):
        assert [chart.svg for chart in charts()] == before
        assert matplotlib.rcParams["font.size"] == 30


def test_numbers_are_shown_under_the_pointer() -> None:
    svg = charts()[0].svg
    assert "<title>original: 96.2" in svg and "<title>70 % kept: 95.80\u00a0%, 15.17\u00a0M</title>" in svg


@pytest.mark.parametrize(
    "name", ["$\\frac{1}", "<b>&", "\u732b\u0642\u0637", "@0@ @t0@", "var(--ink) url(#a)", "x" * 300]
)
def test_a_name_is_neither_a_formula_nor_markup_nor_a_mark(name: str) -> None:
    models = [model_row("dense", 1.0, 90.0), model_row(name, 0.5, 89.0, 90.0)]
    stages = [{"name": name, "top1": 80.0}, {"name": "dense", "top1": 90.0}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [
            accuracy_chart("a", models, "params"),
            stages_chart("b", stages),
            curves_chart("c", name, CURVE, "loss"),
        ]
    for chart in found:
        assert chart and "<b>" not in chart.svg
        plain = re.sub(r"<[^>]*>", "", chart.svg)
        assert re.search(re.escape({"<b>&": "&lt;b&gt;&amp;"}.get(name, name[:5])), plain)


def test_labels_of_points_that_are_close_do_not_cover_each_other() -> None:
    chart = accuracy_chart("a", digits_demo()[0]["models"], "params")
    assert chart
    place = r'<text[^>]*text-anchor: middle[^>]* x="([\d.]+)" y="([\d.]+)"[^>]*>(original[^<]*|\d+ % kept)<'
    labels = [(float(x), float(y), LETTER * len(name)) for x, y, name in re.findall(place, chart.svg)]
    assert len(labels) == len(digits_demo()[0]["models"])
    for (x, y, width), (other_x, other_y, other_width) in combinations(labels, 2):
        assert abs(x - other_x) >= (width + other_width) / 2 or abs(y - other_y) >= 11


@pytest.mark.parametrize("key", ["top1", "params"])
def test_models_without_the_number_are_left_out(key: str) -> None:
    rows: list[dict[str, Any]] = [model_row("dense", 1.0, 90.0), model_row("70 %", 0.7, 89.0, 90.0)]
    assert accuracy_chart("a", [rows[0], {**rows[1], key: None}], "params") is None
    assert accuracy_chart("a", [*rows, {**rows[1], key: float("nan")}], "params") == accuracy_chart("a", rows, "params")


def test_no_axis_of_accuracies_goes_beyond_100_percent() -> None:
    ends = {"top1_low": 20.0, "top1_high": 100.0, "params": 10}
    models = [{"name": "a", "top1": 60.0, **ends}, {"name": "b", "top1": 100.0, **ends}]
    rows = [{"epoch": epoch, "top1": 100.0} for epoch in (1, 2, 3)]
    for chart in (accuracy_chart("a", models, "params"), curves_chart("b", "", rows, "top1")):
        assert chart
        numbers = [float(text) for text in re.findall(r">([\d.]+)</text>", chart.svg)]
        assert 100 in numbers and max(numbers) == 100


def test_training_and_validation_loss_have_an_axis_each() -> None:
    chart = curves_chart("a", "", CURVE, "loss")
    only = curves_chart("a", "", [{**row, "validation_loss": None} for row in CURVE], "loss")
    assert chart and ">Training loss<" in chart.svg and ">Validation loss<" in chart.svg
    assert only and ">Validation loss<" not in only.svg


def test_what_cannot_be_drawn_is_no_chart() -> None:
    assert stages_chart("a", REPORT["stages"][:1]) is None
    assert curves_chart("a", "", CURVE[:1], "loss") is None
    assert curves_chart("a", "", [{"epoch": 1}, {"epoch": 2, "top1": None}], "top1") is None
    assert reliability_chart("a", {}) is None
    assert reliability_chart("a", {"dense": {"bins": [{"low": 0, "high": 1, "count": 0}]}}) is None
