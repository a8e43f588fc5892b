"""Pruned models of transformers, folders of them loaded by Auto classes, and their comparison."""

import json
from pathlib import Path

import torch
import transformers
from torch import nn

from builders.exactness import images_for, relative_distance
from builders.families_timm import build_row
from builders.families_transformers import BACKBONES, HUGGINGFACE
from builders.models import random_plan, same_tensors
from vitrim.hooks import logits_of
from vitrim.models import describe
from vitrim.surgery import prune

ROWS = {**HUGGINGFACE, **BACKBONES}
CLASSIFIER = transformers.AutoModelForImageClassification
ROUNDING = 1e-5  # in float32: transformers maps the file into memory, and rounding depends on memory addresses


def pruned_model(family: str = "transformers ViT", seed: int = 1) -> nn.Module:
    """A model in float32 without some heads and neurons and without its first block."""
    model = build_row(ROWS[family], dtype=torch.float32)
    structure = describe(model)
    return prune(model, random_plan(structure, seed=seed, blocks=tuple(range(1, len(structure.blocks)))))


def load_with_auto(folder: Path, auto: type | None = None) -> nn.Module:
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    auto = auto or (CLASSIFIER if "Classification" in architecture else transformers.AutoModel)
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    return model


@torch.no_grad()
def assert_same(first: nn.Module, second: nn.Module) -> None:
    assert type(first) is type(second)
    assert same_tensors(first, second)
    images = images_for(describe(second), dtype=torch.float32)
    assert relative_distance(logits_of(first(images)), logits_of(second(images))) < ROUNDING
