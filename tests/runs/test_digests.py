"""Laws of digests: damage is noticed, and a process that is killed at any time leaves nothing that looks damaged."""

import json
import os
from pathlib import Path

import pytest

from builders.damage import DAMAGES, flip_a_bit
from vitrim.errors import CheckpointMismatch
from vitrim.runs.digests import (
    MAX_VERSIONS,
    Digests,
    State,
    Version,
    digest_of,
    note_model_folder,
    read_kept_text,
    sha256_of,
    write_text_noted,
    writing_noted,
)
from vitrim.runs.files import DIGESTS


class Killed(BaseException):
    """Ends the process of a test where a signal would."""


@pytest.fixture
def digests(tmp_path: Path) -> Digests:
    write_text_noted(tmp_path / "file", "first content")
    return Digests(tmp_path)


def test_a_file_is_good_until_it_is_changed(digests: Digests) -> None:
    assert digests.compare("file").state is State.GOOD
    flip_a_bit(digests.folder / "file")
    compared = digests.compare("file")
    assert compared.state is State.DAMAGED and compared.changed == (digests.folder / "file",)
    (digests.folder / "file").unlink()
    assert digests.compare("file").state is State.MISSING
    (digests.folder / "other").touch()
    assert digests.compare("other").state is State.UNKNOWN


def test_a_kill_before_a_file_is_moved_leaves_its_former_content_good(
    digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "file":
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        for number in range(MAX_VERSIONS - 2):  # again and again
            with pytest.raises(Killed):
                write_text_noted(digests.folder / "file", f"content {number}")
            assert digests.compare("file").state is State.GOOD
    assert (digests.folder / "file").read_text() == "first content"
    write_text_noted(digests.folder / "file", "last content")
    assert digests.compare("file").state is State.GOOD


def test_what_a_content_was_made_from_belongs_to_the_content_that_is_there(digests: Digests) -> None:
    with pytest.raises(Killed), writing_noted(digests.folder / "file", made_from={"plan": "new"}) as working:
        working.write_text("second content")
        digests.note("file", Version(sha256=sha256_of(working), made_from={"plan": "new"}))
        raise Killed
    version = digests.compare("file").version
    assert version is not None and version.made_from is None
    with writing_noted(digests.folder / "file", made_from={"plan": "new"}) as working:
        working.write_text("second content")
    version = digests.compare("file").version
    assert version is not None and version.made_from == {"plan": "new"}


def test_only_the_last_two_contents_are_kept_once_a_file_is_in_place(digests: Digests) -> None:
    for number in range(20):
        write_text_noted(digests.folder / "file", f"content {number}")
    assert len(digests.versions("file")) == 2


def test_a_folder_is_one_content_of_all_its_files(tmp_path: Path) -> None:
    digests = Digests(tmp_path)
    for content in ("old", "new"):
        with writing_noted(tmp_path / "model") as working:
            working.mkdir()
            for name in ("config.json", "weights"):
                (working / name).write_text(f"{content} {name}")
        (tmp_path / "model" / "export.onnx").write_text("made by somebody")
        assert digests.compare("model").state is State.GOOD
    assert (tmp_path / "model" / "export.onnx").is_file()
    (tmp_path / "model" / "weights").write_text("old weights")  # with the new config.json: a mixture of two contents
    assert digests.compare("model").changed == (tmp_path / "model" / "weights",)
    (tmp_path / "model" / "config.json").write_text("old config.json")
    assert digests.compare("model").state is State.GOOD


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "deleted"])
def test_a_damaged_manifest_is_named_with_what_to_do(damage: str, digests: Digests) -> None:
    DAMAGES[damage](digests.path)
    assert not digests.is_readable()
    for call in (lambda: digests.compare("file"), lambda: write_text_noted(digests.folder / "file", "more")):
        with pytest.raises(CheckpointMismatch, match=rf"{DIGESTS} is damaged.*Delete it and repeat"):
            call()


@pytest.mark.parametrize("name", ["/etc/passwd", "../../secret"])
def test_a_manifest_names_no_file_outside_its_folder(name: str, digests: Digests) -> None:
    content = json.loads(digests.path.read_text())
    content["files"] = {name: content["files"]["file"]}
    digests.path.write_text(json.dumps(content))
    with pytest.raises(CheckpointMismatch, match="is damaged"):
        digests.names()


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name not in ("folder", "pipe")])
def test_a_file_whose_text_is_kept_is_written_again(damage: str, tmp_path: Path) -> None:
    write_text_noted(tmp_path / "note.json", '{"epoch": 10}', keep_text=True)
    DAMAGES[damage](tmp_path / "note.json")
    assert read_kept_text(tmp_path / "note.json") == (tmp_path / "note.json").read_text() == '{"epoch": 10}'


@pytest.mark.parametrize("damage", ["folder", "pipe"])
def test_what_is_no_file_is_neither_read_nor_deleted(damage: str, tmp_path: Path) -> None:
    write_text_noted(tmp_path / "note.json", '{"epoch": 10}', keep_text=True)
    DAMAGES[damage](tmp_path / "note.json")
    with pytest.raises(CheckpointMismatch, match=r"note\.json is no regular file\. Delete it and repeat"):
        read_kept_text(tmp_path / "note.json")
    assert (tmp_path / "note.json").exists()


def test_a_folder_without_a_manifest_gets_none_from_a_library(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    note_model_folder(tmp_path)
    assert not (tmp_path / DIGESTS).exists()


def test_hidden_files_and_manifests_are_no_content(tmp_path: Path) -> None:
    for name in ("config.json", DIGESTS, ".partial"):
        (tmp_path / name).write_text("text")
    assert digest_of(tmp_path) == {"config.json": sha256_of(tmp_path / "config.json")}
