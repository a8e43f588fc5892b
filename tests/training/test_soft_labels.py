"""Laws of soft labels: a teacher sees what it was trained on, and several teach by the mean of their outputs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from builders.fake_gpu import fake_gpu
from builders.runs import digits, digits_model, short_training
from builders.teachers import Wrapped, cnn
from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import normalise
from vitrim.hooks import recorded_states
from vitrim.losses import DistillationLoss, DistillationSettings
from vitrim.models import describe
from vitrim.training.distillation import loss_between
from vitrim.training.job import TrainingJob
from vitrim.training.loop import TrainingLoop
from vitrim.training.soft_labels import SoftLabels
from vitrim.training.teachers import Teacher

DIGITS = tuple(str(digit) for digit in range(10))
BACKWARDS = tuple(reversed(range(10)))


def pixels() -> Tensor:
    return torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def soft_labels(
    *models: nn.Module, compared: nn.Module | None = None, mirrored: bool = False, **changes: Any
) -> Tensor:
    """The soft labels for `pixels`, or their mirror images, as the student's training computes them."""
    student = digits_model()
    settings = short_training(distillation=DistillationSettings(hidden=0.0, **changes))
    job = TrainingJob(
        model=student,
        data=digits(),
        settings=settings,
        loss=DistillationLoss.of_outputs(settings.distillation),
        teacher=compared,
        soft_labels=tuple(Teacher.of(model, student, DIGITS) for model in models),
    )
    with torch.no_grad():
        images = normalise(pixels(), preprocessing_of(student))
        return SoftLabels(job, torch.device("cpu"))(images.flip(-1) if mirrored else images)


class Symmetric(nn.Module):
    """The mean of a model's logits for an image and its mirror image."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = (self.model(images) + self.model(images.flip(-1))) / 2
        return logits


def softened(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(dim=-1)


def alone(model: Any) -> Tensor:
    """The outputs of a model in eval mode for `pixels`, prepared with its own mean and standard deviation."""
    config = model.pretrained_cfg
    own = replace(preprocessing_of(digits_model()), mean=tuple(config["mean"]), std=tuple(config["std"]))
    with torch.no_grad():
        return model.eval()(normalise(pixels(), own))


def test_a_teacher_with_other_normalisation_computes_what_it_computes_alone() -> None:
    teacher: Any = digits_model(seed=1)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
    assert torch.allclose(soft_labels(teacher), alone(teacher), atol=1e-4)
    assert not torch.allclose(alone(digits_model(seed=1)), alone(teacher), atol=1e-2)


def test_a_convolutional_teacher_computes_what_it_computes_alone() -> None:
    assert torch.allclose(soft_labels(cnn().eval()), alone(cnn()), atol=1e-4)


@pytest.mark.parametrize("returned", ["tensor", "tuple", "dict"])
def test_outputs_are_put_into_the_order_of_the_student(returned: str) -> None:
    model = digits_model(seed=1)
    found = soft_labels(Wrapped(model, order=BACKWARDS, returned=returned))
    assert torch.allclose(found, soft_labels(model), atol=1e-5)


def test_of_a_teacher_with_more_classes_those_of_the_student_are_used() -> None:
    model = digits_model(seed=1, num_classes=13)
    teacher = Wrapped(model, order=range(13))
    assert torch.allclose(soft_labels(teacher), alone(teacher)[:, :10], atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_teachers_teach_the_mean_of_their_softmax_outputs(temperature: float) -> None:
    teachers = [digits_model(seed=1), cnn().eval(), Wrapped(digits_model(seed=2), order=BACKWARDS)]
    found = (soft_labels(*teachers, temperature=temperature) / temperature).softmax(dim=-1)
    single = [(soft_labels(teacher) / temperature).softmax(dim=-1) for teacher in teachers]
    assert torch.allclose(found, torch.stack(single).mean(dim=0), atol=1e-5)


def test_the_compared_model_gives_no_labels_where_others_do() -> None:
    teacher, dense = cnn().eval(), digits_model()
    assert torch.equal(soft_labels(teacher, compared=dense), soft_labels(teacher))
    assert torch.equal(soft_labels(dense, compared=dense), soft_labels(dense))


def test_a_teacher_from_elsewhere_sends_nothing_to_a_gpu_and_never_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = digits_model()
    settings = short_training(distillation=DistillationSettings(hidden=0.0))
    teachers = [
        Teacher.of(model, student, DIGITS) for model in (cnn(side=32), Wrapped(digits_model(), order=BACKWARDS))
    ]
    loss = DistillationLoss.of_outputs(settings.distillation)
    job = TrainingJob(model=student, data=digits(), settings=settings, loss=loss, soft_labels=tuple(teachers))
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    with fake_gpu("meta") as counts:
        loop = TrainingLoop(job)
        with loop.forward_functions() as (_, teach):
            images = torch.empty(4, 3, 8, 8, device="meta")
            sent, calls = counts.bytes_to_device, counts.calls
            assert teach(images).shape == (4, 10)
    assert counts.calls > calls + 20 and counts.bytes_to_device == sent


def test_with_flip_the_mean_over_images_and_mirror_images_is_learned_from_one_teacher_and_from_several() -> None:
    teachers = [digits_model(seed=1), cnn().eval(), Wrapped(digits_model(seed=2), order=BACKWARDS)]
    temperature, means = 2.0, []
    for teacher in teachers:
        plain, mirrored = (soft_labels(teacher, mirrored=mirrored) for mirrored in (False, True))
        assert not torch.allclose(plain, mirrored, atol=1e-3)
        means.append((softened(plain, temperature) + softened(mirrored, temperature)) / 2)
        found = soft_labels(teacher, temperature=temperature, flip=True)
        assert torch.allclose(softened(found, temperature), means[-1], atol=1e-5)
    found = soft_labels(*teachers, temperature=temperature, flip=True)
    assert torch.allclose(softened(found, temperature), torch.stack(means).mean(dim=0), atol=1e-5)


def test_a_teacher_that_sees_no_side_teaches_the_same_with_and_without_flip() -> None:
    teacher = Symmetric(digits_model(seed=1))
    plain, flipped = soft_labels(teacher), soft_labels(teacher, flip=True)
    assert torch.allclose(plain.softmax(dim=-1), flipped.softmax(dim=-1), atol=1e-6)


@pytest.mark.parametrize("has_others", [False, True])
def test_hidden_states_of_the_images_themselves_are_recorded_and_a_compared_teacher_runs_once(has_others: bool) -> None:
    student, dense, passes = digits_model(), digits_model(seed=1), 0

    def count(*unused: Any) -> None:
        nonlocal passes
        passes += 1

    settings = short_training(distillation=DistillationSettings(flip=True))
    job = TrainingJob(
        model=student,
        data=digits(),
        settings=settings,
        loss=loss_between(student, dense, None, settings.distillation),
        teacher=dense,
        soft_labels=(Teacher.of(cnn(), student, DIGITS),) if has_others else (),
    )
    images = normalise(pixels(), preprocessing_of(student))
    names = [block.name for block in describe(dense).blocks]
    with torch.no_grad(), recorded_states(dense, names) as expected:
        dense.eval()(images)
    dense.register_forward_hook(count)
    with TrainingLoop(job).forward_functions() as (_, teach), torch.no_grad(), recorded_states(dense, names) as found:
        teach(images)
    assert passes == (1 if has_others else 2)
    assert all(torch.equal(found[name], expected[name]) for name in names)
