"""Finding damage: of every file of a run folder and a model folder, and without changing anything."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from builders.damage import edit_a_digit, flip_a_bit
from builders.runs import FinishedRun, digits_model, files_in
from vitrim.errors import CheckpointMismatch
from vitrim.importance.scores import Scores
from vitrim.recipe import load_recipe
from vitrim.runs.damage import check_file, check_folder, check_model_folder
from vitrim.saving.checkpoint import save


def test_every_damaged_missing_and_unlisted_file_of_a_run_is_found(finished_run: Any, tmp_path: Path) -> None:
    run: FinishedRun = finished_run("depth")
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    assert check_folder(folder) == []
    names = [name for name in files_in(folder) if not name.endswith("digests.json")]
    assert len(names) > 20
    (folder / "notes.txt").write_text("mine")
    expected = {"notes.txt": "unlisted"}
    for number, name in enumerate(names):
        expected[name] = "missing" if number % 3 == 0 else "changed"
        flip_a_bit(folder / name) if number % 3 else (folder / name).unlink()
    before = files_in(folder)
    found = {damage.path.relative_to(folder).as_posix(): damage.kind for damage in check_folder(folder)}
    assert found == expected and files_in(folder) == before


def test_a_damaged_manifest_is_found(tmp_path: Path) -> None:
    folder = save(digits_model(depth=1), tmp_path / "model")
    assert check_folder(folder) == []
    edit_a_digit(folder / "digests.json")
    assert ("digests.json", "changed") in [(damage.path.name, damage.kind) for damage in check_folder(folder)]


def test_a_model_folder_is_checked_wherever_it_is_copied_to(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(save(digits_model(depth=1), tmp_path / "model"), tmp_path / "copy"))
    check_model_folder(folder)
    flip_a_bit(folder / "model.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"copy/model\.safetensors is damaged.*Get the folder again.*delete"):
        check_model_folder(folder)
    (folder / "digests.json").unlink()
    check_model_folder(folder)


def test_files_of_a_run_that_are_used_elsewhere_are_checked(finished_run: Any, tmp_path: Path) -> None:
    run: FinishedRun = finished_run("depth")
    folder = Path(shutil.copytree(run.folder, tmp_path / "run"))
    for name in ("scores.safetensors", "recipe.toml", "stages/width-plan.json", "model/model.safetensors"):
        check_file(folder / name)
        flip_a_bit(folder / name)
        with pytest.raises(CheckpointMismatch, match=f"{Path(name).name} is damaged"):
            check_file(folder / name)
    with pytest.raises(CheckpointMismatch, match=r"scores\.safetensors is damaged"):
        Scores.load(folder / "scores.safetensors")
    with pytest.raises(CheckpointMismatch, match=r"recipe\.toml is damaged"):
        load_recipe(str(folder / "recipe.toml"))
    (tmp_path / "elsewhere.toml").write_text("seed = 1\n")
    check_file(tmp_path / "elsewhere.toml")
