"""The folder of a cell: images, lock and working times."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from benchmarks.cell import Cell, commit, identity, load_images, lock_folder, open_cell_with, seconds_in
from builders.cells import cell_config
from vitrim.errors import SettingError
from vitrim.runs.folder import RunFolder


def test_with_tuning_images_official_validation_images_are_not_used(tmp_path):
    for split, low, high in (("train", 0, 100), ("val", 150, 250)):
        for name in "ab":
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for number in range(10):
                pixels = np.random.default_rng(number).integers(low, high, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{number}.png")
    cell = cell_config(data={"source": "elsewhere"}, tuning_share=0.2)
    data = load_images(cell, tmp_path / "set")
    assert data.name == "elsewhere"
    assert (len(data.train), len(data.validation)) == (16, 4)
    assert data.validation.pixels is not None and data.validation.pixels.max() < 100
    official = load_images(cell_config(data={"source": "elsewhere"}), tmp_path / "set").validation
    assert official.pixels is not None and official.pixels.min() >= 150


def test_a_folder_is_locked_by_one_run_at_a_time(tmp_path):
    entered: list[str] = []

    def second() -> None:
        with lock_folder(tmp_path / "arm"):
            entered.append("second")

    with lock_folder(tmp_path / "arm"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.2)
        entered.append("first")
    other.join()
    assert entered == ["first", "second"]


def test_seconds_are_summed_over_runs_including_a_killed_one(tmp_path):
    folder = tmp_path / "arm"
    rows = [{"began": 100.0, "last": 0.0}, {"began": 500.0, "last": 130.0}, {"ended": 507.0, "last": 506.0}]
    (tmp_path / "arm.times.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert seconds_in(folder) == 30.0 + 7.0


def test_a_copy_of_the_code_without_git_tells_its_commit(tmp_path, monkeypatch):
    file = tmp_path / "COMMIT"
    monkeypatch.setattr("benchmarks.cell.COMMIT_FILE", file)
    assert commit() != "abc1234"
    file.write_text("abc1234\n")
    assert commit() == "abc1234"


def test_one_dense_model_serves_all_seeds_if_the_cell_says_so(tmp_path):
    folders, data = {}, load_images(cell_config(), None)
    for dense_seed in (None, 1):
        cell = Cell(config=cell_config(dense_seed=dense_seed), data=data, out=tmp_path, command="", commit="")
        folders[dense_seed] = [cell.dense_folder(seed) for seed in (0, 1, 2)]
    assert folders[1] == [tmp_path / "seed-1" / "dense"] * 3
    assert len(set(folders[None])) == 3


def test_the_dense_model_of_another_cell_is_found_from_the_folder_of_the_cell(tmp_path):
    config, data = cell_config(dense_seed=0, dense_from="../other/seed-0/dense"), load_images(cell_config(), None)
    cell = Cell(config=config, data=data, out=tmp_path / "out", command="", commit="")
    assert {cell.dense_folder(seed) for seed in (0, 1)} == {tmp_path / "other" / "seed-0" / "dense"}
    with pytest.raises(SettingError, match=r"dense_from names .*expected the folder of a model"):
        open_cell_with(data, config, tmp_path / "out", "")


def test_a_cell_of_an_earlier_version_continues(tmp_path):
    config, data = cell_config(), load_images(cell_config(), None)
    earlier = identity(config, data, tmp_path, [])
    for key in ("dense_seed", "dense_from", "teacher"):
        del earlier["config"][key]
    RunFolder(tmp_path / "out", earlier)
    assert open_cell_with(data, config, tmp_path / "out", "").teachers == ()
