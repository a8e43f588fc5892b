"""Laws of teachers from elsewhere: they teach what they know, are not changed, and are refused if they do not fit."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from builders.models import same_tensors
from builders.runs import digits, digits_model, read_lines, short_training
from builders.teachers import Wrapped, cnn, linear_classifier
from builders.trainings import stop_at, student_and_teacher
from vitrim.data.augmentation import AugmentationSettings
from vitrim.errors import FolderInUse, SettingError
from vitrim.losses import DistillationSettings
from vitrim.training.train import train

OUTPUTS = DistillationSettings(hidden=0.0)
BACKWARDS = tuple(reversed(range(10)))
FROZEN = {"learning_rate": 1e-12, "min_learning_rate": 0.0, "weight_decay": 0.0}


@pytest.mark.parametrize("order", [range(10), BACKWARDS], ids=["same order", "another order"])
def test_nothing_is_left_to_learn_from_a_teacher_that_computes_the_same_in_its_own_way(
    order: Any, tmp_path: Path
) -> None:
    """With every augmentation: the teacher is shown the student's view."""
    student = digits_model()
    settings = short_training(**FROZEN, augmentation=AugmentationSettings(crop="resized"), distillation=OUTPUTS)
    train(student, digits(), settings, teacher=Wrapped(student, order=order), run_dir=tmp_path)
    train(student, digits(), settings, teacher=digits_model(seed=1), run_dir=tmp_path / "other")
    assert abs(read_lines(tmp_path / "metrics.jsonl")[0]["soft"]) < 1e-6
    assert read_lines(tmp_path / "other" / "metrics.jsonl")[0]["soft"] > 1e-2


def test_a_teacher_of_another_kind_is_unchanged_after_distillation() -> None:
    teachers: list[nn.Module] = [cnn().train(), Wrapped(digits_model(seed=1)).train()]
    before = copy.deepcopy(teachers)
    trained = train(digits_model(), digits(), short_training(), teacher=teachers)
    assert not same_tensors(trained, digits_model())
    for teacher, old in zip(teachers, before, strict=True):
        assert same_tensors(teacher, old)
        assert all(module.training for module in teacher.modules())
        assert all(value.grad is None and value.requires_grad for value in teacher.parameters())


def test_a_list_of_one_model_is_that_model() -> None:
    student, teacher = digits_model(), digits_model(seed=1)
    one, listed = (
        train(student, digits(), short_training(), teacher=one_or_list) for one_or_list in (teacher, [teacher])
    )
    assert same_tensors(one, listed)


def test_a_teacher_in_half_precision_teaches() -> None:
    student, teacher = digits_model(), digits_model(seed=1).to(torch.bfloat16)
    assert not same_tensors(train(student, digits(), short_training(), teacher=teacher), student)


# Resuming


def test_a_resumed_training_with_other_teachers_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    student, arguments = student_and_teacher()
    settings = short_training(epochs=2, checkpoint_minutes=0.0, augmentation=AugmentationSettings())
    arguments["teacher"] = [arguments["teacher"], cnn()]
    uninterrupted = train(student, digits(), settings, **arguments)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 4)
        train(student, digits(), settings, **arguments, run_dir=tmp_path)
    assert same_tensors(uninterrupted, train(student, digits(), settings, **arguments, run_dir=tmp_path))
    arguments["teacher"][1] = cnn(seed=1)
    with pytest.raises(FolderInUse, match="another model or teacher"):
        train(student, digits(), settings, **arguments, run_dir=tmp_path)


def test_a_teacher_with_other_preprocessing_does_not_continue_a_training(tmp_path: Path) -> None:
    teacher: Any = digits_model(seed=1)
    train(digits_model(), digits(), short_training(), teacher=teacher, run_dir=tmp_path)
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, "mean": (0.1, 0.2, 0.3)}
    with pytest.raises(FolderInUse, match="another model or teacher"):
        train(digits_model(), digits(), short_training(), teacher=teacher, run_dir=tmp_path)


# Hidden states


