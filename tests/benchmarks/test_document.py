"""The text of `results.md`."""

import copy
import re
from pathlib import Path
from typing import Any

from benchmarks.document import headline_targets, open_cells, read_configs, to_markdown
from benchmarks.measurements import CONTROL
from builders.records import pick, rows_of, write_arm


def line_of(text: str, arm: str, header: str) -> dict[str, str]:
    """The first line of an arm in a table that has this column, by column."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        columns, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        if header in columns:
            return dict(zip(columns, next(line for line in lines if line[0] == arm), strict=True))
    raise AssertionError(f"no table with the column {header}")


def test_the_document_shows_the_rows(cell_rows: list[dict[str, Any]]) -> None:
    rows = cell_rows
    text = to_markdown(rows, [])
    row = pick(rows, "vitrim", 0.7)
    final = line_of(text, "**vitrim**", "minus dense control [95 %]")
    assert final["top-1"] == "61.00 %"
    assert final["minus dense teacher [95 %]"] == f"+1.00 [{row['low']:+.2f}, {row['high']:+.2f}]"
    assert final["minus dense control [95 %]"].startswith("-1.00 [") and final["vitrim minus this arm [95 %]"] == "-"
    assert final["agreement [95 %]"] == f"81.00 % [{row['agreement_low']:.2f}, {row['agreement_high']:.2f}]"
    assert [final[name] for name in ("divergence", "parameters kept", "multiply-adds kept")] == [
        *("0.1000", "70.0 %", "69.0 %")
    ]
    stages = line_of(text, "**vitrim**", "after pruning")
    assert list(stages.values())[1:] == ["50.00 %", "59.00 %", "0.2000", "42.00 %", "43.00 %", "61.00 %"]
    control = line_of(text, CONTROL, "minus dense control [95 %]")
    assert control["vitrim minus this arm [95 %]"] == final["minus dense control [95 %]"]
    for needed in ("200 test images", "AMD EPYC", "torch 2.14.1", "Commit: abc1234", "Seeds: 0, 1", "Time: "):
        assert needed in text


def test_columns_without_a_value_are_not_shown(cell_rows: list[dict[str, Any]]) -> None:
    added = ("kl_dense", "kl_recovered", "kl_lead", "agreement")  # rows of earlier versions have no such keys
    earlier = [{key: value for key, value in row.items() if not key.startswith(added)} for row in cell_rows]
    for rows, are_shown in ((cell_rows, True), (earlier, False)):
        text = to_markdown(rows, [])
        assert ("agreement [95 %] |" in text, "| divergence after recovery | after" in text) == (are_shown, are_shown)
        assert "relative latency [95 %] |" not in text
    timed = [row | {"latency_ratio": 0.5, "latency_low": 0.4, "latency_high": 0.6} for row in cell_rows]
    assert line_of(to_markdown(timed, []), "paper", "relative latency [95 %]")["relative latency [95 %]"] == (
        "0.50 [0.40, 0.60]"
    )


def test_a_note_says_that_all_seeds_have_one_dense_model(cell_rows: list[dict[str, Any]]) -> None:
    note = "the intervals are over images and student seeds, not over dense models"
    assert note not in to_markdown(cell_rows, [])
    assert note in to_markdown([row | {"dense_seed_shared": True} for row in cell_rows], [])


def test_the_document_begins_with_the_table_the_plot_and_the_targets(cell_rows: list[dict[str, Any]]) -> None:
    text = to_markdown(cell_rows, [])
    parts = ("<table>", "plots/headline.svg", "python -m benchmarks.run", "[Targets](#targets): ", "\n## Targets\n")
    places = [text.index(part) for part in (*parts, "\n## Cost\n", "\n## tiny: ", "\n## How to read the tables\n")]
    assert places == sorted(places)
    without = to_markdown([], [])
    assert "No cell is measured yet." in without and "headline.svg" not in without


def test_the_headline_has_the_targets_of_the_cell_with_a_better_teacher(cell_rows: list[dict[str, Any]]) -> None:
    better = [row | {"cell": "tiny-teacher", "teacher": "3 snapshots", "top1_teacher": 70.0} for row in cell_rows]
    main = [row for row in cell_rows if row["arm"] != "scratch"]
    targets = headline_targets(main, [*main, *better], {"tiny": ("vitrim", "paper")})
    names = [target.name for target in targets]
    assert names[-2:] == ["dense model, with a better teacher", "dense control, with a better teacher"]
    assert targets[-2].measured == 1.0
    assert not any("scratch" in target.verdict for target in targets)  # this cell needs no such arm
    assert any("scratch" in target.verdict for target in headline_targets(main, main, {}))


def test_the_document_has_no_absolute_path(cell_rows: list[dict[str, Any]]) -> None:
    assert re.findall(r"(?:^|[\s`(=])~?/\w+", to_markdown(cell_rows, [])) == []


def test_a_note_says_that_there_is_one_seed(tmp_path: Path) -> None:
    write_arm(tmp_path, "vitrim", 0.7, 0)
    assert "over images only" in to_markdown(rows_of(tmp_path), [])


def test_incomplete_cells_are_listed_with_their_command(tmp_path: Path, cell_rows: list[dict[str, Any]]) -> None:
    configs = tmp_path / "configs"
    configs.mkdir()
    for name, more in (("tiny", ""), ("smoke", ""), ("tune", "tuning_share = 0.2"), ("later", "")):
        text = f'name = "{name}"\nmodel_name = "small ViT"\ndataset = "toys"\nkeeps = [0.7, 0.5]\n{more}'
        (configs / f"{name}.toml").write_text(text)
    rows = [row for row in cell_rows if row["arm"] != "scratch" or row["keep"] != 0.5]
    found = open_cells(rows, read_configs(configs))
    assert [(cell["name"], cell["missing"]) for cell in found] == [
        ("later", "nothing measured yet"),
        ("tiny", "not measured: keep 0.5 scratch; dense-distilled"),
    ]
    assert found[0]["command"] == "python -m benchmarks.run benchmarks/configs/later.toml -o runs/later"
    assert found[0]["command"] in to_markdown(rows, read_configs(configs))


def test_a_note_says_that_the_dense_control_lost_accuracy(cell_rows: list[dict[str, Any]]) -> None:
    rows = copy.deepcopy(cell_rows)
    assert "control ended below" not in to_markdown(rows, [])
    for row in rows:
        if row["arm"] == CONTROL:
            row["top1"] = row["top1_dense"] - 1
    assert "control ended below" in to_markdown(rows, [])
