"""A `config.json` with values of other kinds than `save` writes is refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.runs import digits_model
from vitrim.errors import CheckpointMismatch, UserError
from vitrim.saving.checkpoint import load, save
from vitrim.saving.opening import open_model
from vitrim.saving.stored_config import check_config

BAD: dict[str, Any] = {
    "library": 5,
    "architecture": ["x"],
    "model_args": [["depth", 1]],
    "preprocessing": {"mean": "x"},
    "classes": {"a": 1},
    "plan": 5,
    "changes": {"removed": [5]},
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(CheckpointMismatch, match=r"config\.json was not written by vitrim") as found:
        check_config({"vitrim": {"format": 2, name: BAD[name]}}, "config.json")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "5", "[]", "{", "NaN", '"x"', "1" * 5000, "[" * 150 + "]" * 150, "[" * 100_000),
        *('{"vitrim": 5}', '{"vitrim": {}}', '{"model_type": 5}', '{"architecture": 5, "pretrained_cfg": 6}'),
    ],
    ids=lambda text: text[:20],
)
def test_a_damaged_configuration_is_an_error_of_the_user(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with pytest.raises(UserError) as found:
        open_model(str(folder))
    assert "\n" not in str(found.value)


def test_python_files_of_a_folder_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(digits_model(), tmp_path / "model")
    for name in ("modeling.py", "__init__.py", "timm.py", "config.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nraise RuntimeError")
    monkeypatch.chdir(folder)
    load(folder)
    assert not (tmp_path / "executed").exists()


def test_weights_in_8_bits_are_refused(tmp_path: Path) -> None:
    import safetensors.torch
    import torch

    folder = save(digits_model(), tmp_path / "model")
    (folder / "digests.json").unlink(missing_ok=True)  # who makes a hostile folder leaves them out
    for dtype in (torch.float8_e4m3fn, torch.int8):
        weights = {name: tensor.to(dtype) for name, tensor in digits_model().state_dict().items()}
        safetensors.torch.save_file(weights, folder / "model.safetensors")
        with pytest.raises(CheckpointMismatch, match="expected float32, float16 or bfloat16"):
            load(folder)


def test_the_configuration_that_save_writes_is_accepted(tmp_path: Path) -> None:
    folder = save(digits_model(), tmp_path / "model", classes=tuple("0123456789"))
    check_config(json.loads((folder / "config.json").read_text()), "config.json")