@pytest.mark.parametrize(
    ("teacher", "reason"),
    [
        (cnn, "no Vision Transformer"),
        (lambda: digits_model(depth=2), "has 2 blocks and the student 3"),
        (lambda: digits_model(embed_dim=32), "of width 32 and the student of width 16"),
        (lambda: digits_model(img_size=16), r"shape \(17, 16\) after block 0 and the student of shape \(5, 16\)"),
    ],
    ids=["no ViT", "depth", "width", "tokens"],
)
def test_hidden_states_that_do_not_fit_are_left_out_and_this_is_said(
    teacher: Callable[[], nn.Module], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(digits_model(), digits(), short_training(), teacher=teacher(), run_dir=tmp_path)
    (row,) = read_lines(tmp_path / "metrics.jsonl")
    assert row["soft"] == row["loss"] and "hidden" not in row
    assert_said(capsys, f"only its outputs are learned, because it .*{reason}")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"hidden": 0.5}, r"distillation\.hidden is 0.5, but the teacher resnet10t is no .*; set it to 0"),
        ({"relations": 1.0, "relation_heads": 4}, r"distillation\.relations is 1, but"),
        ({"soft": 0.0}, r"Only distillation\.hidden is above 0, but .*; set distillation\.soft above 0"),
    ],
    ids=["hidden", "relations", "nothing else"],
)
def test_hidden_states_that_were_asked_for_and_do_not_fit_are_refused(weights: dict[str, Any], message: str) -> None:
    settings = short_training(distillation=DistillationSettings(**weights))
    with pytest.raises(SettingError, match=message):
        train(digits_model(), digits(), settings, teacher=cnn())


def assert_said(capsys: pytest.CaptureFixture[str], pattern: str) -> None:
    assert re.search(pattern, capsys.readouterr().err.replace("\n", " "))


def test_what_is_not_known_of_a_teacher_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    train(digits_model(), digits(), short_training(), teacher=model)
    assert_said(capsys, r"teacher Sequential: .*assumed, because it does not say .*set its attribute `pretrained_cfg`")


def test_a_teacher_is_tried_on_images_and_one_that_only_guesses_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    data = digits(num_train=400)
    settings = short_training(batch_size=400)
    train(digits_model(), data, settings, teacher=linear_classifier(data))
    said = capsys.readouterr().err
    num_right = int(re.findall(r"right on (\d+) of 50 validation images", said)[0])
    assert num_right > 35 and "no better than chance" not in said and "have no names, so this is assumed" in said
    train(digits_model(), data, settings, teacher=linear_classifier(data, order=[*range(1, 10), 0]))
    assert_said(capsys, r"no better than chance: are its weights trained, and are its classes in this order\?")


def test_a_teacher_whose_outputs_are_all_between_0_and_1_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    data, settings = digits(), short_training(distillation=OUTPUTS)
    sigmoid = nn.Sequential(linear_classifier(data), nn.Sigmoid())  # trained with binary cross-entropy
    train(digits_model(), data, settings, teacher=sigmoid)
    assert_said(capsys, "outputs are all between 0 and 1, as probabilities are: are they logits")
    train(digits_model(), data, settings, teacher=linear_classifier(data))
    assert "between 0 and 1" not in capsys.readouterr().err


# Refusals


class _Returning(nn.Module):
    """Returns something else than logits."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(192, 10)

    def forward(self, images: torch.Tensor) -> Any:
        logits = self.layer(images.flatten(1))
        changed = {
            "probabilities": logits.softmax(-1),
            "NaN": logits * torch.nan,
            "tokens": logits[:, None],
            "text": "a",
        }
        return changed[self.kind]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "1,000 classes": (
        lambda: cnn(1000),
        "resnet10t has 1000 outputs and no class names, but the student has 10 classes",
    ),
    "other names": (lambda: Wrapped(digits_model(num_classes=12), order=range(2, 12)), "no output for 2 of .* 0, 1"),
    "a name twice": (lambda: Wrapped(digits_model(), order=[0, *range(10)]), "several outputs of the name 0"),
    "four channels": (lambda: _with_input(4), "cannot be run on images of 3x8x8 values"),
    "another size": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 10)), "cannot be run on images of 3x8x8"),
    "probabilities": (lambda: _Returning("probabilities"), "returns probabilities; expected logits"),
    "NaN": (lambda: _Returning("NaN"), "not a number"),
    "tokens": (lambda: _Returning("tokens"), r"returns \(2, 1, 10\) for 2 images"),
    "text": (lambda: _Returning("text"), "returns a str without logits"),
    "a name": (lambda: "resnet18", "expected a model"),
    "nothing": (lambda: [], "an empty list; expected a model"),
}


def _with_input(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 10, 8), nn.Flatten())


@pytest.mark.parametrize("name", REFUSED)
def test_a_teacher_that_does_not_fit_is_refused_before_the_training(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(SettingError, match=message):
        train(digits_model(), digits(), short_training(), teacher=make(), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
