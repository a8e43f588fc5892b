"""Laws of the target: it is what is learned, evaluated like a model."""

import numpy as np
import pytest

from builders.runs import digits, digits_model, short_training
from vitrim.ensembles import evaluate_ensemble
from vitrim.evaluation import evaluate
from vitrim.losses import DistillationSettings
from vitrim.training.distillation import Teachers
from vitrim.training.target import evaluate_target
from vitrim.training.teachers import checked_teachers


def test_the_target_of_the_dense_model_alone_is_its_own_output() -> None:
    dense = digits_model()
    found = evaluate_target(dense, digits(), Teachers(compared=dense), short_training())
    assert found.to_dict() == evaluate(dense, digits()).to_dict()


@pytest.mark.parametrize("flip", [False, True])
def test_the_target_is_the_ensemble_of_the_teachers(flip: bool) -> None:
    dense, teachers = digits_model(), [digits_model(seed=1), digits_model(seed=2)]
    settings = short_training(distillation=DistillationSettings(flip=flip))
    found = evaluate_target(
        dense, digits(), Teachers(compared=dense, labels=checked_teachers(teachers, dense, digits())), settings
    )
    ensemble = evaluate_ensemble(teachers, digits(), flip=flip)
    assert np.array_equal(found.correct, ensemble.correct) and found.loss == pytest.approx(ensemble.loss, abs=1e-5)
