"""Laws of the classifier's refit: it makes good what it can, only that, and not by following chance."""

import copy

import pytest
import torch
from torch import Tensor, nn

from builders.models import build, random_images, same_tensors
from vitrim.recovery.classifier import _Fit, refit_classifier

IMAGES = list(random_images(60).split(25))


@torch.no_grad()
def distance(first: nn.Module, second: nn.Module, images: list[Tensor]) -> float:
    return sum((first(batch) - second(batch)).square().sum().item() for batch in images)


@torch.no_grad()
def refit(student: nn.Module, teacher: nn.Module) -> bool:
    given, wanted = (student(batch) for batch in IMAGES), (teacher(batch) for batch in IMAGES)
    return refit_classifier(student, IMAGES, given, wanted)


def with_wrong_classifier(model: nn.Module, layer: str = "head") -> nn.Module:
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.get_submodule(layer).parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("variant", ["class token", "average pooling, fc_norm", "registers"])
def test_a_wrong_classifier_is_made_good(variant: str) -> None:
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


def test_a_right_classifier_stays() -> None:
    teacher = build()
    student = copy.deepcopy(teacher)
    refit(student, teacher)
    assert same_tensors(student, teacher)


def test_what_the_features_do_not_tell_is_left_alone() -> None:
    """The wanted logits are chance: a fit would only follow it, and leaving out one image at a time shows that."""
    student, twin = build(), build()
    noise = iter(torch.randn(3, 25, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))

    def teacher(batch: Tensor) -> Tensor:
        found = next(noise)[: len(batch)]
        found = found - found.mean(dim=0)  # nothing for the bias either
        return twin(batch) + found

    before = copy.deepcopy(student.state_dict())
    refit(student, teacher)  # type: ignore[arg-type]
    change = sum((value - before[name]).square().sum().item() for name, value in student.state_dict().items())
    assert change < 0.05


def test_logits_made_of_two_classifiers_are_left_alone() -> None:
    teacher = build("distilled token")
    student = with_wrong_classifier(teacher)
    assert not refit(student, teacher)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_the_unseen_error_is_that_of_leaving_each_image_out(ridge: float, centred: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(12, 5, dtype=torch.float64, generator=generator) + 1
    r = torch.randn(12, 3, dtype=torch.float64, generator=generator) + 2
    fit = _Fit.of(x, r, centred=centred)
    spread = (x - x.mean(dim=0) * centred).square().sum() / x.shape[1]
    penalty = ridge * spread * torch.eye(x.shape[1], dtype=x.dtype)
    total = 0.0
    for index in range(len(x)):
        rest = torch.arange(len(x)) != index
        mean_x, mean_r = x[rest].mean(dim=0) * centred, r[rest].mean(dim=0) * centred
        seen = x[rest] - mean_x
        weight = torch.linalg.solve(seen.T @ seen + penalty, seen.T @ (r[rest] - mean_r))
        total += (r[index] - mean_r - (x[index] - mean_x) @ weight).square().sum().item()
    assert fit.unseen_error(ridge).item() == pytest.approx(total, rel=1e-9)
