"""The section `latency`: pruned models have uneven widths and are within their budgets, and the table can be made."""

import pytest
import torch
from torch import nn

from benchmarks.costs import latency
from benchmarks.costs.latency import ALL, DENSE, SMOKE, Case, Cut, dense_and_cut, uneven_scores
from builders.models import build
from vitrim.allocation import allocate
from vitrim.costs.budget import Budget
from vitrim.costs.counting import count_cost
from vitrim.models import describe


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    arguments = {**SMOKE.arguments, "depth": 4}
    return dense_and_cut(Case(**{**vars(SMOKE), "arguments": arguments, "lines": latency.CASES[0].lines}))


def test_random_scores_lead_to_uneven_widths() -> None:
    structure = describe(build(depth=6, embed_dim=48, mlp_ratio=4.0, dtype=torch.float32))
    plan = allocate(structure, uneven_scores(structure), Budget(params=0.7, macs=0.7))
    neurons = [len(block.neurons) for block in plan.blocks]
    assert len(set(neurons)) > 3
    assert max(neurons) > 1.3 * min(neurons)
    assert any(count % 8 for count in neurons)


@pytest.mark.parametrize("cut", ALL, ids=str)
def test_every_pruned_model_is_within_its_budget(cut: Cut, models: dict[str, nn.Module]) -> None:
    cost, dense = count_cost(models[str(cut)]), count_cost(models[DENSE])
    limit = Budget(params=cut.keep, macs=cut.keep).limit(dense)
    assert cost.params <= limit.params and cost.macs <= limit.macs
    assert all(block.neurons.count % cut.multiple == 0 for block in describe(models[str(cut)]).blocks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns
def test_the_table_of_latency_can_be_made() -> None:
    pytest.importorskip("onnxruntime")
    rows = latency.measure_compressed_latency(smoke=True)
    runtimes = [row.measure.rpartition(", ")[2] for row in rows]
    assert runtimes == ["PyTorch", "ONNX Runtime", "torch.compile"]
    assert {(row.section, row.limit) for row in rows} == {("latency", 1.10)}
    assert all(row.value > 0 and "of the multiply-adds" in row.setting for row in rows)


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert latency.missing_for_compile() == "C++ compiler (no-such-compiler)"
