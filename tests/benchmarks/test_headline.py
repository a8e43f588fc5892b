"""The beginning of `results.md`: which cell it shows, and its table."""

import re
from typing import Any

from benchmarks.headline import controls_of, headline_rows, main_key, opening
from benchmarks.measurements import CONTROL
from benchmarks.targets import MET, NOT_MET, count_verdicts, judge_cell


def with_latency(rows: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    timed = {"latency_ratio": 0.7, "latency_low": 0.6, "latency_high": 0.8, "latency_batch": 1, "latency_on": "torch"}
    return [row | timed | changes for row in rows]


def cells_of_line(rows: list[dict[str, Any]], name: str, *, part: str = "accuracy") -> list[str]:
    found: Any = opening(rows, [])
    lines = found["accuracy"] if part == "accuracy" else found["measures"]["lines"]
    return next(line["cells"] for line in lines if re.sub("<.*?>", "", line["name"]).replace("&nbsp;", " ") == name)


def test_the_page_begins_with_the_cell_that_has_the_most_complete_rows(cell_rows: list[dict[str, Any]]) -> None:
    few = with_latency([row for row in cell_rows if row["arm"] in ("vitrim", "paper", CONTROL)], cell="few")
    assert headline_rows([*cell_rows, *few])[0]["cell"] == "few"  # it has the latency
    assert headline_rows([*with_latency(cell_rows), *few])[0]["cell"] == "tiny"
    teacher = with_latency(cell_rows, cell="better", teacher="3 snapshots")
    assert headline_rows([*teacher, *cell_rows])[0]["cell"] == "tiny"
    assert headline_rows(controls_of(cell_rows)) == [] and opening([], []) is None


def test_the_best_of_each_column_is_bold(cell_rows: list[dict[str, Any]]) -> None:
    assert all(cell.startswith("<b>61.00&nbsp;±") for cell in cells_of_line(cell_rows, "vitrim"))
    assert not any("<b>" in cell for cell in cells_of_line(cell_rows, "published method"))
    rows = with_latency(cell_rows)
    rows = [row | {"latency_ratio": 0.6} if row["arm"] == "magnitude" else row for row in rows]
    cells = cells_of_line(rows, "vitrim", part="measures")
    assert cells == ["<b>0.100</b>"] * 2 + ["<b>81.0</b>"] * 2 + ["0.70"] * 2
    assert cells_of_line(rows, "magnitude", part="measures")[4:] == ["<b>0.60</b>"] * 2


def test_rows_with_other_seeds_are_marked_and_not_compared(cell_rows: list[dict[str, Any]]) -> None:
    other = {"seeds": [0], "top1_dense": 70.0, "delta_dense": 9.0, "low": 8.0, "high": 10.0}
    rows = [row | other if row["arm"] == "paper" else row for row in cell_rows]
    assert main_key(rows) == ((0, 1), 60.0)
    assert all(cell.endswith("<sup>a</sup>") and "<b>" not in cell for cell in cells_of_line(rows, "published method"))
    assert all("<b>" in cell for cell in cells_of_line(rows, "vitrim"))
    found: Any = opening(rows, [])
    assert found["notes"] == ["<sup>a</sup> seed 0, dense model 70.00 %"]


def test_the_caption_says_what_was_measured_and_how(cell_rows: list[dict[str, Any]]) -> None:
    found: Any = opening(with_latency(cell_rows, dense_seed_shared=True), [])
    caption = " ".join(found["caption"])
    for needed in (
        "Small ViT on toys",
        "200 test images",
        "seeds 0, 1",
        "30 epochs",
        "15 of each",
        "AMD EPYC",
        "abc1234",
    ):
        assert needed in caption
    assert "One dense model: " in caption and "(torch, batch 1)" in caption
    assert found["commands"] == ["python -m benchmarks.run benchmarks/configs/tiny.toml -o tiny"]


def test_the_line_of_targets_counts_each_target_and_names_the_missed_ones(cell_rows: list[dict[str, Any]]) -> None:
    rows = [row | {"recover_share_high": 90.0, "recover_share_low": 80.0} for row in cell_rows]
    targets = judge_cell(rows)
    found: Any = opening(rows, targets)
    counts = count_verdicts(targets)
    numbers = [int(number) for number in re.findall(r"(\d+) (?:met|missed|undecided|open)", found["targets"])]
    assert numbers == list(counts.values()) and sum(numbers) == len(targets)
    missed = [target for target in targets if target.verdict == NOT_MET]
    assert missed and counts[MET] and all(target.name in found["targets"].partition("Missed: ")[2] for target in missed)
