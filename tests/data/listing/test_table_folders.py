"""Laws of folders with tables: the tables of all splits are read, and class folders must agree with a table."""

from pathlib import Path

import pytest

from builders.images import listed, table
from vitrim.data.loading import load_data
from vitrim.errors import DataError

PAIR = ("cat", "dog")


def lines(names: list[str], header: str = "file_name,label") -> list[str]:
    return [header, *[f"{name},{PAIR[i % 2]}" for i, name in enumerate(names)]]


def named(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{i}.png" for i in range(count)]


def classes_of(names: list[str]) -> dict[str, str]:
    return {Path(name).name: PAIR[i % 2] for i, name in enumerate(names)}


def test_the_tables_of_two_splits_are_read_together(tmp_path: Path) -> None:
    for suffix in (".csv", ".txt"):
        root = tmp_path / suffix
        first, second = named("im/a", 4), named("im/b", 2)
        for name, files in (("train", first), ("val", second)):
            rows = lines(files) if suffix == ".csv" else [row.replace(",", " ") for row in lines(files)[1:]]
            table(root / f"{name}{suffix}", *rows, images=files)
        for place in (root, root / f"train{suffix}"):
            loaded = load_data(place, memory_bytes=0)
            assert listed(loaded) == classes_of(first) and listed(loaded, "validation") == classes_of(second)


def test_a_column_can_name_the_split_of_each_image(tmp_path: Path) -> None:
    names = named("", 6)
    rows = [f"{row},{('train', 'test', 'Training')[i // 2]}" for i, row in enumerate(lines(names)[1:])]
    loaded = load_data(table(tmp_path / "metadata.csv", "path,label,split", *rows, images=names), memory_bytes=0)
    assert listed(loaded) == {name: PAIR[int(name[0]) % 2] for name in ("0.png", "1.png", "4.png", "5.png")}
    assert listed(loaded, "validation") == {"2.png": "cat", "3.png": "dog"}


@pytest.mark.parametrize(
    "column, values", [("is_valid", ("False", "True")), ("is_train", ("1", "0")), ("is_test", ("0.0", "1.0"))]
)
def test_a_column_can_flag_the_images_of_a_split(tmp_path: Path, column: str, values: tuple[str, str]) -> None:
    lines = [f"{i}.png,{PAIR[i % 2]},{values[i < 2]}" for i in range(6)]
    loaded = load_data(
        table(tmp_path / "labels.csv", f"file,label,{column}", *lines, images=named("", 6)), memory_bytes=0
    )
    assert listed(loaded, "validation") == {"0.png": PAIR[0], "1.png": PAIR[1]} and len(loaded.train) == 4
    assert loaded.notes == (f"images and labels from labels.csv (columns file, label, {column})",)


def test_a_column_of_folds_is_not_used_and_named(tmp_path: Path) -> None:
    lines = [f"{i}.png,{'aA'[i % 2]},{i % 3}" for i in range(6)]
    loaded = load_data(table(tmp_path / "labels.csv", "file,label,fold", *lines, images=named("", 6)), memory_bytes=0)
    assert "(columns file, label; fold is not used, as its values name no split)" in loaded.notes[0]
    assert loaded.notes[1] == "classes whose names are nearly equal are separate classes, such as A and a"


def test_the_image_folder_of_hugging_face_is_read(tmp_path: Path) -> None:
    table(tmp_path / "train" / "metadata.csv", *lines(named("", 4)), images=named("", 4))
    rows = [f'{{"file_name": "{name}", "label": "{label}"}}' for name, label in classes_of(named("", 2)).items()]
    table(tmp_path / "test" / "metadata.jsonl", *rows, images=named("", 2))
    loaded = load_data(tmp_path, memory_bytes=0)
    assert listed(loaded) == classes_of(named("", 4)) and listed(loaded, "validation") == classes_of(named("", 2))


def test_a_table_of_unlabelled_test_images_is_not_used(tmp_path: Path) -> None:
    names = named("train_images/", 4)
    table(tmp_path / "train.csv", *lines([Path(name).stem for name in names], "image_id,label"), images=names)
    table(tmp_path / "test.csv", "image_id", "t0", "t1", images=["test_images/t0.png", "test_images/t1.png"])
    table(tmp_path / "sample_submission.csv", "image_id,label", "t0,cat", "t1,cat")
    loaded = load_data(tmp_path, memory_bytes=0)
    assert {**listed(loaded), **listed(loaded, "validation")} == classes_of(names)
    assert loaded.notes[1:3] == (
        "test.csv is not used, because it does not list images with labels of train.csv",
        "2 images in no table: not used",
    )


def test_the_official_lists_beside_the_images_are_read(tmp_path: Path) -> None:
    images = [f"../images/{name}/{i}.png" for name in PAIR for i in range(3)]
    table(tmp_path / "meta" / "train.txt", "cat/0", "cat/1", "dog/0", "dog/1", images=images)
    table(tmp_path / "meta" / "test.txt", "cat/2", "dog/2")
    loaded = load_data(tmp_path / "meta" / "train.txt", memory_bytes=0)
    assert loaded.classes == PAIR and loaded.train.labels.tolist() == [0, 0, 1, 1]
    assert [Path(file).parts[-2:] for file in loaded.validation.files] == [("cat", "2.png"), ("dog", "2.png")]


def test_class_folders_are_read_if_the_table_agrees_and_refused_if_not(tmp_path: Path) -> None:
    names = [f"{PAIR[i % 2]}/{i}.png" for i in range(6)]
    table(tmp_path / "info.csv", "any thing", "1,2,3", images=names)
    plain = load_data(tmp_path, memory_bytes=0)
    table(tmp_path / "labels.csv", *lines(names))
    assert load_data(tmp_path, memory_bytes=0).fingerprint() == plain.fingerprint()
    rows = [f"{names[i]},{PAIR[i // 3]}" for i in range(6)]
    table(tmp_path / "labels.csv", "file,label", *rows)
    with pytest.raises(DataError, match=r"may be classes, such as cat, and a table labels.csv.*--train-dir"):
        load_data(tmp_path)
    assert load_data(train_dir=tmp_path, memory_bytes=0).classes == PAIR
    loaded = load_data(tmp_path / "labels.csv", memory_bytes=0)
    assert {**listed(loaded), **listed(loaded, "validation")} == {f"{i}.png": PAIR[i // 3] for i in range(6)}


def test_lists_of_splits_beside_class_folders_divide_the_images(tmp_path: Path) -> None:
    names = [f"{PAIR[i % 2]}/{i}.png" for i in range(6)]
    table(tmp_path / "train.csv", *lines(names[:4]), images=names)
    table(tmp_path / "val.csv", *lines(names[4:]))
    loaded = load_data(tmp_path, memory_bytes=0)
    assert listed(loaded) == classes_of(names[:4]) and listed(loaded, "validation") == classes_of(names[4:])


def test_tables_that_are_not_certain_are_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        table(tmp_path / name, *lines(named("", 4)), images=named("", 4))
    with pytest.raises(DataError, match=r"several tables of labels. Name the one to use: --data .*a.csv or .*b.csv"):
        load_data(tmp_path)
    table(tmp_path / "c" / "train.csv", *lines(named("", 4)), images=named("", 4))
    table(tmp_path / "c" / "val.csv", *lines(named("", 2)))
    with pytest.raises(DataError, match=r"lists .*\.png as a training and as a validation image"):
        load_data(tmp_path / "c")
    with pytest.raises(DataError, match=r"has no table of labels .* leave out the names of its columns"):
        load_data(table(tmp_path / "d" / "readme.md", images=["cat/0.png", "dog/1.png"]).parent, label_column="x")
