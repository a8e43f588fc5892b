"""Laws of the cost: arithmetic on the structure agrees with a count on the running model."""

import pytest
import torch

from builders.models import SIZES, VARIANTS, build, one_unit_plan, plan_of_sizes, random_plan
from vitrim.costs.counting import Cost, block_cost, count_cost, count_cost_by_running
from vitrim.errors import PlanMismatch
from vitrim.models import describe
from vitrim.models.timm.adapter import create_model
from vitrim.surgery import prune

FAST = {"class token", "distilled token", "average pooling, fc_norm", "qk-norm", "registers", "gated attention"}
CASES = [*((variant, {}) for variant in VARIANTS), ("class token", {"num_classes": 0})]
CASES += [("class token", {"img_size": (32, 64)}), ("class token", {"in_chans": 1}), ("class token", {"depth": 1})]


@pytest.mark.parametrize(
    ("variant", "changes", "fused"),
    [
        pytest.param(*case, fused, marks=[] if (fused and case[0] in FAST) or case == CASES[0] else [pytest.mark.slow])
        for case in CASES
        for fused in (True, False)
    ],
)
def test_arithmetic_agrees_with_running(variant: str, changes: dict, fused: bool) -> None:
    model = build(variant, **{"depth": 2, **changes})
    for block in model.blocks:
        block.attn.fused_attn = fused
    structure = describe(model)
    assert count_cost(model) == count_cost(structure) == count_cost_by_running(model)
    for plan in (one_unit_plan(structure), random_plan(structure, seed=1, blocks=(0,))):
        student = prune(model, plan)
        assert count_cost(model, plan) == count_cost(student) == count_cost_by_running(student)


@pytest.mark.parametrize("option", ["scale_attn_norm", "scale_mlp_norm"])
def test_norms_across_units_are_counted(option: str) -> None:
    model = build(**{option: True})
    assert count_cost(model) == count_cost_by_running(model)


def test_counting_does_not_change_the_model() -> None:
    model = build().train()
    count_cost_by_running(model)
    assert model.training
    assert next(model.parameters()).device.type == "cpu"


def test_published_cost_of_vit_small() -> None:
    with torch.device("meta"):
        model = create_model("vit_small_patch16_224")
    assert count_cost(model) == Cost(params=22050664, macs=4598882304)


def test_a_plan_costs_what_its_blocks_cost() -> None:
    structure = describe(build())
    plan = random_plan(structure, seed=3)
    total = Cost(params=structure.params, macs=structure.macs)
    for kept in plan.blocks:
        total += block_cost(structure, kept.block, {"heads": len(kept.heads), "neurons": len(kept.neurons)})
    assert total == count_cost(structure, plan)
    fractions = total.fraction_of(count_cost(structure))
    assert min(fractions) > 0 and max(fractions) < 1


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(PlanMismatch, match="heads"):
        count_cost(build(), plan_of_sizes("any", [(SIZES["num_heads"] + 1, 1)]))
