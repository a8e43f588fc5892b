"""The sections on cost, on the length of training and on a better teacher."""

from typing import Any

from benchmarks.document import to_markdown
from benchmarks.measurements import CONTROL
from benchmarks.sections import cost_table, curve_tables, lead_sentence, points_of_time, teacher_sections
from builders.curves import curve_rows
from builders.records import pick


def test_the_cost_has_a_column_for_each_step_that_an_arm_has(cell_rows: list[dict[str, Any]]) -> None:
    plain: Any = cost_table(cell_rows)
    assert plain["header"] == ["arm", "kept", "all steps", "final top-1"] and not plain["has_steps"]
    steps = {"vitrim": {"scoring": 12.3, "distillation": 500.0}, "torch-pruning": {"planning": 4.56}}
    found: Any = cost_table([row | {"step_seconds": steps.get(row["arm"])} for row in cell_rows])
    assert found["header"] == ["arm", "kept", "scoring", "planning", "distillation", "all steps", "final top-1"]
    lines = {(line[0], line[1]): line[2:5] for line in found["lines"]}
    assert lines["**vitrim**", "50 %"] == ["12 s", "-", "500 s"]
    assert lines["Torch-Pruning, whole heads", "70 %"] == ["-", "4.6 s", "-"]
    assert cost_table([row | {"seconds": None} for row in cell_rows]) is None


def test_points_of_time_are_measurements_only(cell_rows: list[dict[str, Any]]) -> None:
    curves = curve_rows()
    assert points_of_time(cell_rows, curves) == curves
    finals = points_of_time(cell_rows, [])
    assert len(finals) >= 10 and all(row in cell_rows and row["arm"] != CONTROL for row in finals)


def test_the_sentence_on_the_lead_is_computed_from_the_curves() -> None:
    members = [row for row in curve_rows() if row["keep"] == 0.5]
    text = lead_sentence(members)
    assert text.startswith(
        "At 50 %, vitrim minus the best other arm, Torch-Pruning, whole heads, is +10.00 [+9.50, +10.50]"
    )
    assert "+1.00 [+0.50, +1.50] after 10 epochs" in text
    assert text.endswith("Of the lead before training, 10 % is left after 10 epochs.")
    overtaken = [
        row | {"vitrim_delta": -0.2} if row["student_epochs"] == 10 and row["arm"] == "paper" else row
        for row in members
    ]
    assert "-0.20" in lead_sentence(overtaken) and "nothing is left" in lead_sentence(overtaken)
    assert lead_sentence([row for row in members if row["arm"] == "vitrim"]) == ""


def test_curves_have_one_column_for_each_number_of_epochs(cell_rows: list[dict[str, Any]]) -> None:
    tables = curve_tables(curve_rows())
    assert [table["keep"] for table in tables] == [0.5, 0.3]
    assert tables[0]["header"] == ["arm", "before training", "1 epoch", "3 epochs", "10 epochs"]
    paper = next(line for line in tables[0]["lines"] if line[0] == "published method")
    assert paper[1:3] == ["-", "46.00 [45.00, 47.00]"]
    text = to_markdown(cell_rows, [], curves=curve_rows())
    assert "headline-curves.svg" in text and "`python -m benchmarks.curves tiny.toml`" in text
    assert "headline-curves.svg" not in to_markdown(cell_rows, [], curves=curve_rows(cell="another"))


def test_the_gain_of_a_teacher_is_beside_the_dense_control(cell_rows: list[dict[str, Any]]) -> None:
    assert teacher_sections(cell_rows) == []
    teacher = {"cell": "better", "teacher": "3 snapshots", "top1_teacher": 63.0}
    vitrim, control = pick(cell_rows, "vitrim", 0.7), pick(cell_rows, CONTROL, 1.0)
    better = [vitrim | teacher | {"top1": 61.8}, control | teacher | {"arm": "dense-distilled", "top1": 62.5}]
    (section,) = teacher_sections([*cell_rows, *better])
    names = section["header"]
    lines = [dict(zip(names, line, strict=True)) for line in section["lines"]]
    assert [line["model"] for line in lines] == [
        *("dense model", "the teacher: 3 snapshots", "dense control, same teacher", "**vitrim**")
    ]
    assert lines[1]["minus dense model [95 %]"] == "+3.00"
    assert lines[3]["minus dense control, same teacher [95 %]"] == "-0.70"  # no paired comparison in these rows
    assert lines[3]["top-1 without this teacher"] == "61.00 %" and lines[3]["gain of the teacher"] == "+0.80"
    assert "## A better teacher" in to_markdown([*cell_rows, *better], [])
