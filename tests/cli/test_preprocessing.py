"""The options that state how images are prepared."""

from pathlib import Path

import pytest
import torch

from builders.models import build
from vitrim.cli import run
from vitrim.cli.preprocessing import PreprocessingOptions, preprocessing_settings
from vitrim.data.matching import preprocessing_of
from vitrim.errors import SettingError
from vitrim.saving.checkpoint import load, save
from vitrim.saving.opening import open_model


@pytest.mark.parametrize("text", ["0.1,0.2,0.3", "0.1 0.2 0.3", "[0.1, 0.2, 0.3]", "(0.1,0.2,0.3)"])
def test_numbers_are_read_as_people_write_them(text: str) -> None:
    assert preprocessing_settings(PreprocessingOptions(mean=text)) == {"mean": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize("text", ["imagenet", "", "0.1;0.2", "0.1,x"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="one per channel, such as"):
        preprocessing_settings(PreprocessingOptions(std=text))


def test_folders_and_checkpoint_files_are_opened_with_what_is_stated(tmp_path: Path) -> None:
    dense = build(dtype=torch.float32, num_classes=10)
    folder = save(dense, tmp_path / "model")
    torch.save(dense.state_dict(), tmp_path / "model.pth")
    arguments = {"depth": 4, "embed_dim": 16, "num_heads": 4, "mlp_ratio": 1.5}
    assert preprocessing_of(open_model(str(folder), preprocessing={"mean": 0.4})).mean == (0.4, 0.4, 0.4)
    opened = open_model(
        str(tmp_path / "model.pth"), arch="vit_tiny_patch16_224", model_args=arguments, preprocessing={"crop_pct": 0.5}
    )
    assert preprocessing_of(opened).crop_pct == 0.5


def test_a_wrong_value_names_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save(build(dtype=torch.float32), tmp_path / "model")
    assert run(["inspect", str(folder), "--mean", "123.675"]) == 2
    assert capsys.readouterr().err.startswith("vitrim: --mean is 123.675; expected numbers from 0 to 1")
    assert preprocessing_of(load(folder)).mean == (0.5, 0.5, 0.5)
