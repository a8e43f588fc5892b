"""Wrappers around a model: taken off where they return what the model returns, else named with what to pass."""

import copy
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from builders.models import build, random_batches, random_images, random_plan, same_tensors
from vitrim.costs.counting import count_cost, count_cost_by_running
from vitrim.costs.latency import LatencySettings, measure_latency
from vitrim.errors import UnsupportedModel
from vitrim.evaluation import evaluate
from vitrim.importance.blocks import rank_blocks_for_removal
from vitrim.importance.criteria import score
from vitrim.models import adapter_for, describe, origin_of
from vitrim.models.wrappers import expression, unwrapped
from vitrim.recovery.recover import recover
from vitrim.rotation import measure_rotation, rotate
from vitrim.saving.checkpoint import load, save
from vitrim.silencing import silence
from vitrim.surgery import prune

WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "AveragedModel": AveragedModel,
    "ModelEmaV2": ModelEmaV2,
    "ModelEmaV3": ModelEmaV3,
    "two wrappers": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
}
IN_FAST_RUN = {"AveragedModel", "two wrappers"}


class Own(nn.Module):
    """A module of a person's own around a model."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.fc = build(depth=1, num_classes=0), nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.backbone(images))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return build(depth=2)


@pytest.mark.parametrize(
    "wrapper", [name if name in IN_FAST_RUN else pytest.param(name, marks=pytest.mark.slow) for name in WRAPPERS]
)
def test_a_wrapped_model_is_described_pruned_and_scored_as_the_model(wrapper: str, model: nn.Module) -> None:
    wrapped = WRAPPERS[wrapper](copy.deepcopy(model)).eval()
    structure = describe(model)
    assert describe(wrapped) == structure and adapter_for(wrapped) is adapter_for(model)
    plan = random_plan(structure, seed=1)
    assert same_tensors(prune(wrapped, plan), prune(model, plan))
    found, expected = score(wrapped, random_batches()), score(model, random_batches())
    assert all((one == two).all() for one, two in zip(found.heads, expected.heads, strict=True))


def test_every_function_takes_a_wrapped_model(model: nn.Module, tmp_path: Path) -> None:
    wrapped, batches = nn.DataParallel(copy.deepcopy(model)), random_batches()
    plan = random_plan(describe(model), seed=1)
    student = prune(model, plan)
    recovered = recover(nn.DataParallel(student), wrapped, plan, batches)
    assert same_tensors(recovered, recover(student, model, plan, batches))
    assert count_cost(wrapped) == count_cost(model) == count_cost_by_running(wrapped)
    assert evaluate(wrapped, batches).loss == evaluate(model, batches).loss
    assert rank_blocks_for_removal(wrapped, batches, 1) == rank_blocks_for_removal(model, batches, 1)
    assert same_tensors(
        rotate(wrapped, measure_rotation(wrapped, batches)), rotate(model, measure_rotation(model, batches))
    )
    assert measure_latency(wrapped, LatencySettings(rounds=1, warmup=0)).median_ms > 0
    assert origin_of(wrapped) == origin_of(model)
    images = random_images()
    with torch.no_grad(), silence(wrapped, plan), silence(model, plan):
        assert torch.equal(wrapped(images), model(images))
    save(wrapped, tmp_path)
    assert same_tensors(load(tmp_path), model)


def test_modules_that_were_compiled_in_place_are_scored_and_silenced_as_before() -> None:
    """Compiled code ignores hooks that are registered later."""
    model, images, batches = build(depth=2), random_images(), random_batches()
    compiled = copy.deepcopy(model)
    compiled.blocks[1].mlp.compile(backend="eager")
    with torch.no_grad():
        compiled(images)
    plan = random_plan(describe(model), seed=1)
    with torch.no_grad(), silence(compiled, plan), silence(model, plan):
        assert torch.equal(compiled(images), model(images))
    found, expected = score(compiled, batches), score(model, batches)
    assert all((one == two).all() for one, two in zip(found.neurons, expected.neurons, strict=True))
    assert same_tensors(prune(compiled, plan), prune(model, plan))


def test_a_model_inside_an_own_module_is_named_with_its_path() -> None:
    with pytest.raises(UnsupportedModel, match=r"timm's VisionTransformer at `backbone`. Pass `model.backbone`."):
        describe(Own())
    with pytest.raises(UnsupportedModel, match=r"Pass `model\[1\].backbone`"):
        describe(nn.Sequential(nn.Identity(), Own()))


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        ("runs/model", "vitrim.load"),
        (Path("runs/model"), "vitrim.load"),
        ({"head.weight": torch.zeros(1)}, "load_state_dict"),
        (OrderedDict(), "load_state_dict"),
        (nn.Linear(2, 2), "which vitrim cannot prune"),
        (None, "which vitrim cannot prune"),
    ],
)
def test_something_that_is_no_model_is_refused_with_advice(found: object, advice: str) -> None:
    with pytest.raises(UnsupportedModel, match=advice):
        describe(found)


def test_a_block_that_is_compiled_on_its_own_is_refused_by_name() -> None:
    model = build(depth=2)
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    with pytest.raises(UnsupportedModel, match=r"`model.blocks\[1\] = model.blocks\[1\]._orig_mod`"):
        describe(model)


def test_a_model_without_a_wrapper_is_returned_as_it_is(model: nn.Module) -> None:
    assert unwrapped(model) is model
    assert expression("blocks.3.attn") == "model.blocks[3].attn" and expression("") == "model"
