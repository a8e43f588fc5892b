"""Laws of class names as text: files of them, the orders of folders, and which names mean the same class."""

import json
from pathlib import Path

import pytest
from timm.utils.misc import natural_key as natural_key_of_timm

from vitrim.data.classes.class_names import (
    are_numbered,
    folder_orders,
    join,
    join_splits,
    look_up,
    natural_key,
    nearly_equal,
    read_class_names,
)
from vitrim.errors import DataError

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def file(folder: Path, content: str | bytes, name: str = "names.txt") -> Path:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


# Orders


def test_the_natural_order_is_that_of_timm() -> None:
    names = ["Ant", "bee", "Cat", "class1", "class10", "Class2", "2b", "10", "9", "", "x1y20", "x1y3"]
    assert sorted(names, key=natural_key) == sorted(names, key=natural_key_of_timm)


def test_each_order_states_the_position_of_each_class() -> None:
    assert folder_orders(("Ant", "Cat", "bee")) == {"code point order": (0, 1, 2), "timm's natural order": (0, 2, 1)}
    numbered = folder_orders(("class1", "class10", "class2"))
    assert numbered["timm's natural order"] == (0, 2, 1)


def test_orders_that_agree_are_listed_once() -> None:
    assert list(folder_orders(("ant", "bee", "cat"))) == ["code point order"]
    assert list(folder_orders(tuple("0123456789"))) == ["code point order"]


def test_an_accent_that_macos_decomposed_sorts_elsewhere() -> None:
    orders = folder_orders(("zoo", "\u00e9cole"))
    assert orders == {"code point order": (0, 1), "code point order of decomposed accents": (1, 0)}


@pytest.mark.parametrize("pattern", ["LABEL_{}", "{}", "class_{}", "Class {}", "class{}", "label-{}"])
def test_names_that_count_from_0_name_nothing(pattern: str) -> None:
    assert are_numbered([pattern.format(number) for number in range(12)])
    assert not are_numbered([pattern.format(number) for number in range(1, 12)])
    assert not are_numbered(sorted(pattern.format(number) for number in range(12)))


def test_other_names_are_names() -> None:
    assert not are_numbered([]) and not are_numbered(["cat", "dog"]) and not are_numbered(["cat0", "cat1"])


# Files


@pytest.mark.parametrize("content", ["{0: 'bee, Apis',\n 1: 'ant'}", "['bee, Apis', 'ant']", '["bee, Apis", "ant"]'])
def test_names_as_python_prints_them_are_read_from_text(content: str, tmp_path: Path) -> None:
    assert read_class_names(file(tmp_path, content)).names == ("bee, Apis", "ant")
    assert read_class_names(file(tmp_path, "[bee]\nant")).names == ("[bee]", "ant")


@pytest.mark.parametrize("key", ["id2label", "label2id", "label_names", "class_to_idx"])
def test_a_configuration_states_the_names_under_any_usual_key(key: str, tmp_path: Path) -> None:
    values = {"id2label": {"1": "ant", "0": "bee"}, "label_names": ["bee", "ant"]}.get(key, {"ant": 1, "bee": 0})
    stated = read_class_names(file(tmp_path, json.dumps({"model_type": "vit", key: values}), "config.json"))
    assert stated.names == ("bee", "ant") and stated.in_order


@pytest.mark.parametrize(
    "content", ["cat\ndog\n", "cat\ndog", "cat\r\ndog\r\n\r\n", "\ufeffcat\ndog\n\n\n", " cat \ndog"], ids=repr
)
def test_a_file_has_one_name_a_line(content: str, tmp_path: Path) -> None:
    assert read_class_names(file(tmp_path, content)).columns == (("cat", "dog"),)


@pytest.mark.parametrize(
    "content, second, third",
    [
        ("n01440764 tench, Tinca tinca\nn02012849 crane", ("n01440764", "n02012849"), ("tench, Tinca tinca", "crane")),
        ("n01440764\ttench\nn02012849\tcrane bird", ("n01440764", "n02012849"), ("tench", "crane bird")),
        ("a b\tone\nc d\ttwo", ("a b", "c d"), ("one", "two")),
        ("1 two words\n0 cat", ("cat", "two words"), ("0", "1")),
        ("1: two words\n0: cat", ("cat", "two words"), ("0", "1")),
        ("dog,1\ncat, 0", ("cat", "dog"), ("0", "1")),
        ("1 001.Albatross\n2 002.Auklet", ("1", "2"), ("001.Albatross", "002.Auklet")),
    ],
)
def test_a_line_may_have_two_names(
    content: str, second: tuple[str, ...], third: tuple[str, ...], tmp_path: Path
) -> None:
    names = read_class_names(file(tmp_path, content))
    assert names.columns[1:] == (second, third)
    assert names.in_order


