"""Laws of the loss terms, and of the modules whose hidden states they compare."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from builders.models import build, random_images, random_plan
from vitrim.errors import SettingError
from vitrim.hooks import recorded_states
from vitrim.losses import DistillationLoss, DistillationSettings, hidden_loss, relation_loss, soft_loss
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.surgery import prune


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise of this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_loss_and_its_gradient_are_zero_at_the_teacher_and_the_loss_is_positive_elsewhere(
    temperature: float,
) -> None:
    teacher = noise(6, 5)
    student = teacher.clone().requires_grad_()
    loss = soft_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12
    for seed in range(1, 6):
        assert soft_loss(teacher + 0.1 * noise(6, 5, seed=seed), teacher, temperature) > 0


def test_soft_loss_depends_on_differences_of_logits_only() -> None:
    student, teacher = noise(6, 5), noise(6, 5, seed=1)
    assert soft_loss(student + 3, teacher - 2, 2.0).item() == pytest.approx(soft_loss(student, teacher, 2.0).item())


def test_soft_loss_at_temperature_one_is_cross_entropy_minus_the_teachers_entropy() -> None:
    student, teacher = noise(6, 5), noise(6, 5, seed=1)
    probabilities = teacher.softmax(dim=-1)
    entropy = -(probabilities * probabilities.log()).sum(dim=-1).mean()
    expected = F.cross_entropy(student, probabilities) - entropy
    assert soft_loss(student, teacher, 1.0).item() == pytest.approx(expected.item())


def test_the_gradient_keeps_its_size_at_high_temperature() -> None:
    """For large T, the gradient is that of half the mean squared difference of centred logits, divided by C."""
    teacher = noise(6, 5, seed=1)
    norms = []
    for temperature in (1e2, 1e4):
        student = noise(6, 5).requires_grad_()
        soft_loss(student, teacher, temperature).backward()
        difference = student.detach() - teacher
        expected = (difference - difference.mean(dim=-1, keepdim=True)) / (5 * 6)
        assert torch.allclose(student.grad, expected, rtol=10 / temperature, atol=1 / temperature)
        norms.append(student.grad.norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=0.05)


@pytest.mark.parametrize("loss", [hidden_loss, lambda s, t: relation_loss(s, t, 2)], ids=["hidden", "relations"])
def test_feature_losses_are_zero_for_equal_models_and_average_over_images(loss: Any) -> None:
    student, teacher = noise(6, 5, 12), noise(6, 5, 12, seed=1)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, teacher) > 0
    parts = torch.stack([loss(student[i : i + 2], teacher[i : i + 2]) for i in (0, 2, 4)])
    assert loss(student, teacher).item() == pytest.approx(parts.mean().item())
    assert loss(student.repeat(2, 1, 1), teacher.repeat(2, 1, 1)).item() == pytest.approx(loss(student, teacher).item())


def test_hidden_loss_is_the_error_divided_by_the_teachers_variance() -> None:
    student, teacher = noise(6, 5, 12), 3 + 2 * noise(6, 5, 12, seed=1)
    error, variance = (student - teacher).square().mean(dim=(1, 2)), teacher.var(dim=(1, 2))
    assert hidden_loss(student, teacher).item() == pytest.approx((error / variance).mean().item(), rel=1e-12)


def test_hidden_loss_does_not_depend_on_the_scale() -> None:
    student, teacher = noise(6, 5, 12), noise(6, 5, 12, seed=1)
    assert hidden_loss(100 * student, 100 * teacher).item() == pytest.approx(hidden_loss(student, teacher).item())


def test_a_teacher_without_variance_gives_a_finite_loss() -> None:
    assert hidden_loss(noise(2, 3, 4), torch.ones(2, 3, 4, dtype=torch.float64)).isfinite()


def test_relations_compare_models_with_different_numbers_of_heads() -> None:
    student = noise(3, 5, 3 * 2 * 4).requires_grad_()  # two heads of width 4, the teacher has five
    loss = relation_loss(student, noise(3, 5, 3 * 5 * 4, seed=1), 4)
    loss.backward()
    assert loss > 0 and student.grad.isfinite().all()


def test_relations_are_those_of_the_paper() -> None:
    student, teacher = noise(2, 3, 3 * 4), noise(2, 3, 3 * 4, seed=1)
    total = 0.0
    for image in range(2):
        for third in range(3):
            for head in range(2):
                columns = slice(4 * third + 2 * head, 4 * third + 2 * head + 2)
                states = teacher[image, :, columns], student[image, :, columns]
                p, q = ((x @ x.T / 2**0.5).softmax(dim=-1) for x in states)
                total += (p * (p / q).log()).sum().item() / 3  # mean over the three tokens
    assert relation_loss(student, teacher, 2).item() == pytest.approx(total / (2 * 3 * 2))


def run(settings: DistillationSettings, blocks: tuple[int, ...] = (0, 3)) -> tuple[dict[str, Tensor], dict, dict]:
    """The terms for a smaller model and its teacher, and the recorded hidden states of both."""
    teacher = build()
    plan = random_plan(describe(teacher), seed=1, blocks=blocks)
    student = prune(teacher, plan)
    loss = DistillationLoss.between(settings, describe(student), describe(teacher), plan)
    images, targets = random_images(), F.one_hot(torch.arange(4), 7).double()
    with (
        recorded_states(student, loss.recorded_in_student()) as student_states,
        recorded_states(teacher, loss.recorded_in_teacher()) as teacher_states,
    ):
        outputs = student(images), teacher(images)
    return loss(*outputs, targets, student_states, teacher_states), student_states, teacher_states


TERMS = ("soft", "hard", "hidden", "relations")


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_zero_is_not_computed(name: str) -> None:
    settings = DistillationSettings(**{**dict.fromkeys(TERMS, 0.0), name: 2.0}, relation_heads=2)
    terms, student_states, teacher_states = run(settings)
    assert list(terms) == [name]
    assert bool(student_states) == bool(teacher_states) == (name in ("hidden", "relations"))
    half = DistillationSettings(**{**dict.fromkeys(TERMS, 0.0), name: 1.0}, relation_heads=2)
    assert terms[name].item() == pytest.approx(2 * run(half)[0][name].item())


def test_the_value_of_a_term_does_not_depend_on_the_other_terms() -> None:
    terms = run(DistillationSettings(soft=1, hard=1, hidden=1, relations=1, relation_heads=4))[0]
    for name in TERMS:
        alone = DistillationSettings(**{**dict.fromkeys(TERMS, 0.0), name: 1.0}, relation_heads=4)
        assert terms[name].item() == pytest.approx(run(alone)[0][name].item())


def test_the_loss_of_the_teacher_itself_is_zero() -> None:
    teacher = build()
    structure = describe(teacher)
    settings = DistillationSettings(soft=1, hidden=1, relations=1, relation_heads=2)
    loss = DistillationLoss.between(settings, structure, structure, PruningPlan.full(structure))
    with recorded_states(teacher, loss.recorded_in_student()) as states:
        logits = teacher(random_images())
    terms = loss(logits, logits, logits.softmax(dim=-1), dict(states), dict(states))
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("kept", "matched"),
    [((0, 1, 2, 3), (0, 1, 2, 3)), ((0, 3), (2, 3)), ((1, 2), (1, 3)), ((0, 1), (0, 3)), ((2,), (3,))],
)
def test_a_block_is_compared_with_the_last_of_the_removed_blocks_that_follow_it(
    kept: tuple[int, ...], matched: tuple[int, ...]
) -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=2, blocks=kept)
    settings = DistillationSettings(hidden=1.0, relations=1.0, relation_heads=1)
    loss = DistillationLoss.between(settings, describe(prune(teacher, plan)), describe(teacher), plan)
    assert loss.student_names == tuple(f"blocks.{index}" for index in range(len(kept)))
    assert loss.teacher_names == tuple(f"blocks.{index}" for index in matched)
    assert loss.student_qkv == f"blocks.{len(kept) - 1}.attn.qkv"
    assert loss.teacher_qkv == f"blocks.{kept[-1]}.attn.qkv"


@pytest.mark.parametrize(
    "changes",
    [
        {"soft": -1.0},
        {"soft": 0.0, "hidden": 0.0},
        {"hard": -0.1},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"relation_heads": 0},
        {"soft": 0.0, "flip": True},
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        DistillationSettings(**changes)


def test_hidden_states_of_another_width_cannot_be_compared() -> None:
    teacher, other = describe(build()), describe(build(embed_dim=32))
    with pytest.raises(SettingError, match=r"distillation\.hidden .* of width 32 .* set it to 0"):
        DistillationLoss.between(DistillationSettings(), other, teacher, PruningPlan.full(teacher))
    DistillationLoss.between(DistillationSettings(hidden=0.0), other, teacher, PruningPlan.full(teacher))


def test_relations_need_one_layer_for_queries_keys_and_values_in_the_teacher_too() -> None:
    student = describe(build())
    teacher = replace(student, blocks=tuple(replace(block, qkv="") for block in student.blocks))
    settings = DistillationSettings(relations=1.0, relation_heads=4)
    with pytest.raises(SettingError, match="last block of the teacher"):
        DistillationLoss.between(settings, student, teacher, PruningPlan.full(teacher))


def test_relation_heads_must_divide_the_head_width() -> None:
    structure = describe(build())
    with pytest.raises(SettingError, match="relation_heads is 3"):
        DistillationLoss.between(
            DistillationSettings(relations=1.0, relation_heads=3), structure, structure, PruningPlan.full(structure)
        )


def test_relations_need_heads_of_equal_width() -> None:
    dense = build()
    full = PruningPlan.full(describe(dense))
    plan = full.with_head_widths(describe(dense), 2)
    student = describe(prune(dense, plan))
    with pytest.raises(SettingError, match="heads of width 2 and the teacher's 4"):
        DistillationLoss.between(DistillationSettings(relations=1.0, relation_heads=2), student, describe(dense), plan)
    DistillationLoss.between(DistillationSettings(hidden=1.0), student, describe(dense), plan)
