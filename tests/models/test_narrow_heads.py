"""Laws of rotated and narrowed heads, for every family: rotating changes nothing, narrowing equals silencing."""

import copy
import itertools
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from builders.counting import count_macs
from builders.exactness import EXACT, images_for, plans, relative_distance, set_fused
from builders.families_timm import build_row
from builders.models import same_tensors
from builders.narrowing import NARROW_ROWS, NOT_NARROWABLE, ONLY_VALUES, narrowed, narrowed_to_half, tolerance
from builders.rows import EACH_KIND, MADE_BY_HAND
from builders.standalone import modeling_of
from vitrim.costs.counting import Cost, count_cost
from vitrim.errors import PlanMismatch
from vitrim.hooks import logits_of
from vitrim.models import describe, origin_of
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.rotation import Rotation, measure_rotation, narrowable_attentions, rotate
from vitrim.saving.checkpoint import load, save
from vitrim.silencing import silence
from vitrim.structure import UnitGroup, ViTStructure
from vitrim.surgery import prune

ROTATED = 1e-9  # relative; inverse matrices are rounded
MODES = list(itertools.product((True, False), (False, True)))  # fused attention, train mode
every_family = pytest.mark.parametrize("family", NARROW_ROWS)


@cache
def _rotated(family: str) -> tuple[nn.Module, nn.Module]:
    model = build_row(NARROW_ROWS[family]())
    images = images_for(describe(model), 3)
    return model, rotate(model, measure_rotation(model, [(images, torch.zeros(3, dtype=torch.long))]))


