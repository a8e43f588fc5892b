"""The option `--int8` may have a value, and is a flag without one. Each kind of file has a name of its own."""

from pathlib import Path

import pytest

from vitrim.cli import run
from vitrim.cli.export import FileOptions, file_name, with_kind


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("export MODEL --int8", "export MODEL --int8=dynamic"),
        ("export --int8 MODEL --data digits", "export --int8=dynamic MODEL --data digits"),
        ("export MODEL --int8 --data digits", "export MODEL --int8=dynamic --data digits"),
        ("export MODEL --int8 static", "export MODEL --int8=static"),
        ("export --int8 static MODEL", "export --int8=static MODEL"),
        ("export MODEL --int8=static", "export MODEL --int8=static"),
        ("export MODEL", "export MODEL"),
    ],
)
def test_int8_without_a_value_is_dynamic_and_does_not_take_the_next_word(words: str, expected: str) -> None:
    assert with_kind(words.split()) == expected.split()


@pytest.mark.parametrize(
    "words", ["runs/x --int8 foo", "runs/x --int8 statc", "--int8 statc runs/x", "--data digits --int8 dynamc runs/x"]
)
def test_the_message_on_a_wrong_kind_of_int8_names_both_kinds(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", *words.split()]) == 2
    assert "expected true or false, dynamic or static" in capsys.readouterr().err


def test_a_model_whose_name_resembles_a_kind_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "statics").mkdir()
    assert with_kind(["export", "--int8", "statics"]) == ["export", "--int8=dynamic", "statics"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (FileOptions(), "model.onnx"),
        (FileOptions(int8=True), "model.int8.onnx"),
        (FileOptions(int8="dynamic"), "model.int8.onnx"),
        (FileOptions(int8="static"), "model.int8-static.onnx"),
        (FileOptions(with_preprocessing=True, int8="static"), "model.pixels.int8-static.onnx"),
        (FileOptions(half=True), "model.half.onnx"),
    ],
)
def test_no_file_replaces_one_of_another_kind(options: FileOptions, expected: str) -> None:
    assert file_name("onnx", options) == expected
