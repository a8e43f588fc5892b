"""Laws of ensembles: the mean of softmax outputs, with each model's own images and order of classes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from builders.runs import digits, digits_model
from vitrim.data.images import ImageData
from vitrim.data.matching import name_outputs
from vitrim.ensembles import evaluate_ensemble, mean_logits
from vitrim.errors import DataError
from vitrim.evaluation import Evaluation, evaluate

BACKWARDS = tuple(str(digit) for digit in reversed(range(10)))


def same(one: Evaluation, other: Evaluation) -> bool:
    return one.to_dict() == other.to_dict()


def probabilities(model: nn.Module, data: ImageData, *, mirrored: bool = False) -> torch.Tensor:
    """Softmax outputs `(n, 10)` of a model with mean and standard deviation 0.5 for the validation images."""
    assert data.validation.pixels is not None
    images = data.validation.pixels.float() / 255 * 2 - 1
    with torch.no_grad():
        return model.eval()(images.flip(-1) if mirrored else images).softmax(dim=-1)


def test_one_teacher_keeps_its_own_logits_bit_for_bit() -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    assert mean_logits([logits], 2.0) is logits


def test_an_ensemble_of_one_model_is_evaluated_as_the_model() -> None:
    model = digits_model(seed=1)
    assert same(evaluate_ensemble([model], digits()), evaluate(model, digits()))


def test_two_equal_models_are_evaluated_as_one() -> None:
    one, found = evaluate(digits_model(seed=1), digits()), evaluate_ensemble([digits_model(seed=1)] * 2, digits())
    assert np.array_equal(found.correct, one.correct) and found.loss == pytest.approx(one.loss, abs=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_the_mean_of_the_softmax_outputs_is_judged(flip: bool) -> None:
    models, data = [digits_model(seed=1), digits_model(seed=2, depth=2)], digits()
    sides = (False, True) if flip else (False,)
    mean = torch.stack([probabilities(model, data, mirrored=side) for model in models for side in sides]).mean(dim=0)
    found = evaluate_ensemble(models, data, flip=flip, batch_size=7)
    chosen = mean.gather(1, data.validation.labels[:, None])
    assert found.predicted is not None and np.array_equal(found.predicted, mean.argmax(dim=1).numpy())
    assert found.loss == pytest.approx(-float(chosen.log().mean()), abs=1e-5)


def test_each_model_has_its_own_images_and_order_of_classes() -> None:
    model, other = digits_model(seed=1), digits_model(seed=1)
    changed: Any = other
    with torch.no_grad():  # the same function of pixels, with outputs in another order and another normalisation
        changed.head.weight.copy_(changed.head.weight.flip(0))
        changed.head.bias.copy_(changed.head.bias.flip(0))
        projection = changed.patch_embed.proj
        projection.bias.add_(projection.weight.sum(dim=(1, 2, 3)) * (0.0 - 1.0))
        projection.weight.mul_(2.0)
    changed.pretrained_cfg = {**changed.pretrained_cfg, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    name_outputs(other, BACKWARDS)
    one, found = evaluate(model, digits()), evaluate_ensemble([model, other], digits())
    assert np.array_equal(found.correct, one.correct) and found.loss == pytest.approx(one.loss, abs=1e-4)
    assert found.predicted is not None and one.predicted is not None
    assert np.array_equal(found.predicted, one.predicted)


def test_a_model_without_the_classes_is_refused() -> None:
    other = digits_model(seed=2, num_classes=3)
    with pytest.raises(DataError, match="3 outputs"):
        evaluate_ensemble([digits_model(), other], digits())


def test_modes_of_models_are_as_before() -> None:
    model = digits_model().train()
    evaluate_ensemble([model, digits_model()], replace(digits()), flip=True)
    assert model.training
