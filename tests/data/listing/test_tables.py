"""Laws of tables: headers, separators and columns are recognised, and a column that is not certain is refused."""

from pathlib import Path

import pytest

from builders.images import listed, table
from vitrim.data.loading import load_data
from vitrim.errors import DataError

FILES = [f"{i}.png" for i in range(6)]
CLASS_OF = {f"{i}.png": ("cat", "dog")[i % 2] for i in range(6)}


def rows(separator: str = ",", pattern: str = "{}.png") -> list[str]:
    return [f"{pattern.format(i)}{separator}{('cat', 'dog')[i % 2]}" for i in range(6)]


def both(place: Path, **settings: str) -> dict[str, str]:
    """The class of every image, in training and validation."""
    loaded = load_data(place, memory_bytes=0, **settings)
    return {**listed(loaded), **listed(loaded, "validation")}


TABLES = {
    "labels.csv": ["file_name,label", *rows()],
    "classes.csv": ["filename;class", *rows(";")],
    "no_header.csv": rows(),
    "labels.tsv": ["image\tspecies", *rows("\t")],
    "breeds.csv": ["id,breed", *rows(pattern="{}")],
    "quoted.csv": ['"file name","label"', *[f'"{i}.png","{CLASS_OF[name]}"' for i, name in enumerate(FILES)]],
    "train.txt": rows(" "),
    "labels.jsonl": [f'{{"file_name": "{name}", "label": "{CLASS_OF[name]}"}}' for name in FILES],
    "names.csv": ["file,label,label_name", *[f"{i}.png,{i % 2},{CLASS_OF[f'{i}.png']}" for i in range(6)]],
    "one_hot.csv": ["image_id,cat,dog", *[f"{i},{1 - i % 2},{i % 2}" for i in range(6)]],
    "unknown.csv": ["photo,kind", *rows()],
    "index.csv": [",file,kind", *[f"{i},{row}" for i, row in enumerate(rows())]],
    "more.csv": ["width,file,label,height", *[f"{i},{i}.png,{CLASS_OF[f'{i}.png']},7" for i in range(6)]],
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_every_form_give_the_same_labels(tmp_path: Path, name: str) -> None:
    file = table(tmp_path / name, *TABLES[name], images=FILES)
    assert both(file) == CLASS_OF
    assert both(tmp_path) == CLASS_OF  # the only table in the folder of the images


def test_a_table_in_utf_16_and_one_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-8-sig"):
        file = table(tmp_path / encoding / "labels.csv", images=FILES)
        file.write_text("\r\n".join(["file,label", *rows()]), encoding=encoding)
        assert both(file) == CLASS_OF


def test_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(22)]
    file = table(tmp_path / "labels.csv", "file,label", *[f"{i}.png,{i % 11}" for i in range(22)], images=names)
    loaded = load_data(file, memory_bytes=0)
    assert loaded.classes == tuple(map(str, range(11)))  # 10 is not between 1 and 2
    assert [int(Path(name).stem) % 11 for name in loaded.train.files] == loaded.train.labels.tolist()


REFUSED = {
    "two label columns": (
        ["file,diagnosis,target", "0.png,a,0", "1.png,a,1", "2.png,b,1"],
        "labels: diagnosis, target",
    ),
    "no label column": (["file", "0.png", "1.png"], "has no column of labels"),
    "unknown columns": (["file,width,height", "0.png,3,4", "1.png,3,5"], "labels: width, height.*--label-column width"),
    "no images": (["file,label", "x.png,a", "y.png,b"], "No column of .* names images that exist below"),
    "pixels": (["label,pixel0,pixel1", "a,20,30", "b,70,90"], "Pixel values in a table are not read"),
    "two labels": (["file,label", "0.png,a", "0.png,b", "1.png,b"], "gives 0.png two labels, a and b"),
    "several classes": (["file,label", "0.png,a|b", "1.png,b"], r"gives one image several classes, such as a\|b"),
    "uneven": (["file,label", "0.png,a", "1.png,b,c"], "Row 3 of .* has 3 cells, but row 1 has 2"),
    "empty": ([""], "is empty; expected a row for each image"),
    "one class": (["file,label", "0.png,a", "1.png,a"], "has only one class, 'a'"),
    "unknown split": (["file,label,split", "0.png,a,x", "1.png,b,y"], "Column split of .* has the values x, y"),
    "no labels": (["file,label", "0.png,", "1.png,"], "has no label in any of its 2 rows"),
}


@pytest.mark.parametrize(("lines", "message"), REFUSED.values(), ids=REFUSED)
def test_a_table_that_is_not_certain_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(table(tmp_path / "labels.csv", *lines, images=FILES))


def test_binary_files_and_broken_json_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.csv", b"\xff\x00\x81", "is not text in UTF-8"),
        ("b.csv", b"a,\0,b", "is not a text file"),
        ("c.jsonl", b'{"a": 1}\nno json', "Line 2 of .* is not JSON"),
        ("d.jsonl", b"[1]", "Line 1 of .* expected an object"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / name)


def test_a_column_can_be_named(tmp_path: Path) -> None:
    lines = ["file,diagnosis,target", *[f"{i}.png,{'abc'[i % 3]},{CLASS_OF[f'{i}.png']}" for i in range(6)]]
    file = table(tmp_path / "labels.csv", *lines, images=FILES)
    assert both(file, label_column="target") == both(tmp_path, label_column="target") == CLASS_OF
    assert both(file, label_column="diagnosis") == {f"{i}.png": "abc"[i % 3] for i in range(6)}
    with pytest.raises(DataError, match=r"label_column is 'goal', but .* has the columns file, diagnosis, target"):
        load_data(file, label_column="goal")
    with pytest.raises(DataError, match="image_column is 'goal', but"):
        load_data(file, image_column="goal", label_column="target")
