"""Laws of unreadable files: each is named once, and its size is the one before it was damaged."""

import re
from pathlib import Path

import pytest

from builders.images import file_set
from builders.logs import logged
from vitrim.data.files.unreadable import Unreadable, not_counted_note, replaced_note, without_file_names


def test_a_file_is_logged_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unreadable, calls = Unreadable(), []
    unreadable.on_new = lambda: calls.append(1)
    for _ in range(2):
        unreadable.add(str(tmp_path / "a.png"), "truncated", "it is not used")
    assert calls == [1]
    assert logged(capsys) == f"{tmp_path / 'a.png'} cannot be decoded (truncated); it is not used\n"


def test_the_size_at_the_start_is_kept_when_a_file_is_damaged_and_when_it_is_repaired(tmp_path: Path) -> None:
    images = file_set(tmp_path, 4)
    sizes = list(images.unreadable.file_sizes(images.files))
    Path(images.files[1]).write_bytes(b"short")
    images.unreadable.add(images.files[1], "", "")
    assert images.unreadable.sizes == {images.files[1]: sizes[1]}
    assert list(images.unreadable.file_sizes(images.files)) == sizes
    assert list(Unreadable.for_run({}, [images.unreadable]).file_sizes(images.files)) == sizes
    assert Unreadable().file_sizes(images.files)[1] == 5


def test_a_note_counts_all_files_and_names_three() -> None:
    note = replaced_note([f"/x/train/cat/{i}.png" for i in range(5)])
    assert note.startswith("5 training images could not be decoded")
    assert note.endswith(", ".join([*(str(Path("cat", f"{i}.png")) for i in range(3)), "..."]))


def test_notes_on_files_are_published_without_the_names() -> None:
    files = ["/data/--- owl/patient: broken.jpg", "/data/b/jane.png"]
    for note in (replaced_note(files), f"width: {not_counted_note(files, 9)}"):
        assert "jane" in note and "patient" in note
        assert note.startswith(without_file_names(note)) and "2 " in without_file_names(note)
        assert not re.search("jane|patient|owl", without_file_names(note))
    assert without_file_names("class folders: a, b") == "class folders: a, b"
