"""Laws of the joint choice: it keeps as many units, sees units that say the same, and its refit errs less."""

import pytest
import torch
from torch import Tensor

from builders.models import build, random_batches
from vitrim.errors import DataError
from vitrim.importance.joint import SecondMoments, choose_jointly, keep_jointly
from vitrim.models import describe
from vitrim.plan import KeptBlock, PruningPlan
from vitrim.structure import ViTStructure


def plan_with(structure: ViTStructure, heads: int, neurons: int) -> PruningPlan:
    """The first units of every block."""
    blocks = (KeptBlock(block=i, heads=range(heads), neurons=range(neurons)) for i in range(len(structure.blocks)))
    return PruningPlan(model=structure.model, blocks=tuple(blocks))


def error_after_refit(weight: Tensor, moment: Tensor, kept: tuple[int, ...]) -> float:
    """The mean squared change of the output x W' if only the kept columns remain, refitted: x has this moment."""
    columns = list(kept)
    refitted = weight @ moment[:, columns] @ torch.linalg.inv(moment[columns][:, columns])
    missing = weight.clone()
    missing[:, columns] -= refitted
    return float((missing @ moment * missing).sum())


def correlated(num: int, rank: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight `(5, num)` and the second moment of inputs that lie near a space of this rank."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(rank, num, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, num, generator=generator, dtype=torch.float64)
    return weight, mixing.T @ mixing + 1e-2 * torch.eye(num, dtype=torch.float64)


def test_independent_inputs_are_ranked_by_weight_and_size() -> None:
    weight = torch.tensor([[3.0, 1.0, 2.0, 0.5]], dtype=torch.float64)
    sizes = torch.tensor([1.0, 1.0, 0.1, 9.0], dtype=torch.float64)
    assert keep_jointly(weight, torch.diag(sizes), 2, 1) == (0, 3)


def test_of_two_neurons_that_do_the_same_one_is_kept() -> None:
    inputs = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = torch.cat([inputs, inputs[:, :1]], dim=1)  # the last neuron repeats the first one
    moment = inputs.T @ inputs / 200 + 1e-6 * torch.eye(4, dtype=torch.float64)
    weight = torch.tensor([[9.0, 1.0, 2.0, 9.0]], dtype=torch.float64)
    kept = keep_jointly(weight, moment, 3, 1)
    assert {1, 2} < set(kept) and len({0, 3} & set(kept)) == 1


@pytest.mark.parametrize("width", [1, 4])
def test_the_choice_errs_less_than_the_best_single_units(width: int) -> None:
    lower = 0
    for seed in range(20):
        weight, moment = correlated(24, 10, seed)
        num = 24 // width
        size = torch.tensor([error_after_refit(weight, moment, _without(unit, num, width)) for unit in range(num)])
        single = _columns(size.argsort(descending=True)[: num // 2].sort().values.tolist(), width)
        joint = _columns(keep_jointly(weight, moment, num // 2, width), width)
        lower += error_after_refit(weight, moment, joint) <= error_after_refit(weight, moment, single)
    assert lower >= 16


def _columns(units: object, width: int) -> tuple[int, ...]:
    return tuple(unit * width + column for unit in units for column in range(width))


def _without(unit: int, num: int, width: int) -> tuple[int, ...]:
    return _columns([other for other in range(num) if other != unit], width)


def test_each_group_keeps_as_many_units_as_before_and_widths_stay() -> None:
    model = build(num_heads=4)
    structure = describe(model)
    plan = plan_with(structure, 2, 9).with_head_widths(structure, 2)
    chosen = choose_jointly(model, plan, random_batches())
    chosen.check(structure)
    assert chosen != plan
    for kept, before in zip(chosen.blocks, plan.blocks, strict=True):
        assert (len(kept.heads), len(kept.neurons)) == (2, 9)
        assert kept.head_widths == before.head_widths


def test_a_plan_that_removes_no_unit_stays_and_needs_no_image() -> None:
    model = build()
    full = PruningPlan.full(describe(model))
    assert choose_jointly(model, full, []) == full


def test_without_images_nothing_can_be_chosen() -> None:
    model = build()
    with pytest.raises(DataError, match=r"No calibration image reached blocks\.0 heads"):
        choose_jointly(model, plan_with(describe(model), 2, 9), [])


def test_the_model_stays_as_it_was() -> None:
    model = build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choose_jointly(model, plan_with(describe(model), 2, 9), random_batches())
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("spread", [0.0, 1e-6, 1e-3])
def test_inputs_that_hardly_vary_are_no_error(spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    group = describe(build()).blocks[0].neurons
    moments, layer = SecondMoments(group), torch.nn.Linear(group.count, 5)
    for _ in range(3):
        moments.hook(layer, (100 + spread * torch.randn(2, 9, group.count, generator=generator),))
    assert len(keep_jointly(moments.weight_of(layer), moments.matrix(), 3, 1)) == 3
