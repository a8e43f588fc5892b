"""Tables: what is printed about a structure, a plan and two evaluations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builders.models import make_structure, plan_of_sizes
from vitrim.cli.tables import print_evaluations, print_line, print_plan, print_report, print_structure, print_table
from vitrim.costs.counting import count_cost
from vitrim.errors import counted
from vitrim.evaluation import Evaluation
from vitrim.planning import Proposal
from vitrim.structure import Directions, HeadRows


def test_a_structure_is_printed_with_the_reasons_why_parts_cannot_be_pruned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    structure = make_structure([(4, 24), (4, 24)])
    first, second = structure.blocks
    heads, neurons = first.groups
    first = replace(first, groups=(replace(heads, not_prunable="normalises across heads"), neurons))
    structure = replace(structure, blocks=(first, replace(second, not_prunable="it is the last block")))
    print_structure(structure)
    out = capsys.readouterr().out
    assert "neurons, block; not heads: normalises across heads" in out
    assert "heads, neurons; not block: it is the last block" in out
    cost = count_cost(structure)
    assert f"{cost.params:,}" in out and f"{cost.macs:,}" in out


def test_a_structure_is_printed_with_what_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    structure = make_structure([(4, 24), (4, 24), (4, 24)])
    both = Directions(values=(HeadRows(name="v", width=1, stride=1),))
    changes = (
        {"directions": both},
        {"directions": replace(both, only_values="rotary positions")},
        {"not_narrowable": "a gate multiplies each column"},
    )
    blocks = [
        replace(block, groups=(replace(block.heads, **change), block.neurons))
        for block, change in zip(structure.blocks, changes, strict=True)
    ]
    print_structure(replace(structure, blocks=tuple(blocks)))
    lines = " ".join(capsys.readouterr().out.replace("│", " ").split())  # long cells have several lines
    assert "heads, head width, neurons, block" in lines
    assert "heads, head width (values only), neurons, block; not head width" in lines
    assert "rotary positions" in lines
    assert "heads, neurons, block; not head width: a gate" in lines


def test_a_plan_is_printed_with_the_units_that_it_keeps_and_removes(capsys: pytest.CaptureFixture[str]) -> None:
    structure = make_structure([(4, 24), (4, 24), (2, 8)])
    plan = plan_of_sizes(structure.model, [(2, 5), (4, 24)])
    print_plan(structure, Proposal(plan=plan, predicted_ms=1.25))
    out = capsys.readouterr().out
    rows = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in out.splitlines()
        if "│" in line
    }
    assert rows["blocks.0"] == ["2 of 4", "5 of 24", "2, 3"]
    assert rows["blocks.1"] == ["4 of 4", "24 of 24", "none"]
    assert rows["blocks.2"] == ["block removed", "block removed", ""]
    cost = count_cost(structure, plan)
    assert f"keeps {cost.params:,} parameters" in out and f"{cost.macs:,} multiply-adds" in out
    assert "predicted latency: 1.25 ms for one forward pass" in out
    print_plan(structure, Proposal(plan=plan, predicted_ms=0.0))
    assert "predicted latency" not in capsys.readouterr().out


def test_a_report_begins_with_its_verdict_after_the_table(
    finished_run: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = finished_run("depth").result.report
    print_report(report, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("└")) + 1
    assert lines[first] == report["verdict"] and "p = " not in "".join(lines)
    assert lines[-1] == f"report: {tmp_path / 'report.html'}, {tmp_path / 'report.json'}, {tmp_path / 'report.md'}"


def evaluation(correct: list[int]) -> Evaluation:
    marks = np.array(correct, dtype=bool)
    top1 = 100 * float(marks.mean())
    return Evaluation(top1=top1, top5=None, loss=1.5, low=top1 - 1, high=top1 + 1, num_images=len(marks), correct=marks)


def test_the_difference_of_two_evaluations_is_first_minus_second(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluations([("small", evaluation([1, 0, 0, 0])), ("dense", evaluation([1, 1, 1, 0]))])
    out = capsys.readouterr().out
    assert "4 validation images" in out and "25.00 % [24.00, 26.00]" in out and "1.5000" in out
    assert "small against dense: -50.00 points" in out


def test_one_is_singular() -> None:
    assert [counted(number, "block") for number in (0, 1, 2)] == ["0 blocks", "1 block", "2 blocks"]


def test_only_the_first_process_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    print_table("title", ["column"], [["cell"]])
    print_line("line")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    print_table("title", ["column"], [["cell"]])
    print_line("line")
    out = capsys.readouterr().out
    assert all(word in out for word in ("title", "column", "cell", "line"))


def test_names_in_tables_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[bold]title", ["[red]name", ":smile:"], [["[/]", "\x1b[31m\n\u202e"], ["\udcff", "caf\u00e9"]])
    print_line("[red]line\n\udcff")
    out = capsys.readouterr().out
    for text in (
        "[bold]title",
        "[red]name",
        ":smile:",
        "[/]",
        r"\x1b[31m\n\u202e",
        r"\xff",
        "caf\u00e9",
        r"[red]line\n\xff",
    ):
        assert text in out


def test_names_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]", "[/red]", "[link=http://x]y", ":smile:", "[bold]cat[/bold]"]
    print_table("[b]title[/b]", ["[i]name"], [[name] for name in names])
    out = capsys.readouterr().out
    assert all(name in out for name in [*names, "[b]title[/b]", "[i]name"])
