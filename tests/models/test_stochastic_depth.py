"""Laws of stochastic depth: branches are removed with the given probability, and one graph serves all rates."""

import pytest
import torch
from torch._dynamo.utils import counters

from builders.models import build, random_images
from vitrim.models import adapter_for, describe
from vitrim.models.stochastic_depth import DropPath
from vitrim.training.compiling import compiled_blocks


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_branch_is_removed_with_the_given_probability_and_keeps_its_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 3, 2, dtype=dtype)
    found = DropPath(0.03)(branch)
    kept = found[:, 0, 0] != 0
    assert found.dtype == dtype and torch.equal(found, found[:, :1, :1].expand_as(found))  # all of an image, or nothing
    assert abs(1 - kept.double().mean().item() - 0.03) < 5 * (0.03 * 0.97 / len(branch)) ** 0.5
    assert torch.allclose(
        found[kept].double(), torch.tensor(1 / 0.97, dtype=torch.float64), rtol=torch.finfo(dtype).eps
    )


def test_nothing_is_removed_in_eval_mode_or_with_rate_zero() -> None:
    branch = torch.ones(50, 3)
    assert DropPath(0.5).eval()(branch) is branch
    assert DropPath(0.0)(branch) is branch


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, while it compiles
def test_blocks_with_all_rates_share_the_compiled_graph() -> None:
    model, images = build(depth=6).train(), random_images()
    adapter_for(model).set_drop_path(model, 0.3)
    torch.compiler.reset()
    counters.clear()
    torch.manual_seed(0)
    expected = model(images)
    with compiled_blocks({model: describe(model)}, backend="aot_eager"):
        torch.manual_seed(0)
        assert torch.allclose(model(images), expected, atol=1e-12)
    assert counters["stats"]["unique_graphs"] <= 3  # without a rate, with a constant one, with any
    torch.compiler.reset()
