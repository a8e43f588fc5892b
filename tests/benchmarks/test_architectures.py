"""Small models that ignore importance: uniform plans and narrow models within the budget."""

import pytest
import torch

from benchmarks.architectures import fresh_model, narrow_model, uniform_counts, uniform_plan
from builders.cells import CELL, MODEL_ARGS, cell_config
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.errors import BudgetError, SettingError
from vitrim.models import describe


@pytest.mark.parametrize("keep", [0.8, 0.6, 0.4, 0.3])
@pytest.mark.parametrize("multiple_of", [1, 8])
def test_a_uniform_plan_keeps_the_same_fraction_of_all_blocks_within_the_budget(keep, multiple_of):
    budget = Budget(params=keep, macs=keep, min_neurons=4, multiple_of=multiple_of)
    cell = cell_config(model={**CELL["model"], "model_args": {**MODEL_ARGS, "depth": 4}})
    dense = fresh_model(cell, 10, 0)
    structure, limit = describe(dense), budget.limit(count_cost(dense))
    plan = uniform_plan(dense, [], "magnitude", budget)
    cost = count_cost(structure, plan)
    assert cost.params <= limit.params and cost.macs <= limit.macs
    assert len({len(block.heads) for block in plan.blocks}) == 1
    neurons = [len(block.neurons) for block in plan.blocks]
    assert neurons == sorted(neurons, reverse=True) and neurons[0] - neurons[-1] in (0, multiple_of)
    step = structure.blocks[0].neurons
    unused = (limit.params - cost.params, limit.macs - cost.macs)
    assert unused[0] < multiple_of * step.params or unused[1] < multiple_of * step.macs  # no further neuron fits


def test_a_uniform_plan_removes_more_heads_for_more_neurons_and_refuses_a_budget_that_is_too_small():
    structure = describe(fresh_model(cell_config(), 10, 0))
    loose = uniform_counts(structure, Budget(params=0.6, macs=0.6, min_neurons=4))
    tight = uniform_counts(structure, Budget(params=0.6, macs=0.6, min_neurons=40))
    assert 1 <= tight[0]["heads"] < loose[0]["heads"]
    with pytest.raises(BudgetError, match="same fraction kept in all blocks"):
        uniform_counts(structure, Budget(params=0.6, macs=0.6, min_neurons=64, min_heads=3))


@pytest.mark.parametrize("keep", [0.7, 0.5, 0.3])
def test_the_narrow_model_is_the_widest_within_the_budget(keep):
    cell = cell_config(model={**CELL["model"], "model_args": {**MODEL_ARGS, "embed_dim": 64}})
    dense = fresh_model(cell, 10, 0)
    budget = Budget(params=keep, macs=keep)
    small, limit = narrow_model(cell, dense, budget, 1), budget.limit(count_cost(dense))
    found = describe(small)
    wider = count_cost(fresh_model(cell, 10, 0, embed_dim=found.embed_dim + 8))
    assert count_cost(small).params <= limit.params and count_cost(small).macs <= limit.macs
    assert wider.params > limit.params or wider.macs > limit.macs
    assert [(b.heads.count, b.neurons.count) for b in found.blocks] == [(4, 4 * found.embed_dim)] * 2


@pytest.mark.parametrize(
    ("architecture", "arguments"),
    [("swin_tiny_patch4_window7_224", {"depths": [1, 1], "num_heads": [3, 6]}), ("levit_128s", {"depth": [1, 1, 1]})],
)
def test_a_model_without_an_argument_for_its_width_has_no_narrow_model(architecture, arguments):
    cell = cell_config(model={"architecture": architecture, "model_args": arguments})
    with torch.device("meta"):
        dense = fresh_model(cell, 10, 0)
    with pytest.raises(SettingError, match="leave this arm out"):
        narrow_model(cell, dense, Budget(params=0.5, macs=0.5), 0)
