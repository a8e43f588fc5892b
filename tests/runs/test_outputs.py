"""What a command may write to: what it did not write itself is never replaced, and the user learns it at once."""

import os
from pathlib import Path

import pytest

from builders.models import build, random_plan
from vitrim.errors import SettingError
from vitrim.models import describe
from vitrim.runs.files import RUN
from vitrim.runs.outputs import PLAN, output_file, output_folder
from vitrim.saving.checkpoint import save


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model, a run, a plan, links and special files."""
    save(build(), tmp_path / "model")
    (tmp_path / "plan.json").write_text(random_plan(describe(build())).to_json())
    (tmp_path / "notes.json").write_text('{"format": 1}')
    (tmp_path / "empty.json").touch()
    (tmp_path / "run" / "stages").mkdir(parents=True)
    (tmp_path / "run" / RUN).write_text("{}")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("notes.json", "plan.json", "new.json", "folder", "loop"):
        (tmp_path / f"link-{name}").symlink_to(tmp_path / name if name != "loop" else tmp_path / "link-loop")
    os.link(tmp_path / "plan.json", tmp_path / "hard.json")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "notes.json": "exists and is no plan that vitrim wrote",
        "empty.json": "exists and is no plan that vitrim wrote",
        "model/config.json": "exists and is no plan",
        "model/model.safetensors": "exists and is no plan",
        "link-notes.json": "exists and is no plan",
        "folder": "is a folder; expected the name of a JSON file for the plan after -o",
        "link-folder": "is a folder",
        "pipe": "is a named pipe",
        "/dev/null": "is a device",
        "link-loop": "Too many levels of symbolic links",
        "notes.json/x.json": "Not a directory",
        "run/plan.json": "is the place of a result of a run",
        "run/stages/width-plan.json": "is the place of a result of a run",
        "n" * 300: "File name too long",
        "/proc/x.json": "cannot be written",
    }.items(),
)
def test_what_no_command_of_this_kind_wrote_is_not_replaced(name: str, message: str, place: Path) -> None:
    with pytest.raises(SettingError, match=message):
        output_file(place / name, PLAN)


@pytest.mark.parametrize("name", ["plan.json", "model/../plan.json", "link-plan.json", "hard.json"])
def test_an_input_is_not_replaced_whatever_its_name(name: str, place: Path) -> None:
    with pytest.raises(SettingError, match="is read by this command"):
        output_file(place / name, PLAN, ["a model name", place / "plan.json"])


def test_a_plan_is_replaced_and_links_are_followed(place: Path) -> None:
    for name, expected in {
        "plan.json": "plan.json",
        "link-plan.json": "plan.json",
        "link-new.json": "new.json",
        "other.json": "other.json",
        "new/folder/plan.json": "new/folder/plan.json",
        "link-folder/plan.json": "folder/plan.json",
    }.items():
        assert output_file(place / name, PLAN, ["vit", place / "notes.json"]) == place / expected
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "notes.json": "is a file; expected a folder for the run",
        "pipe": "is a named pipe; expected a folder",
        "/dev/null": "is a device",
        "link-notes.json": "is a file",
        "link-loop": "Too many levels of symbolic links",
        "folder": "is read by this command",
        "link-folder": "is read by this command",
        "folder/class/run": "is in .*folder, from which this command reads",
        "model": "is not empty and has no vitrim run: it is the folder of a model",
        "model/new": "is in the folder of a model",
        "notes.json/run": "Not a directory",
        "n" * 300: "File name too long",
        "/proc/run": "cannot be written",
    }.items(),
)
def test_a_run_is_not_written_into_an_input_or_what_is_no_folder(name: str, message: str, place: Path) -> None:
    with pytest.raises(SettingError, match=message):
        output_folder(place / name, [place / "folder"])


def test_the_current_folder_may_have_images_and_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert output_folder(Path("runs/new"), [Path(".")]) == Path("runs/new")


def test_a_run_is_continued_in_its_folder_and_its_parents_may_be_missing(place: Path) -> None:
    for name in ("run", "new/run", "link-new.json"):
        assert output_folder(place / name, [place / "run", place / "folder"]) == place / name
    assert not (place / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(place: Path) -> None:
    (place / "folder").chmod(0o555)
    with pytest.raises(SettingError, match="Permission denied"):
        output_file(place / "folder" / "plan.json", PLAN)
    with pytest.raises(SettingError, match="Permission denied"):
        output_folder(place / "folder" / "run")