@pytest.mark.parametrize(
    "content, names",
    [
        (["cat", "dog"], ("cat", "dog")),
        ({"1": "dog", "0": "cat"}, ("cat", "dog")),
        ({"dog": 1, "cat": 0}, ("cat", "dog")),
        ({"id2label": {"1": "dog", "0": "cat"}, "label2id": {}}, ("cat", "dog")),
        ({"architecture": "vit", "label_names": ["cat", "dog"]}, ("cat", "dog")),
        ({"1": ["n02012849", "crane"], "0": ["n01440764", "tench"]}, ("n01440764", "n02012849")),
        ([["n01440764", "tench"], ["n02012849", "crane"]], ("n01440764", "n02012849")),
    ],
)
def test_json_has_names_in_a_list_or_by_their_number(content: object, names: tuple[str, ...], tmp_path: Path) -> None:
    found = read_class_names(file(tmp_path, json.dumps(content), "names.json"))
    assert found.columns[0] == names and found.in_order and len(found) == 2


def test_json_without_numbers_states_no_order(tmp_path: Path) -> None:
    found = read_class_names(file(tmp_path, json.dumps({"n1": "tench", "n0": "crane"}), "names.json"))
    assert not found.in_order and found.columns == (("n1", "n0"), ("tench", "crane"))


@pytest.mark.parametrize(
    "content, name, message",
    [
        ("cat\n\ndog", "a.txt", r"Line 2 of .*a.txt is empty.*in the order"),
        ("\n", "a.txt", "a.txt is empty"),
        ("cat\ndog\ncat", "a.txt", "has 'cat' twice"),
        ("c\u00e9".encode("latin-1"), "a.txt", "not UTF-8"),
        ("cat\n".encode("utf-16"), "a.txt", "not UTF-8"),
        ("{", "a.json", "not valid JSON"),
        ("{}", "a.json", "no class names"),
        ("3", "a.json", "no class names"),
    ],
)
def test_a_file_without_a_name_for_each_class_is_refused(
    content: str | bytes, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        read_class_names(file(tmp_path, content, name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file of class names .*absent.txt; expected"):
        read_class_names(tmp_path / "absent.txt")


# Joining


def test_equal_names_come_before_names_that_are_nearly_equal() -> None:
    joined = join(["cat", "Cat"], ["Cat", "CAT", "cat"])
    assert joined.index == (2, 0) and joined.is_complete and not joined.notes


@pytest.mark.parametrize("folder", ["Great White_Shark", "great-white-shark", "GREAT  white shark"])
def test_case_and_separators_may_differ_and_this_is_noted(folder: str) -> None:
    joined = join([folder, "dog"], ["dog", "great white shark"])
    assert joined.index == (1, 0)
    (note,) = joined.notes
    assert "1 of 2" in note and "case" in note and repr(folder) in note


def test_unicode_forms_may_differ_and_this_is_noted() -> None:
    joined = join([DECOMPOSED], ["tea", COMPOSED])
    assert joined.index == (1,) and "Unicode" in joined.notes[0]


def test_an_ambiguous_name_is_no_match() -> None:
    assert "could be 'Cat' (output 0) and 'CAT' (output 1)" in join(["cat"], ["Cat", "CAT"]).ambiguous[0]
    assert "'crane' (output 1) and 'crane' (output 2)" in join(["crane"], ["", "crane", "crane"]).ambiguous[0]
    joined = join(["Cat", "cat"], ["CAT"])
    assert not joined.is_complete and "'Cat' and 'cat' could all be 'CAT'" in joined.ambiguous[0]


def test_a_word_that_one_description_has_stands_for_it() -> None:
    descriptions = ("crane", "great white shark, white shark", "crane, machine", "grey_crane, bird")
    names = ("White_Shark", "crane, machine", "machine", "crane", "tench", "grey crane")
    assert look_up(names, descriptions) == (1, 2, 2, 0, None, 3)


def test_validation_folders_find_their_training_class() -> None:
    assert join_splits(["dog", "cow"], ["cat", "dog"]) == ((1, None), ())
    index, (note,) = join_splits([DECOMPOSED], [COMPOSED, "tea"])
    assert index == (0,) and "Unicode" in note
    with pytest.raises(DataError, match=r"training and validation cannot be matched.*'Cat' and 'cat'.*rename"):
        join_splits(["Cat", "cat"], ["CAT"])


def test_names_that_differ_in_case_or_separators_are_nearly_equal() -> None:
    assert nearly_equal(("Ant", "bee", "ant", "Sea_Lion", "sea lion")) == ("Ant", "ant")
    assert nearly_equal(("ant", "bee", COMPOSED, DECOMPOSED)) == ()
