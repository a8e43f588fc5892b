"""A fixture for tests of saved models: a pruned ViT."""

import pytest
import torch
from torch import nn

from builders.models import build, random_plan
from vitrim.models import describe
from vitrim.surgery import prune


@pytest.fixture(scope="package")
def student() -> nn.Module:
    """A ViT with random units and three of its blocks. Tests must not change it."""
    model = build(dtype=torch.float32)
    return prune(model, random_plan(describe(model), seed=1, blocks=(0, 2, 3)))
