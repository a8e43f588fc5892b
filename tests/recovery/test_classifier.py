"""Laws of the classifier's refit: it corrects what the features allow, and it does not fit noise."""

import copy

import pytest
import torch
from torch import Tensor, nn

from builders.models import build, random_images, same_tensors
from vitrim.recovery.classifier import RIDGES, refit_classifier

IMAGES = list(random_images(60).split(25))


@torch.no_grad()
def distance(first: nn.Module, second: nn.Module, images: list[Tensor]) -> float:
    """The squared difference of the logits, summed over the images."""
    return sum((first(batch) - second(batch)).square().sum().item() for batch in images)


@torch.no_grad()
def refit(student: nn.Module, teacher: nn.Module) -> bool:
    """Refit the classifier on `IMAGES`; whether it was changed."""
    outputs, targets = (student(batch) for batch in IMAGES), (teacher(batch) for batch in IMAGES)
    return refit_classifier(student, IMAGES, outputs, targets)


def with_wrong_classifier(model: nn.Module, layer: str = "head") -> nn.Module:
    """A copy of the model with noise added to its classifier."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.get_submodule(layer).parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("variant", ["class token", "average pooling, fc_norm", "registers"])
def test_a_wrong_classifier_is_corrected(variant: str) -> None:
    teacher = build(variant)
    student = with_wrong_classifier(teacher)
    others = [random_images(40, seed=1)]
    before = distance(student, teacher, others)
    assert refit(student, teacher)
    assert distance(student, teacher, others) < 1e-3 * before
    changed = {
        name for name, value in student.state_dict().items() if not torch.equal(value, teacher.state_dict()[name])
    }
    assert changed <= {"head.weight", "head.bias"}


def test_a_correct_classifier_is_not_changed() -> None:
    teacher = build()
    student = copy.deepcopy(teacher)
    refit(student, teacher)
    assert same_tensors(student, teacher)


def test_noise_in_the_targets_is_not_fitted() -> None:
    """The residuals are noise. The leave-one-out error shows that no fit helps."""
    student, twin = build(), build()
    noise = iter(torch.randn(3, 25, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))

    def teacher(batch: Tensor) -> Tensor:
        found = next(noise)[: len(batch)]
        found = found - found.mean(dim=0)  # so that the bias cannot help either
        return twin(batch) + found

    before = copy.deepcopy(student.state_dict())
    refit(student, teacher)  # type: ignore[arg-type]
    change = sum((value - before[name]).square().sum().item() for name, value in student.state_dict().items())
    assert change < 0.05


def test_logits_that_are_the_mean_of_two_classifiers_are_not_refitted() -> None:
    teacher = build("distilled token")
    student = with_wrong_classifier(teacher)
    assert not refit(student, teacher)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("noise", [0.0, 0.5, 3.0])
def test_the_fit_is_ridge_regression_with_the_smallest_leave_one_out_error(noise: float, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator) + 1
    layer = nn.Linear(5, 3, bias=has_bias, dtype=torch.float64)
    true_change = torch.randn(3, 5, dtype=torch.float64, generator=generator)
    residual = x @ true_change.T + noise * torch.randn(12, 3, dtype=torch.float64, generator=generator)
    spread = (x - x.mean(dim=0) * has_bias).square().sum() / x.shape[1]

    def fit(rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        mean_x, mean_r = x[rows].mean(dim=0) * has_bias, residual[rows].mean(dim=0) * has_bias
        penalty = ridge * spread * torch.eye(5, dtype=x.dtype)
        centred = x[rows] - mean_x
        change = torch.linalg.solve(centred.T @ centred + penalty, centred.T @ (residual[rows] - mean_r)).T
        return change, mean_r - change @ mean_x

    def unseen_error(ridge: float) -> float:
        total = 0.0
        for index in range(len(x)):
            change, shift = fit(torch.arange(len(x)) != index, ridge)
            total += (residual[index] - x[index] @ change.T - shift).square().sum().item()
        return total

    best = min(RIDGES, key=unseen_error)
    helps = unseen_error(best) < residual.square().sum().item()
    change, shift = fit(torch.ones(len(x), dtype=torch.bool), best)
    before = copy.deepcopy(layer)
    student = nn.Sequential(layer)
    with torch.no_grad():
        targets = [student(x) + residual]
        assert refit_classifier(student, [x], (student(batch) for batch in [x]), targets) == helps
    if helps:
        assert torch.allclose(layer.weight, before.weight + change, rtol=0, atol=1e-10)
        if has_bias:
            assert torch.allclose(layer.bias, before.bias + shift, rtol=0, atol=1e-10)
