"""Text files from outside: read up to a size, and never a pipe, a device or an endless file."""

import os
from pathlib import Path

import pytest

from vitrim.data.classes.class_names import read_class_names
from vitrim.data.listing.tables import NO_COLUMNS, read_table
from vitrim.errors import DataError, UserError
from vitrim.recipe import load_recipe
from vitrim.runs.files import read_json
from vitrim.runs.text_files import check_name, check_regular, encoded, parse_json, read_bytes, read_text, valid_text

READERS = {
    "recipe.toml": load_recipe,
    "config.json": read_json,
    "names.txt": read_class_names,
    "table.csv": lambda path: read_table(path, NO_COLUMNS),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_does_not_block_and_a_large_file_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(UserError):
        READERS[name](path)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10 << 30)  # without content on the disk
    with pytest.raises(UserError, match=r"has 10,240\.0 MB; expected at most"):
        READERS[name](path)


@pytest.mark.parametrize("content", [b"\xff", b"\xff\xfea\0", b'{"a": "\xed"}'])
@pytest.mark.parametrize("name", ["recipe.toml", "config.json", "names.txt"])
def test_what_is_not_utf8_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} is not UTF-8"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"a": ' * 50_000, "{", "", "nul"])
def test_json_that_cannot_be_read_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(DataError, match="a file is not valid JSON"):
        parse_json(text, "a file", DataError)


def test_an_empty_file_is_not_opened(tmp_path: Path) -> None:
    """Files of `/proc` have no size, and some of them block."""
    (tmp_path / "empty").touch(mode=0o000)
    assert read_bytes(tmp_path / "empty", 10, DataError) == b""
    with pytest.raises(OSError, match="is empty"):
        check_regular(tmp_path / "empty")


def test_lines_and_a_byte_order_mark_are_read_as_usual(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert read_text(tmp_path / "text", 100, DataError, mark=True) == "a\nb\n"


@pytest.mark.parametrize("name", ["a", "\u00e9", "\u732b", "a b"])
def test_names_in_unicode_stay_as_they_are(name: str) -> None:
    check_name(name, DataError)
    assert valid_text(name) == name
    assert encoded(name) == name.encode()


@pytest.mark.parametrize("name", ["\udcff", "a\ud800b"])
def test_other_names_can_be_hashed_and_written_but_not_opened_by_safetensors(name: str) -> None:
    assert encoded(name)
    assert valid_text(name).encode("utf-8").decode("utf-8").isprintable()
    with pytest.raises(DataError, match="is not UTF-8"):
        check_name(name, DataError)
