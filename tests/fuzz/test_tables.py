"""Tables of images: any text makes rows of one length, or a DataError."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, mutated, tried
from vitrim.data.listing.tables import NO_COLUMNS, TABLE_SUFFIXES, choose_rows, labels_in_order, read_table
from vitrim.errors import DataError

CSV = "file_name,label,split\na.png,cat,train\nb.png,dog,val\n'c d.png',1.0,test\n"
LIST = "a.png cat\nsub/b.png 2\nc.png\tdog\n"
ROWS = [{"file_name": "a.png", "label": "cat"}, {"file_name": "b.png", "label": 1, "split": "val"}]


def assert_rows_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        table = read_table(path, NO_COLUMNS)
        assert all(len(row) == len(table.columns) for row in table.rows)
        rows, _ = choose_rows(table, NO_COLUMNS, lambda cell: cell.endswith(".png"))
    except DataError as problem:
        assert "\n" not in str(problem) and len(str(problem)) < 3500
        return
    assert len(rows) <= len(table.rows)
    labels = [row.label for row in rows]
    assert set(labels_in_order(labels)) == set(labels)


@tried(100)
@given(
    text=st.one_of(damaged(CSV), damaged(LIST), st.text()), suffix=st.sampled_from([*TABLE_SUFFIXES, ".txt", ".lst"])
)
def test_any_text_is_a_table_or_is_refused(text: str, suffix: str, tmp_path: Path) -> None:
    assert_rows_or_refused(tmp_path / f"table{suffix}", text.encode("utf-8", "surrogatepass"))


@tried(60)
@given(content=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".txt", ".jsonl"]))
def test_any_bytes_are_a_table_or_are_refused(content: bytes, suffix: str, tmp_path: Path) -> None:
    assert_rows_or_refused(tmp_path / f"table{suffix}", content)


@tried(60)
@given(rows=mutated(ROWS))
def test_any_json_lines_are_a_table_or_are_refused(rows: object, tmp_path: Path) -> None:
    lines = rows if isinstance(rows, list) else [rows]
    assert_rows_or_refused(tmp_path / "table.jsonl", "\n".join(map(json.dumps, lines)).encode())
