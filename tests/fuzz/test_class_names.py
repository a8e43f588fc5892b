"""Files of class names: any text makes a name for each output, or a DataError."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from builders.fuzz import damaged, json_values, mutated, texts, tried
from vitrim.data.classes.class_names import folder_orders, join, read_class_names
from vitrim.errors import DataError

LINES = "n01440764 tench\nn01443537 goldfish, Carassius\n0,shark\nn\t1\n"
DOCUMENTS = [
    {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}},
    {"0": ["n02124075", "cat"], "1": ["n02124076", "dog"]},
    ["cat", "dog", "bird"],
    [["n1", "cat"], ["n2", "dog"]],
]


def assert_names_or_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found = read_class_names(path)
    except DataError as problem:
        assert "\n" not in str(problem) and len(str(problem)) < 3500
        return
    assert len(found) == len(found.names) > 0
    assert all(len(column) == len(found) for column in found.columns)
    for name in found.names:
        name.encode("utf-8")  # it can be written


@tried(60)
@given(
    text=st.one_of(damaged(LINES), st.text(), damaged(json.dumps(DOCUMENTS[0]))),
    suffix=st.sampled_from(["txt", "json"]),
)
def test_any_text_has_class_names_or_is_refused(text: str, suffix: str, tmp_path: Path) -> None:
    assert_names_or_refused(tmp_path / f"names.{suffix}", text.encode("utf-8", "surrogatepass"))


@tried(100)
@given(data=st.data(), python=st.booleans())
def test_any_json_has_class_names_or_is_refused(data: st.DataObject, python: bool, tmp_path: Path) -> None:
    document = data.draw(st.one_of(json_values, *map(mutated, DOCUMENTS)))
    text = repr(document) if python else json.dumps(document)
    assert_names_or_refused(tmp_path / ("names.txt" if python else "names.json"), text.encode("utf-8", "surrogatepass"))


@tried(60)
@given(content=st.binary(max_size=200))
def test_any_bytes_have_class_names_or_are_refused(content: bytes, tmp_path: Path) -> None:
    assert_names_or_refused(tmp_path / "names.txt", content)


@tried(60)
@given(folders=st.lists(texts, max_size=6, unique=True), names=st.lists(texts, max_size=6, unique=True))
def test_any_names_can_be_joined_and_ordered(folders: list[str], names: list[str]) -> None:
    assert len(join(folders, names).index) == len(folders)
    assert all(sorted(order) == list(range(len(folders))) for order in folder_orders(folders).values())
