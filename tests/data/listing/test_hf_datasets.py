"""Laws of Hugging Face data sets: every form gives the same images, labels and order of classes; no code runs."""

import builtins
import io
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders.images import folders
from vitrim.data.images import ImageData
from vitrim.data.listing.sources import Places, find
from vitrim.data.loading import load_data
from vitrim.errors import DataError

NAMES = ("dog", "cat")  # not in the order of the alphabet


@pytest.fixture(scope="module")
def hf() -> Any:
    """The library, without its progress bars."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    return datasets


def pixels(number: int) -> np.ndarray:
    return np.full((4, 4, 3), number, dtype=np.uint8)


def encoded(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def dataset(hf: Any, numbers: range, label: int | None = None, **others: Any) -> Any:
    """Images of one colour, their number; odd numbers are cats, unless all have one label."""
    labels = [i % 2 if label is None else label for i in numbers]
    columns: dict[str, list] = {"image": [{"bytes": encoded(i), "path": None} for i in numbers], "label": labels}
    features = {"image": hf.Image(), "label": hf.ClassLabel(names=list(NAMES))}
    for name, feature in others.items():
        columns[name], features[name] = [i % 2 for i in numbers], feature
    return hf.Dataset.from_dict(columns, features=hf.Features(features))


def check(loaded: ImageData, num_train: int, validation: range) -> None:
    """Each image has the label that its colour says."""
    assert loaded.classes == NAMES and len(loaded.train) == num_train
    assert sorted(loaded.validation.pixels[:, 0, 0, 0].tolist()) == list(validation)
    for images in (loaded.train, loaded.validation):
        assert torch.equal(images.pixels[:, 0, 0, 0].long() % 2, images.labels)


def test_every_form_gives_the_same_images_labels_and_order_of_classes(hf: Any, tmp_path: Path) -> None:
    splits = {"train": dataset(hf, range(6)), "test": dataset(hf, range(6, 10))}
    hf.DatasetDict(splits).save_to_disk(tmp_path / "disk")
    (tmp_path / "data").mkdir()
    dataset(hf, range(4)).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    dataset(hf, range(4, 6)).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    splits["test"].to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    for name in (f"hf:{tmp_path / 'disk'}", str(tmp_path / "disk"), str(tmp_path / "data")):
        for memory_bytes in (0, 1 << 20):
            loaded = load_data(name, cache_dir=tmp_path / "cache", memory_bytes=memory_bytes)
            assert loaded.notes == ("columns image, label",) and loaded.train.in_memory == bool(memory_bytes)
        check(loaded, 6, range(6, 10))
    cached = sorted(tmp_path.rglob("cache/**/*.image"))
    assert len(cached) == 20  # ten of each data set, and nothing else of them is left


def test_a_data_set_without_validation_images_is_divided(hf: Any, tmp_path: Path) -> None:
    dataset(hf, range(20)).save_to_disk(tmp_path / "one")
    loaded = load_data(f"hf:{tmp_path / 'one'}", cache_dir=tmp_path / "cache")
    assert len(loaded.train) == 18 and loaded.notes[-1].startswith("no validation split found: 10 %")
    unlabelled = dataset(hf, range(4), label=-1)
    hf.DatasetDict(train=dataset(hf, range(6)), test=unlabelled).save_to_disk(tmp_path / "two")
    assert "split test is not used, because it has no labels" in load_data(tmp_path / "two", cache_dir=tmp_path).notes


def test_classes_without_images_keep_their_place_and_are_named(hf: Any, tmp_path: Path) -> None:
    data = dataset(hf, range(8)).cast_column("label", hf.ClassLabel(names=["dog", "cat", "emu"]))
    data.save_to_disk(tmp_path)
    loaded = load_data(tmp_path, cache_dir=tmp_path / "cache")
    assert loaded.classes == ("dog", "cat", "emu")
    assert "1 class without training images, such as emu" in loaded.notes


def test_parquet_files_of_other_programs_are_read(hf: Any, tmp_path: Path) -> None:
    rows = {"jpg": [encoded(i) for i in range(8)], "label": [("dog", "cat")[i % 2] for i in range(8)]}
    features = hf.Features({"jpg": hf.Value("binary"), "label": hf.Value("string")})
    hf.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    loaded = load_data(tmp_path / "x.parquet", cache_dir=tmp_path / "cache")
    assert loaded.classes == ("cat", "dog")
    assert torch.equal(1 - loaded.train.pixels[:, 0, 0, 0].long() % 2, loaded.train.labels)


def test_columns_that_are_not_certain_are_refused_and_can_be_named(hf: Any, tmp_path: Path) -> None:
    coarse = hf.ClassLabel(names=["even", "odd"])
    dataset(hf, range(8), coarse=coarse).save_to_disk(tmp_path)
    with pytest.raises(DataError, match=r"several columns that may be labels, label, coarse.*--label-column"):
        load_data(tmp_path, cache_dir=tmp_path / "cache")
    assert load_data(tmp_path, cache_dir=tmp_path / "cache", label_column="coarse").classes == ("even", "odd")
    with pytest.raises(DataError, match=r"label_column is 'fine', but .* has the columns image, label, coarse"):
        load_data(tmp_path, cache_dir=tmp_path / "cache", label_column="fine")


def test_a_class_of_one_split_only_is_refused_with_the_names_of_the_splits(hf: Any, tmp_path: Path) -> None:
    splits = {"train": dataset(hf, range(4)), "test": dataset(hf, range(4, 8), kind=hf.Value("string"))}
    splits["train"] = splits["train"].add_column("kind", ["a", "b"] * 2)
    hf.DatasetDict(splits).save_to_disk(tmp_path / "set")
    with pytest.raises(
        DataError, match=r"set \(split test\) has a class '0', but .*set \(split train\) has no such class"
    ):
        load_data(f"hf:{tmp_path / 'set'}", cache_dir=tmp_path / "cache", label_column="kind")


def test_what_cannot_be_read_is_refused(hf: Any, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "dataset_dict.json").write_text("{")
    hf.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path / "c")
    folders(tmp_path / "d", "cat", "dog")
    for name, message in (
        ("a.parquet", "could not read .* as a Hugging Face data set: Parquet"),
        ("b", "dataset_dict.json is not valid JSON"),
        ("c", "has no column of images; its columns are text, label"),
        ("d", "It has images; leave out `hf:`"),
        ("absent", "There is no folder or file"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(f"hf:{tmp_path / name}", cache_dir=tmp_path / "cache")


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **others: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return original(name, *args, **others)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    with pytest.raises(DataError, match=r"pip install 'vitrim\[hf\]'"):
        load_data(tmp_path)


def test_a_folder_that_names_files_elsewhere_is_refused(hf: Any, tmp_path: Path) -> None:
    hf.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "a")
    hf.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "b")
    inside = next((tmp_path / "a").glob("*.arrow")).name
    for name in (f"../a/{inside}", str(tmp_path / "a" / inside)):
        (tmp_path / "b" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(DataError, match="which is no file of its folder"):
            find(f"hf:{tmp_path / 'b'}", Places(), tmp_path / "cache")
    (tmp_path / "c").mkdir()
    for splits in (["../a"], 5):
        (tmp_path / "c" / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
        with pytest.raises(DataError, match=r"which is no file of its folder|has no list of splits"):
            find(f"hf:{tmp_path / 'c'}", Places(), tmp_path / "cache")


@pytest.mark.parametrize("name", ["flowers", "hf:flowers"])
def test_a_script_beside_images_is_not_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders(tmp_path / "flowers", "cat", "dog")
    (tmp_path / "flowers" / "flowers.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with suppress(DataError):
        find(name, Places(), tmp_path / "cache")
    assert not (tmp_path / "executed").exists()
