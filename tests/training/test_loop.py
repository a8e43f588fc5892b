"""Laws of the training loop: what it computes, what it returns, and what it does not change."""

import copy
import random
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import nn

from builders.fake_gpu import fake_gpu
from builders.models import has_hooks, hook_counts, same_tensors
from builders.runs import digits, digits_model, read_lines, short_training
from builders.trainings import ALL_TERMS, EVERYTHING, max_difference, stop_at, student_and_teacher
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import NonFiniteLoss
from vitrim.losses import DistillationLoss
from vitrim.models import describe
from vitrim.training.job import TrainingJob
from vitrim.training.loop import TrainingLoop
from vitrim.training.train import train

# What a training does not change


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_teacher_is_unchanged_after_distillation(interrupted: bool) -> None:
    student, arguments = student_and_teacher()
    teacher = arguments["teacher"]
    teacher.train()
    teacher.blocks[0].eval()
    teacher.head.weight.requires_grad_(False)
    teacher.norm.weight.grad = torch.ones_like(teacher.norm.weight)
    before = state_of(teacher)
    with pytest.MonkeyPatch.context() as patch:
        if interrupted:
            stop_at(patch, 2)
            with pytest.raises(KeyboardInterrupt):
                train(student, digits(), EVERYTHING, **arguments)
        else:
            train(student, digits(), EVERYTHING, **arguments)
    assert state_of(teacher) == before


def test_the_model_that_is_passed_is_unchanged() -> None:
    model = digits_model().train()
    before = state_of(model)
    trained = train(model, digits(), short_training(drop_path=0.2, ema_decay=0.9), teacher=model)
    assert state_of(model) == before
    assert not same_tensors(model, trained)


def test_training_a_copy_equals_training_the_model() -> None:
    model = digits_model()
    assert same_tensors(
        train(model, digits(), short_training()), train(copy.deepcopy(model), digits(), short_training())
    )


