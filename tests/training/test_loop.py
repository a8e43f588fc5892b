"""Laws of the training loop: a pure function of weights, seed and step, wherever it was interrupted."""

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from benchmarks.costs.cases import jpegs
from builders.models import random_plan, same_tensors
from builders.runs import digits, digits_model, read_lines, short_training
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import FolderInUse, NonFiniteLoss, SettingError
from vitrim.losses import DistillationSettings
from vitrim.models import describe
from vitrim.surgery import prune
from vitrim.training.job import TrainingJob
from vitrim.training.loop import TrainingLoop, train
from vitrim.training.settings import TrainingSettings

STEPS_PER_EPOCH = 3  # 60 images, 20 a step
ALL_TERMS = DistillationSettings(soft=1.0, hard=0.5, hidden=0.5, relations=0.5, relation_heads=4, temperature=2.0)
EVERYTHING = short_training(
    epochs=3,
    warmup_epochs=1,
    accumulate=2,
    learning_rate=3e-3,
    layer_decay=0.8,
    drop_path=0.3,
    ema_decay=0.9,
    checkpoint_minutes=0.0,
    augmentation=AugmentationSettings(mixup=0.8, cutmix=1.0),
    distillation=ALL_TERMS,
)


class Stopped(Exception):
    pass


def taught_pair() -> tuple[nn.Module, dict[str, Any]]:
    """A cut student, and the arguments of `train` that name its teacher."""
    teacher = digits_model(depth=4)
    plan = random_plan(describe(teacher), seed=3, blocks=(0, 2, 3))
    return prune(teacher, plan), {"teacher": teacher, "plan": plan}


def stop_at(patch: pytest.MonkeyPatch, step: int, kind: type[BaseException] = KeyboardInterrupt) -> None:
    update = TrainingLoop.update

    def stopping(self: TrainingLoop, *arguments: Any) -> None:
        if self.step == step:
            raise kind
        update(self, *arguments)

    patch.setattr(TrainingLoop, "update", stopping)


def save_only_at(patch: pytest.MonkeyPatch, step: int) -> None:
    save = TrainingLoop.save
    patch.setattr(TrainingLoop, "save", lambda self: save(self) if self.step == step else None)


def differences(first: nn.Module, second: nn.Module) -> float:
    two = second.state_dict()
    return max(float((value - two[name]).abs().max()) for name, value in first.state_dict().items())


# Law 8


@pytest.mark.parametrize("step", [0, 1, 4, 8])
def test_resumed_training_ends_with_the_weights_of_an_uninterrupted_one(step: int, tmp_path: Path) -> None:
    student, arguments = taught_pair()
    data = digits()
    whole = train(student, data, EVERYTHING, **arguments)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, step)
        train(student, data, EVERYTHING, **arguments, run_dir=tmp_path)
    torch.rand(7)  # a new process would have another random state
    resumed = train(student, data, EVERYTHING, **arguments, run_dir=tmp_path)
    assert not same_tensors(whole, student)
    assert same_tensors(whole, resumed)


def test_a_training_interrupted_again_and_again_ends_the_same(tmp_path: Path) -> None:
    student, arguments = taught_pair()
    settings = short_training(epochs=2, checkpoint_minutes=0.0, drop_path=0.2)
    whole = train(student, digits(), settings, **arguments)
    for step in range(1, 2 * STEPS_PER_EPOCH):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, step)
            train(student, digits(), settings, **arguments, run_dir=tmp_path)
    assert same_tensors(whole, train(student, digits(), settings, **arguments, run_dir=tmp_path))


