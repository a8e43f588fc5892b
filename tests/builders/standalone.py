"""Builds a saved model in every way that does not need vitrim's own `load`."""

import json
from pathlib import Path
from types import ModuleType

import timm
import torch
from torch import Tensor, nn

from builders.models import same_tensors
from vitrim.hooks import logits_of
from vitrim.models import origin_of
from vitrim.saving.checkpoint import load, save


def modeling_of(folder: Path) -> ModuleType:
    """The module `modeling.py` of a folder; it must not import vitrim."""
    text = (folder / "modeling.py").read_text(encoding="utf-8")
    assert "import vitrim" not in text and "from vitrim" not in text
    module = ModuleType("modeling")
    module.__file__ = str(folder / "modeling.py")
    exec(compile(text, module.__file__, "exec"), vars(module))
    return module


def assert_loads_with_and_without_vitrim(model: nn.Module, images: Tensor, folder: Path) -> None:
    """Save the model, and compare its logits bit for bit with those of every way to load it, and its configuration."""
    logits = logits_of(model(images))
    save(model, folder)
    assert torch.equal(logits_of(load(folder)(images)), logits)
    if origin_of(model).library == "timm":
        through_timm = timm.create_model(f"local-dir:{folder}").eval()
        assert same_tensors(through_timm, model)
        assert torch.equal(logits_of(through_timm(images)), logits)
    if (folder / "modeling.py").exists():
        without_vitrim = modeling_of(folder).load_model()
        assert same_tensors(without_vitrim, model)
        assert torch.equal(logits_of(without_vitrim(images)), logits)
        assert configuration_of(without_vitrim) == configuration_of(load(folder))


def configuration_of(model: nn.Module) -> str:
    """timm's configuration of the model as JSON, in which tuples are lists. Models of torchvision have none."""
    return json.dumps(getattr(model, "pretrained_cfg", None), sort_keys=True)