def test_all_parameters_of_a_frozen_model_are_trained() -> None:
    model = digits_model().requires_grad_(False)
    trained = train(model, digits(), short_training())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not same_tensors(model, trained)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a training might change."""
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "classes": [type(module) for module in model.modules()],
        "hooks": hook_counts(model),
        "gradients": [None if value.grad is None else value.grad.tolist() for value in model.parameters()],
        "trainable": [value.requires_grad for value in model.parameters()],
    }


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_result_is_an_ordinary_model_in_eval_mode(ema_decay: float) -> None:
    student, arguments = student_and_teacher()
    trained = train(student, digits(), short_training(ema_decay=ema_decay, distillation=ALL_TERMS), **arguments)
    assert not any(module.training for module in trained.modules())
    assert all(value.requires_grad and value.grad is None for value in trained.parameters())
    assert not has_hooks(trained)
    assert type(trained) is type(student)
    assert list(trained.state_dict()) == list(student.state_dict())


def test_the_states_of_random_generators_are_not_changed() -> None:
    def states() -> list[Any]:
        kind, keys, *rest = np.random.get_state()
        return [torch.get_rng_state().tolist(), kind, keys.tolist(), *rest, random.getstate()]

    student, arguments = student_and_teacher()
    before = states()
    train(student, digits(), EVERYTHING, **arguments)
    assert states() == before


def test_zero_epochs_return_an_equal_copy(tmp_path: Path) -> None:
    model = digits_model()
    copied = train(model, digits(), short_training(epochs=0), run_dir=tmp_path)
    assert copied is not model
    assert same_tensors(model, copied)
    assert not list(tmp_path.iterdir())


# What a step computes


def test_accumulation_changes_nothing_but_rounding() -> None:
    student, arguments = student_and_teacher()
    mixing = AugmentationSettings(mixup=0.8, cutmix=1.0)
    results = [
        train(
            student,
            digits(),
            short_training(epochs=2, accumulate=accumulate, augmentation=mixing, distillation=ALL_TERMS),
            **arguments,
        )
        for accumulate in (1, 2, 5)
    ]
    assert max_difference(results[0], student) > 1e-3
    assert max_difference(results[0], results[1]) < 2e-5
    assert max_difference(results[0], results[2]) < 2e-5


def test_evaluations_during_training_do_not_change_the_result(tmp_path: Path) -> None:
    model, settings = digits_model(), {"epochs": 3, "drop_path": 0.2, "ema_decay": 0.9}
    evaluated = train(model, digits(), short_training(**settings, evaluate_every=2), run_dir=tmp_path)
    assert same_tensors(evaluated, train(model, digits(), short_training(**settings)))
    assert ["top1" in row for row in read_lines(tmp_path / "metrics.jsonl")] == [False, True, True]


def test_the_distillation_terms_of_a_model_with_itself_are_zero(tmp_path: Path) -> None:
    model = digits_model()
    terms = replace(ALL_TERMS, flip=False)
    frozen = short_training(learning_rate=1e-12, min_learning_rate=0.0, weight_decay=0.0, distillation=terms)
    train(model, digits(), frozen, teacher=model, run_dir=tmp_path)
    (row,) = read_lines(tmp_path / "metrics.jsonl")
    assert row["hard"] > 0.1
    for term in ("soft", "hidden", "relations"):
        assert abs(row[term]) < 1e-5, term


def test_the_loss_on_labels_falls(tmp_path: Path) -> None:
    train(digits_model(), digits(), short_training(epochs=15, learning_rate=1e-2), run_dir=tmp_path)
    losses = [row["hard"] for row in read_lines(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]


def test_the_moving_average_is_returned(tmp_path: Path) -> None:
    model = digits_model()
    averaged = train(model, digits(), short_training(ema_decay=0.9), run_dir=tmp_path)
    plain = train(model, digits(), short_training(ema_decay=0.0))
    with safe_open(tmp_path / "train.checkpoint.safetensors", framework="pt") as file:
        for name, value in averaged.state_dict().items():
            assert torch.equal(file.get_tensor(f"ema.{name}"), value)
            assert torch.equal(file.get_tensor(f"model.{name}"), plain.state_dict()[name])
    assert not same_tensors(averaged, plain)


@pytest.mark.parametrize("batch_size", [20, "auto"])
def test_distillation_in_bf16_computes_nearly_the_same_loss(batch_size: int | str, tmp_path: Path) -> None:
    student, arguments = student_and_teacher()
    losses = {}
    for precision in ("fp32", "bf16"):
        settings = {"epochs": 2, "distillation": ALL_TERMS, "batch_size": batch_size, "precision": precision}
        train(student, digits(), short_training(**settings), run_dir=tmp_path / precision, **arguments)
        losses[precision] = [row["loss"] for row in read_lines(tmp_path / precision / "metrics.jsonl")]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses["bf16"] != losses["fp32"]


def test_an_update_on_a_gpu_never_waits_for_the_device_and_sends_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    student, arguments = student_and_teacher()
    teacher = arguments["teacher"]
    settings = replace(EVERYTHING, precision="fp32", ema_decay=0.0)  # timm's average refuses this device
    loss = DistillationLoss.between(ALL_TERMS, describe(student), describe(teacher), arguments["plan"])
    monkeypatch.setattr(Accelerator, "device", torch.device("meta"))
    with fake_gpu("meta") as counts:
        loop = TrainingLoop(TrainingJob(model=student, data=digits(), settings=settings, loss=loss, teacher=teacher))
        with loop.forward_functions() as forwards, closing(loop.batches()) as batches:
            for _ in range(2):
                sent, calls = counts.bytes_to_device, counts.calls
                loop.update(next(batches), *forwards, {})
    assert counts.calls > calls + 100
    assert counts.bytes_to_device - sent < 200 * settings.batch_size


@pytest.mark.gpu
def test_an_update_does_not_wait_for_a_real_gpu() -> None:
    student, arguments = student_and_teacher()
    teacher = arguments["teacher"]
    loss = DistillationLoss.between(ALL_TERMS, describe(student), describe(teacher), arguments["plan"])
    data = digits().to("cuda")
    loop = TrainingLoop(TrainingJob(model=student, data=data, settings=EVERYTHING, loss=loss, teacher=teacher))
    with loop.forward_functions() as forwards, closing(loop.batches()) as batches:
        sums: dict[str, Any] = {}
        loop.update(next(batches), *forwards, sums)
        torch.cuda.set_sync_debug_mode("error")
        try:
            loop.update(next(batches), *forwards, sums)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_min() -> None:
    settings = short_training(epochs=6, warmup_epochs=2, learning_rate=1e-3, min_learning_rate=1e-5)
    loop = TrainingLoop(TrainingJob(model=digits_model(), data=digits(), settings=settings))
    rates = []
    for step in range(loop.total_steps):
        loop.scheduler.step_update(step)
        rates.append(loop.optimizer.param_groups[0]["lr"])
    peak = rates.index(max(rates))
    assert peak == 2 * loop.steps_per_epoch and max(rates) == pytest.approx(1e-3)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 1e-4


def test_a_learning_rate_that_is_far_too_high_is_found_before_a_checkpoint_is_written(tmp_path: Path) -> None:
    too_high = short_training(epochs=2, learning_rate=1e30)
    with pytest.raises(NonFiniteLoss, match=r"step 1 .*lower learning rate"):
        train(digits_model(), digits(), too_high, run_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"digests.json", "metrics.jsonl"}
    assert ["event" in row for row in read_lines(tmp_path / "metrics.jsonl")] == [True, True]
