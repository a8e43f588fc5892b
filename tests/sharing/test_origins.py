"""What a run was made from, by the commands of the runs."""

import json
from pathlib import Path

import pytest

from builders.runs import digits_model
from vitrim.cli import app
from vitrim.saving.checkpoint import fingerprint, load, save
from vitrim.sharing.origins import FLAGS, Base, base_of, data_set_of


def noted_run(folder: Path, command: str, weights: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps({"command": command}))
    (folder / "run.json").write_text(json.dumps({"model": {"weights": weights}}))
    return folder


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("vitrim train deit_tiny_patch16_224 --pretrained --data x", "timm/deit_tiny_patch16_224.fb_in1k"),
        ("vitrim train deit_tiny_patch16_224 --data x", ""),
        ("vitrim compress timm:hf-hub:me/dense --data x", "me/dense"),
        ("vitrim compress transformers:google/vit-base-patch16-224 --data x", "google/vit-base-patch16-224"),
        ("vitrim compress no_such_model --pretrained", ""),
        ("vitrim train --data x --pretrained deit_tiny_patch16_224", "timm/deit_tiny_patch16_224.fb_in1k"),
        ("vitrim train --strict --model=deit_tiny_patch16_224 --pretrained", "timm/deit_tiny_patch16_224.fb_in1k"),
        ("vitrim compress -o runs/a --seed -1 -- timm:hf-hub:me/dense@v1", "me/dense"),
        ("vitrim compress transformers:./clip --data x", ""),
        ("vitrim compress transformers:/clip --data x", ""),
        ("train.py", ""),
        ("", ""),
    ],
)
def test_the_base_model_is_what_the_command_names(command: str, expected: str, tmp_path: Path) -> None:
    assert base_of(noted_run(tmp_path, command)).id == expected


def test_the_license_is_that_of_the_published_weights(tmp_path: Path) -> None:
    command = "vitrim train deit_tiny_patch16_224 --pretrained --data x"
    assert base_of(noted_run(tmp_path, command)).license == "apache-2.0"


def test_a_run_that_starts_from_another_has_its_base_model_if_the_weights_are_the_same(tmp_path: Path) -> None:
    dense = noted_run(tmp_path / "dense", "vitrim train deit_tiny_patch16_224 --pretrained --data x")
    save(digits_model(), dense / "model")
    command = f"vitrim compress {dense} --data x"
    small = noted_run(tmp_path / "small", command, fingerprint(load(dense / "model")))
    assert base_of(small).id == "timm/deit_tiny_patch16_224.fb_in1k"
    assert base_of(noted_run(small, command, "of another model")) == Base()


@pytest.mark.parametrize(
    ("option", "expected"),
    [("--data cifar10", "uoft-cs/cifar10"), ("--data=hf:me/flowers", "me/flowers"), ("--data ./flowers", ""), ("", "")]
    + [(f"--data hf:{name}", "") for name in ("/xrays", "./xrays", "../xrays", "~/xrays", "me/a..b", "a/b/c", "me/")]
    + [("--data x --data=hf:me/b -o --data", "me/b"), ("--pretrained --data hf:me/b", "me/b")],
)
def test_the_data_set_is_named_only_if_the_hub_has_it(option: str, expected: str, tmp_path: Path) -> None:
    assert data_set_of(noted_run(tmp_path, f"vitrim compress dense {option}")) == expected


def test_a_folder_beside_the_run_is_no_data_set_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "scans" / "xrays").mkdir(parents=True)
    assert data_set_of(noted_run(tmp_path / "run", "vitrim train vit --data hf:scans/xrays")) == ""


def test_the_options_without_a_value_are_those_of_the_commands() -> None:
    found = {
        name
        for command in ("train", "compress")
        for option in app[command].assemble_argument_collection()
        if option.parse and option.hint is bool
        for name in option.names
        if not name.startswith("--no-")
    }
    assert found == set(FLAGS)
