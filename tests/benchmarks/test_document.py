"""The text of `results.md`."""

import copy
import re
from pathlib import Path
from typing import Any

from benchmarks.document import open_cells, read_configs, to_markdown
from benchmarks.measurements import CONTROL
from builders.records import pick, rows_of, write_arm


def test_the_document_shows_the_rows(cell_rows: list[dict[str, Any]]) -> None:
    rows = cell_rows
    text = to_markdown(rows, [])
    line = next(line for line in text.splitlines() if line.startswith("| **vitrim** |"))
    row = pick(rows, "vitrim", 0.7)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1] == "61.00 %"
    assert cells[2] == f"+1.00 [{row['low']:+.2f}, {row['high']:+.2f}]"
    assert cells[3].startswith("-1.00 [") and cells[4] == "-"
    assert cells[7:] == ["50.00 %", "59.00 %", "0.2000", "42.00 %", "43.00 %", "70.0 %", "69.0 %"]
    assert cells[5:7] == ["0.1000", f"81.00 % [{row['agreement_low']:.2f}, {row['agreement_high']:.2f}]"]
    control = next(line for line in text.splitlines() if line.startswith(f"| {CONTROL} |"))
    assert control.split("|")[5].strip() == cells[3]  # vitrim minus the control
    for needed in ("200 test images", "AMD EPYC", "torch 2.14.1", "Commit: abc1234", "Seeds: 0, 1", "Time: "):
        assert needed in text


def test_rows_without_a_comparison_of_the_outputs_are_shown(cell_rows: list[dict[str, Any]]) -> None:
    added = ("kl_dense", "kl_recovered", "kl_lead", "agreement")
    earlier = [{key: value for key, value in row.items() if not key.startswith(added)} for row in cell_rows]
    text = to_markdown(earlier, [])
    line = next(line for line in text.splitlines() if line.startswith("| **vitrim** |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert (cells[5], cells[6], cells[9]) == ("-", "-", "-")


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
        ("tiny", "not measured: keep 0.5 scratch; keep 1 dense-distilled"),
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
