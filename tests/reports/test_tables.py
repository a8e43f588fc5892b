"""Laws of the tables of the page."""

from typing import Any

import pytest

from builders.reports import ANIMALS, details_of, digits_demo, photo_run
from vitrim.reports.tables import (
    MAX_CLASSES,
    Table,
    class_tables,
    confusion_table,
    search_table,
    sizes_table,
    statistics_table,
)


def classes(count: int) -> list[dict[str, Any]]:
    return details_of(tuple(f"class {number}" for number in range(count)))["classes"]


def test_a_column_is_numeric_if_all_of_its_cells_are_numbers() -> None:
    rows = [
        ["1", "95.8\u00a0%", "\u22120.4", "3.2\u00a0G (\u221230\u00a0%)", "\u2013", "7"],
        ["2", "1.0\u00a0%", "+1", "2", "1,000", "no"],
    ]
    assert Table(caption="", header=list("abcdef"), rows=rows).numeric == [False, True, True, True, True, False]


@pytest.mark.parametrize("count", [1, MAX_CLASSES, MAX_CLASSES + 1, 1000])
def test_all_classes_are_shown_up_to_a_number_and_then_both_ends(count: int) -> None:
    found = class_tables(classes(count))
    names = [row[0] for table in found for row in table.rows]
    assert len(names) == min(count, MAX_CLASSES) == len(set(names))
    assert all(len(table.bars) == len(table.rows) and max(map(abs, table.bars)) <= 1 for table in found)
    changes = [bar for table in found[:1] for bar in table.bars]
    assert changes == sorted(changes)


def test_a_report_of_many_models_has_one_row_for_each() -> None:
    models = digits_demo()[0]["models"]
    rows = sizes_table(models).rows
    assert [row[0] for row in rows] == ["original", "70 %", "50 %", "original, trained longer"]
    assert rows[1][2] == "\u22120.2" and rows[1][3] == "15.17\u00a0M (\u221230\u00a0%)"
    assert sizes_table([{"name": "a"}, {"name": "b"}]).rows[1][1:] == ["\u2013"] * 6


def test_the_search_says_what_passed_in_words() -> None:
    table = search_table(photo_run()[0]["search"])
    assert table and [row[4] for row in table.rows] == ["\u2717 no", "\u2713 yes", "\u2713 yes"]
    assert [row[1] for row in table.rows] == ["short test", "short test", "full"]
    assert search_table({}) is None


def test_tables_without_rows_are_left_out() -> None:
    assert class_tables([]) == [] and confusion_table([]) is None
    assert statistics_table([{"name": "dense"}, {"name": "small", "difference": None}]) is None
    one = confusion_table([{"label": "cat", "predicted": "dog", "dense": 3}])
    assert one and one.header == ["Correct class", "Taken for", "Images"] and one.rows == [["cat", "dog", "3"]]
    found = confusion_table([{"label": ANIMALS[0], "predicted": ANIMALS[1], "small": 3}])
    assert found and found.rows == [["airplane", "automobile", "0", "3", "+3"]]
