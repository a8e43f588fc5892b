"""Divergence from the dense model, and agreement with it."""

import pytest
import torch

from benchmarks.divergence import compare_logits, logits_on
from builders.runs import digits, digits_model
from vitrim.data.matching import Calibration
from vitrim.depth import mean_divergence
from vitrim.evaluation import evaluate


def test_equal_outputs_have_no_divergence_and_agree() -> None:
    logits = 5 * torch.randn(20, 7)
    found = compare_logits(logits, logits + 3)  # a constant does not change the distribution
    assert found["kl"] == pytest.approx(0, abs=1e-6) and found["agreement"] == 100
    assert found["same"] == "1" * 20


def test_the_divergence_is_that_of_the_definition() -> None:
    dense, model = torch.randn(2, 9000, 5).unbind()
    found = compare_logits(dense, model)
    p, q = dense.double().softmax(dim=1), model.double().softmax(dim=1)
    expected = (p * (p / q).log()).sum(dim=1)
    assert found["kl"] == pytest.approx(expected.mean().item())
    assert [float(word) for word in found["kl_images"].split()] == pytest.approx(expected.tolist(), rel=5e-3)
    same = (p.argmax(dim=1) == q.argmax(dim=1)).double()
    assert found["agreement"] == pytest.approx(100 * same.mean().item()) and found["same"].count("1") == same.sum()


def test_logits_are_those_of_the_evaluation_and_the_divergence_that_of_the_depth_search() -> None:
    images = digits().validation
    dense, model = digits_model(), digits_model(seed=1)
    ours, theirs = (logits_on(found, images) for found in (model, dense))
    assert torch.equal(ours.argmax(dim=1) == images.labels, torch.from_numpy(evaluate(model, images).correct))
    batches = Calibration(images=images, model=dense, batch_size=20)
    assert compare_logits(theirs, ours)["kl"] == pytest.approx(mean_divergence(model, dense, batches), rel=1e-4)