def test_streamed_images_train_the_same_with_any_number_of_workers_and_after_a_stop(tmp_path: Path) -> None:
    images = jpegs(tmp_path, 40, 10, side=16)
    settings = short_training(epochs=3, checkpoint_minutes=0.0, augmentation=AugmentationSettings())
    whole = train(digits_model(), images, replace(settings, num_workers=0))
    assert same_tensors(whole, train(digits_model(), images, replace(settings, num_workers=2)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 3)  # in the middle of the second epoch
        train(digits_model(), images, settings, run_dir=tmp_path / "run")
    assert same_tensors(whole, train(digits_model(), images, settings, run_dir=tmp_path / "run"))


@pytest.mark.parametrize(("saved", "stopped"), [(2, 4), (4, 8), (-1, 7)], ids=["epoch ended", "twice", "no checkpoint"])
def test_metrics_have_one_line_for_each_epoch_after_a_resume(saved: int, stopped: int, tmp_path: Path) -> None:
    model, settings = digits_model(), short_training(epochs=3, checkpoint_minutes=0.0)
    whole = train(model, digits(), settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        save_only_at(patch, saved)
        stop_at(patch, stopped)
        train(model, digits(), settings, run_dir=tmp_path)
    resumed = train(model, digits(), settings, run_dir=tmp_path)
    assert same_tensors(whole, resumed)
    assert [row["epoch"] for row in read_lines(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_finished_training_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, settings = digits_model(), short_training()
    first = train(model, digits(), settings, run_dir=tmp_path)
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    stop_at(monkeypatch, STEPS_PER_EPOCH, Stopped)
    assert same_tensors(first, train(model, digits(), settings, run_dir=tmp_path))
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_stages_share_the_metrics_and_nothing_else(tmp_path: Path) -> None:
    model, settings = digits_model(), short_training(epochs=2)
    alone = train(model, digits(), settings, stage="second")
    train(model, digits(), settings, run_dir=tmp_path, stage="first")
    assert same_tensors(alone, train(model, digits(), settings, run_dir=tmp_path, stage="second"))
    rows = read_lines(tmp_path / "metrics.jsonl")
    assert [(row["stage"], row["epoch"]) for row in rows] == [("first", 1), ("first", 2), ("second", 1), ("second", 2)]


@pytest.mark.parametrize(
    ("changes", "seed", "num_images"),
    [({"learning_rate": 2e-3}, 0, 60), ({"distillation": ALL_TERMS}, 0, 60), ({}, 1, 60), ({}, 0, 59)],
    ids=["settings", "losses", "seed", "data"],
)
def test_a_checkpoint_of_another_training_is_refused(
    changes: dict[str, Any], seed: int, num_images: int, tmp_path: Path
) -> None:
    train(digits_model(), digits(), short_training(), run_dir=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FolderInUse, match="another seed or other data"):
        train(digits_model(), digits(num_images), short_training(**changes), run_dir=tmp_path, seed=seed)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


# What a training leaves alone


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_teacher_is_unchanged_after_distillation(interrupted: bool) -> None:
    student, arguments = taught_pair()
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


def test_the_given_model_is_unchanged() -> None:
    model = digits_model().train()
    before = state_of(model)
    taught = train(model, digits(), short_training(drop_path=0.2, ema_decay=0.9), teacher=model)
    assert state_of(model) == before
    assert not same_tensors(model, taught)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a careless user of it changes."""
    return {
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "modes": [module.training for module in model.modules()],
        "kinds": [type(module) for module in model.modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "gradients": [None if value.grad is None else value.grad.tolist() for value in model.parameters()],
        "trainable": [value.requires_grad for value in model.parameters()],
    }


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_result_is_ready_to_use(ema_decay: float) -> None:
    student, arguments = taught_pair()
    taught = train(student, digits(), short_training(ema_decay=ema_decay, distillation=ALL_TERMS), **arguments)
    assert not any(module.training for module in taught.modules())
    assert all(value.requires_grad and value.grad is None for value in taught.parameters())
    assert not any(module._forward_hooks for module in taught.modules())
    assert type(taught) is type(student)
    assert list(taught.state_dict()) == list(student.state_dict())


def test_random_generators_are_left_as_they_were() -> None:
    def states() -> list[Any]:
        kind, keys, *rest = np.random.get_state()
        return [torch.get_rng_state().tolist(), kind, keys.tolist(), *rest, random.getstate()]

    student, arguments = taught_pair()
    before = states()
    train(student, digits(), EVERYTHING, **arguments)
    assert states() == before


def test_no_epochs_give_the_model_as_it_is(tmp_path: Path) -> None:
    model = digits_model()
    back = train(model, digits(), short_training(epochs=0), run_dir=tmp_path)
    assert back is not model
    assert same_tensors(model, back)
    assert not list(tmp_path.iterdir())


# What a step computes


def test_accumulation_changes_nothing_but_rounding() -> None:
    student, arguments = taught_pair()
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
    assert differences(results[0], student) > 1e-3
    assert differences(results[0], results[1]) < 2e-5
    assert differences(results[0], results[2]) < 2e-5


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(SettingError, match="multiple of 6"):
        train(digits_model(), digits(), short_training(accumulate=3))


def test_evaluating_on_the_way_decides_nothing(tmp_path: Path) -> None:
    model, settings = digits_model(), {"epochs": 3, "drop_path": 0.2, "ema_decay": 0.9}
    looked = train(model, digits(), short_training(**settings, evaluate_every=2), run_dir=tmp_path)
    assert same_tensors(looked, train(model, digits(), short_training(**settings)))
    assert ["top1" in row for row in read_lines(tmp_path / "metrics.jsonl")] == [False, True, True]


def test_a_model_taught_by_itself_has_nothing_to_learn(tmp_path: Path) -> None:
    model = digits_model()
    still = short_training(learning_rate=1e-12, min_learning_rate=0.0, weight_decay=0.0, distillation=ALL_TERMS)
    train(model, digits(), still, teacher=model, run_dir=tmp_path)
    (row,) = read_lines(tmp_path / "metrics.jsonl")
    assert row["hard"] > 0.1
    for term in ("soft", "hidden", "relations"):
        assert abs(row[term]) < 1e-5, term


def test_training_learns() -> None:
    model, data = digits_model(), digits()
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        log = TrainingLoop._log_epoch
        patch.setattr(
            TrainingLoop,
            "_log_epoch",
            lambda self, sums, *rest: (rows.append(float(sums["hard"])), log(self, sums, *rest)),
        )
        train(model, data, short_training(epochs=15, learning_rate=1e-2))
    assert rows[-1] < 0.3 * rows[0]


def test_the_moving_average_is_what_is_returned(tmp_path: Path) -> None:
    model = digits_model()
    averaged = train(model, digits(), short_training(ema_decay=0.9), run_dir=tmp_path)
    plain = train(model, digits(), short_training(ema_decay=0.0))
    with safe_open(tmp_path / "train.checkpoint.safetensors", framework="pt") as file:
        for name, value in averaged.state_dict().items():
            assert torch.equal(file.get_tensor(f"ema.{name}"), value)
            assert torch.equal(file.get_tensor(f"model.{name}"), plain.state_dict()[name])
    assert not same_tensors(averaged, plain)


@pytest.mark.slow
def test_compiled_training_computes_what_the_eager_one_does() -> None:
    student, arguments = taught_pair()
    settings = {"epochs": 1, "distillation": ALL_TERMS, "ema_decay": 0.5}
    eager = train(student, digits(), short_training(**settings), **arguments)
    compiled = train(student, digits(), short_training(**settings, compile=True), **arguments)
    assert differences(eager, compiled) < 1e-4
    assert list(eager.state_dict()) == list(compiled.state_dict())


# A loss that is no number


def test_a_loss_that_is_no_number_names_the_step_and_spares_the_checkpoint(tmp_path: Path) -> None:
    student, arguments = taught_pair()
    whole = train(student, digits(), EVERYTHING, **arguments)
    bad = 4
    with pytest.MonkeyPatch.context() as patch:
        terms = TrainingLoop.loss_terms

        def breaking(self: TrainingLoop, *args: Any) -> dict[str, torch.Tensor]:
            found = terms(self, *args)
            return {**found, "soft": found["soft"] * torch.nan} if self.step == bad else found

        patch.setattr(TrainingLoop, "loss_terms", breaking)
        with pytest.raises(NonFiniteLoss, match=rf"step {bad} \(epoch 2\) of train.*last good checkpoint is .*train"):
            train(student, digits(), EVERYTHING, **arguments, run_dir=tmp_path)
    with safe_open(tmp_path / "train.checkpoint.safetensors", framework="pt") as file:
        assert int(file.metadata()["step"]) == bad
        assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1
    assert same_tensors(whole, train(student, digits(), EVERYTHING, **arguments, run_dir=tmp_path))


def test_a_rate_far_too_high_is_found_before_anything_is_kept(tmp_path: Path) -> None:
    wild = short_training(epochs=2, learning_rate=1e30)
    with pytest.raises(NonFiniteLoss, match=r"step 1 .*lower learning rate"):
        train(digits_model(), digits(), wild, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_settings_are_checked_where_they_are_made() -> None:
    for changes in ({"epochs": -1}, {"accumulate": 0}, {"learning_rate": 0.0}, {"ema_decay": 1.5}, {"batch_size": 1}):
        with pytest.raises(SettingError, match=next(iter(changes))):
            TrainingSettings(**changes)
    with pytest.raises(SettingError, match=r"num_workers is -1"):
        TrainingSettings(num_workers=-1)
    assert TrainingSettings().num_workers == "auto"


def test_the_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    train(digits_model(), digits(), short_training(ema_decay=0.9), run_dir=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "train.checkpoint.safetensors"]
    with safe_open(tmp_path / "train.checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["identity"])["seed"] == 0
        assert {name.partition(".")[0] for name in file.keys()} == {"model", "ema", "optimizer"}  # noqa: SIM118


def test_training_a_copy_equals_training_the_model() -> None:
    model = digits_model()
    assert same_tensors(
        train(model, digits(), short_training()), train(copy.deepcopy(model), digits(), short_training())
    )


def test_the_rate_warms_up_to_its_peak_and_falls_to_its_least() -> None:
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


def test_a_frozen_model_is_trained_all_the_same() -> None:
    model = digits_model().requires_grad_(False)
    trained = train(model, digits(), short_training())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not same_tensors(model, trained)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    train(digits_model(), digits(), short_training(), run_dir=tmp_path / "new")
    with pytest.raises(FolderInUse, match="another model or teacher"):
        train(digits_model(seed=1), digits(), short_training(), run_dir=tmp_path / "new")
