"""The folder of a repository: complete, without paths and images, and only of finished, undamaged runs."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrim
from builders.damage import flip_a_bit
from builders.reports import details_of
from builders.runs import digits, digits_model, finish_run, short_training
from vitrim.errors import CheckpointMismatch, FolderInUse, SettingError
from vitrim.pipeline import fit
from vitrim.recipe import TrainRecipe
from vitrim.runs.damage import check_folder
from vitrim.runs.digests import write_text_noted
from vitrim.runs.outputs import output_folder
from vitrim.sharing.folder import Sharing, remove_folder, write_folder

SHARING = Sharing(repository="me/small")
COMMAND = "vitrim compress /home/alice/secret/dense --data /home/alice/secret/photos -o /home/alice/secret/run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrim.reports.report.command_line", lambda: COMMAND)
        yield finish_run("width", tmp_path_factory.mktemp("folder") / "run").folder


def test_the_folder_is_complete_and_can_be_checked(run: Path, tmp_path: Path) -> None:
    vitrim.export(vitrim.load(run), run / "model" / "model.pt2", format="torch-export")
    folder = write_folder(run, tmp_path / "hub", SHARING)
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "modeling.py", "plan.json", "recipe.toml"}
    assert names >= {"report.html", "report.md", "report.json", "model.pt2", "digests.json"}
    assert check_folder(folder) == []
    without = write_folder(run, folder, Sharing(repository="me/small", exports=False))  # it is replaced
    assert not (without / "model.pt2").exists() and "model.pt2" not in (without / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


def test_no_path_and_no_image_of_the_machine_is_in_it(run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run, tmp_path / "copy"))
    write_text_noted(run / "details.json", json.dumps(details_of()))
    report = json.loads((run / "report.json").read_text())
    note = "skipped 2 files that are not readable images: --- owl/patient-broken.jpg, cat/patient.jpg"
    write_text_noted(run / "report.json", json.dumps({**report, "notes": [note]}))
    assert "data:image/" in (run / "details.json").read_text()
    folder = write_folder(run, tmp_path / "hub", SHARING)
    for file in folder.iterdir():
        content = file.read_bytes()
        for private in (
            b"alice",
            b"secret",
            b"patient",
            b"owl",
            str(tmp_path).encode(),
            str(Path.home()).encode() + b"/",
        ):
            assert private not in content, (file, private)
    assert "vitrim compress dense --data photos -o run" in (folder / "README.md").read_text()
    assert "skipped 2 files that are not readable images\n" in (folder / "report.md").read_text()
    images = [image for image in details_of()["changed"]["images"] if image["file"] and image["thumbnail"]]
    page = (folder / "report.html").read_text()
    assert images and not any(image["thumbnail"] in page or image["file"] in page for image in images)


def test_a_run_of_train_is_shared_too(tmp_path: Path) -> None:
    fit(digits_model(), digits(), TrainRecipe(training=short_training()), tmp_path / "run")
    folder = write_folder(tmp_path / "run", tmp_path / "hub", SHARING)
    assert "pretrained=True" in (folder / "README.md").read_text()
    assert vitrim.load(folder) is not None


def test_unfinished_and_damaged_runs_are_refused(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    flip_a_bit(copy / "model" / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"damaged, so it is not shared: .*model.safetensors \(changed\)"):
        write_folder(copy, tmp_path / "hub", SHARING)
    (copy / "report.json").unlink()
    with pytest.raises(SettingError, match="not finished"):
        write_folder(copy, tmp_path / "hub", SHARING)
    assert not (tmp_path / "hub").exists()


def test_other_folders_are_not_replaced(run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(FolderInUse, match="did not write it"):
        write_folder(run, tmp_path, SHARING)
    with pytest.raises(FolderInUse, match="folder of a run"):
        write_folder(run, run, SHARING)
    assert (tmp_path / "thesis.tex").read_text() == "precious"
    assert output_folder(run) == run


@pytest.mark.parametrize("name", [".git/config", "notes.txt", "README.md", "empty/", "link"])
def test_a_folder_in_which_something_was_added_or_changed_is_not_replaced(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(run, tmp_path / "hub", SHARING)
    other = folder / name
    if name == "link":
        other.symlink_to(run)
    elif name == "empty/":
        other.mkdir()
    else:
        other.parent.mkdir(exist_ok=True)
        other.write_text("precious")
    with pytest.raises(FolderInUse, match=f"it has {name.split('/')[0]}"):
        write_folder(run, folder, SHARING)
    remove_folder(folder)
    assert other.exists() and (folder / "model.safetensors").is_file() and "is kept" in capsys.readouterr().err


def test_a_damaged_manifest_makes_no_folder_ours(run: Path, tmp_path: Path) -> None:
    folder = write_folder(run, tmp_path / "hub", SHARING)
    (folder / "digests.json").write_text("{}")
    with pytest.raises(FolderInUse, match="did not write it"):
        write_folder(run, folder, SHARING)


def test_a_license_has_the_form_of_the_hub(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="expected an identifier of the Hub"):
        write_folder(run, tmp_path / "hub", Sharing(repository="me/small", license="my own: see below"))
    folder = write_folder(run, tmp_path / "hub", Sharing(repository="me/small", license="MIT"))
    assert "\nlicense: mit\n" in (folder / "README.md").read_text()
