"""Laws of the report: its keys, and that texts and tables say what the numbers say."""

import json
from typing import Any

import pytest

from builders.runs import FinishedRun
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.models import describe
from vitrim.reports.page import to_html
from vitrim.reports.report import (
    changed_sizes,
    in_markdown,
    kept_text,
    table_rows,
    to_markdown,
    zero_lines,
)
from vitrim.saving.opening import open_model


@pytest.mark.parametrize("name", ["depth", pytest.param("auto", marks=pytest.mark.slow)])
def test_the_report_has_the_keys_of_the_format(name: str, finished_run: Any) -> None:
    run: FinishedRun = finished_run(name)
    report = json.loads((run.folder / "report.json").read_text())
    assert report == run.result.report
    assert {"models", "stages", "environment", "recipe"} <= report.keys()
    columns = {"name", "keep", "top1", "top1_low", "top1_high", "params", "macs", "latency_ms", "file_bytes"}
    dense, small = report["models"]
    assert columns <= dense.keys() and columns <= small.keys()
    assert (dense["name"], dense["keep"], small["keep"]) == ("dense", 1.0, 0.6)
    for row in (dense, small):
        assert 0 <= row["top1_low"] <= row["top1"] <= row["top1_high"] <= 100
    assert small["file_bytes"] == (run.folder / "model" / "model.safetensors").stat().st_size
    assert small["params"] == count_cost(run.result.model).params
    assert all({"name", "top1", "params", "macs"} <= stage.keys() for stage in report["stages"])
    names = [stage["name"] for stage in report["stages"]]
    assert names[:4] == ["dense", "width cut", "width recover", "width distil"]
    assert names[4:] in ([], ["depth cut", "depth recover", "depth distil"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"img_size": 32, "embed_dim": 12}, "img_size=32, embed_dim=12"),
        ({"img_size": 224, "patch_size": 16}, ""),
        (
            {"img_size": [32, 48], "patch_size": 8, "num_classes": 3, "qkv_bias": False},
            "img_size=[32, 48], patch_size=8",
        ),
    ],
)
def test_sizes_that_the_name_of_a_model_does_not_have_are_stated(arguments: dict[str, Any], expected: str) -> None:
    model = open_model("vit_tiny_patch16_224", model_args=arguments)
    assert changed_sizes(model) == expected


def test_the_title_says_that_sizes_were_changed_and_the_page_states_them(finished_run: Any) -> None:
    report = finished_run("depth").result.report
    assert report["title"].startswith(f"{report['architecture']} with changed sizes on ")
    assert "embed_dim=" in report["changed_sizes"]
    assert f"{report['architecture']} with {report['changed_sizes']}" in to_markdown(report)
    assert f"{report['architecture']} with {report['changed_sizes']}" in to_html(report, {})


def test_the_text_has_every_model_stage_and_difference(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    report, text = run.result.report, (run.folder / "report.md").read_text()
    assert text == to_markdown(report)
    header, rows = table_rows(report)
    assert f"| {' | '.join(header)} |" in text
    for row in rows:
        assert f"| {' | '.join(row)} |" in text
    for stage in report["stages"]:
        assert f"| {stage['name']} | {stage['top1']:.2f} % |" in text
    small = report["models"][1]
    interval = f"[{small['difference_low']:+.2f}, {small['difference_high']:+.2f}]"
    assert (
        f"{small['name']}: top-1 differs from the dense model by {small['difference']:+.2f} percentage points" in text
    )
    assert interval in text
    assert "Latency on" not in text  # there was no budget in milliseconds


def test_the_text_begins_with_the_verdict_and_has_statistics_only_at_its_end(finished_run: Any) -> None:
    report = finished_run("depth").result.report
    text = to_markdown(report)
    assert text.startswith(f"# {report['title']}\n\n**{report['verdict']}**\n\n| model |")
    last, first = text.partition("## How this was measured")[2], text.partition("## Notes")[0]
    assert not any(word in first for word in ("p = ", "McNemar", "Wilson")) and "McNemar" in last
    old = {key: value for key, value in report.items() if key not in ("verdict", "command")}
    assert to_markdown(old) == to_markdown({**report, "command": ""})


def test_classes_that_are_never_recognised_are_in_the_report(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    report = run.result.report
    assert all(row["classes_at_zero"]["num_classes"] == 10 for row in report["models"])
    zero = {"classes": [{"name": "boots", "num_images": 34, "dense_top1": 71.0}], "num_classes": 10}
    dense, small = report["models"]
    report = {**report, "models": [{**dense, "classes_at_zero": None}, {**small, "classes_at_zero": zero}]}
    (line,) = zero_lines(report)
    assert line == (
        f"{small['name']}: 1 of 10 classes has 0 % accuracy: boots (34 images). The dense model recognises 1 of them: "
        "boots (71 %)."
    )
    assert line in to_markdown(report)


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (Budget(params=0.7, macs=0.7), "70 %"),
        (Budget(params=0.7, macs=0.5), "70 % of parameters, 50 % of multiply-adds"),
        (Budget(params=1, macs=0.5), "50 % of multiply-adds"),
        (Budget(params=1, macs=1, latency_ms=12), "12 ms"),
        (Budget(params=0.6, macs=0.6, latency_ms=12), "60 %, 12 ms"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_is_named_after_its_budget(budget: Budget, name: str) -> None:
    assert budget.label == name


def test_the_report_says_what_was_kept(finished_run: Any) -> None:
    run: FinishedRun = finished_run("depth")
    kept = run.result.report["models"][1]["kept"]
    groups = [group for block in describe(run.result.model).blocks for group in block.groups]
    heads, neurons = (sum(g.count for g in groups if g.kind == kind) for kind in ("heads", "neurons"))
    assert kept == f"3 of 4 blocks, {heads} of 16 heads, {neurons} of 256 neurons"
    assert f"keeps {kept} of the dense model." in to_markdown(run.result.report)


def test_narrower_heads_are_said_with_their_width(finished_run: Any) -> None:
    dense = describe(finished_run("depth").dense)
    text = "4 of 4 blocks, 16 of 16 heads of width 2 (before: 4), 256 of 256 neurons"
    assert kept_text(dense, dense.narrowed(2)) == text


def test_names_are_neither_html_nor_links_nor_borders_in_markdown() -> None:
    report = {"name": "<script>alert(1)</script>", "rows": ["a|b", "![x](http://host/x)", "two\nlines"], "count": 3}
    found = in_markdown(report)
    assert found["name"] == "&lt;script>alert(1)&lt;/script>"
    assert found["rows"] == [r"a\|b", r"![x]\(http://host/x)", "two lines"]
    assert found["count"] == 3
