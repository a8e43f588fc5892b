"""Laws of the checks before a training: what cannot be trained is refused, and the identity names what is trained."""

import json
from dataclasses import replace

import pytest

from builders.runs import digits, digits_model, short_training
from vitrim.errors import SettingError
from vitrim.losses import DistillationLoss, DistillationSettings
from vitrim.models import describe
from vitrim.training.job import TrainingJob, check_training, is_same_training
from vitrim.training.train import train


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(SettingError, match="multiple of 6"):
        train(digits_model(), digits(), short_training(accumulate=3))


def test_a_loss_term_that_does_not_fit_the_model_is_refused_before_images_are_read() -> None:
    settings = short_training(distillation=DistillationSettings(relations=1.0, relation_heads=3))
    with pytest.raises(SettingError, match="relation_heads is 3"):
        check_training(settings, describe(digits_model()))


def test_the_identity_depends_on_weights_settings_seed_and_data() -> None:
    job = TrainingJob(model=digits_model(), data=digits(), settings=short_training())
    others = [
        replace(job, model=digits_model(seed=1)),
        replace(job, teacher=digits_model()),
        replace(job, data=digits(59)),
        replace(job, settings=short_training(learning_rate=2e-3)),
        replace(job, seed=1),
    ]
    assert replace(job, model=digits_model(), data=digits()).identity == job.identity
    assert len({job.identity, *(other.identity for other in others)}) == 6


def test_a_checkpoint_of_a_version_without_mirror_images_belongs_to_the_training_without_them() -> None:
    settings = short_training()
    job = TrainingJob(
        model=digits_model(), data=digits(), settings=settings, loss=DistillationLoss.of_outputs(settings.distillation)
    )
    earlier = json.loads(job.identity)
    del earlier["settings"]["distillation"]["flip"]
    earlier["loss"] = earlier["loss"].replace(", flip=False", "")
    flipped = DistillationSettings(flip=True)
    other = replace(job, settings=short_training(distillation=flipped), loss=DistillationLoss.of_outputs(flipped))
    assert earlier["loss"] != json.loads(job.identity)["loss"]
    assert is_same_training(json.dumps(earlier), job.identity)
    assert not is_same_training(json.dumps(earlier), other.identity)
