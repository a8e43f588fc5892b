"""What `save_pretrained` of transformers writes of a changed model computes the same after loading."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from builders.transformers_folders import ROWS, pruned_model
from vitrim.models import origin_of
from vitrim.saving.checkpoint import load, save


def changed_model(kind: str) -> Any:
    model = (pruned_model("transformers ViT") if kind == "pruned" else ROWS["transformers ViT"]()).float().eval()
    model.vit.layernorm.eps = 0.5
    model.classifier = nn.Sequential(nn.GELU(), nn.Linear(model.config.hidden_size, model.config.num_labels))
    return model.eval()


@pytest.mark.parametrize("kind", ["pruned", "dense"])
def test_changes_survive_save_pretrained(kind: str, tmp_path: Path) -> None:
    model, images = changed_model(kind), torch.randn(2, 3, 32, 32)
    auto = transformers.AutoModelForImageClassification
    save(model, tmp_path / "saved")
    for name, loaded in {"vitrim": load(tmp_path / "saved"), "auto": auto.from_pretrained(tmp_path / "saved")}.items():
        before = {key: loaded.config.to_dict().get(key) for key in ("model_type", "dense", "vitrim")}
        loaded.save_pretrained(tmp_path / name)
        assert before == {key: loaded.config.to_dict().get(key) for key in before}
        for again in (auto.from_pretrained(tmp_path / name), load(tmp_path / name)):
            assert torch.equal(again.eval()(images).logits, model(images).logits)
            assert origin_of(again).plan == origin_of(model).plan


def test_a_change_that_cannot_be_noted_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Halved(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens / 2

    model = changed_model("pruned")
    model.vit.layernorm = Halved()
    model.save_pretrained(tmp_path)
    assert "not what else was changed on the model" in capsys.readouterr().err
