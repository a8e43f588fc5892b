"""Laws of what the student learns from."""

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
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_loss_is_zero_and_flat_at_the_teacher_and_positive_elsewhere(temperature: float) -> None:
    teacher = noise(6, 5)
    student = teacher.clone().requires_grad_()
    loss = soft_loss(student, teacher, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12
    for seed in range(1, 6):
        assert soft_loss(teacher + 0.1 * noise(6, 5, seed=seed), teacher, temperature) > 0


def test_soft_loss_sees_only_differences_of_logits() -> None:
    student, teacher = noise(6, 5), noise(6, 5, seed=1)
    assert soft_loss(student + 3, teacher - 2, 2.0).item() == pytest.approx(soft_loss(student, teacher, 2.0).item())


def test_soft_loss_at_temperature_one_is_cross_entropy_less_the_teachers_entropy() -> None:
    student, teacher = noise(6, 5), noise(6, 5, seed=1)
    shares = teacher.softmax(dim=-1)
    entropy = -(shares * shares.log()).sum(dim=-1).mean()
    expected = F.cross_entropy(student, shares) - entropy
    assert soft_loss(student, teacher, 1.0).item() == pytest.approx(expected.item())


def test_the_gradient_keeps_its_size_at_high_temperature() -> None:
    """As T grows, the gradient tends to that of half the mean squared difference of centred logits over C."""
    teacher = noise(6, 5, seed=1)
    sizes = []
    for temperature in (1e2, 1e4):
        student = noise(6, 5).requires_grad_()
        soft_loss(student, teacher, temperature).backward()
        difference = student.detach() - teacher
        expected = (difference - difference.mean(dim=-1, keepdim=True)) / (5 * 6)
        assert torch.allclose(student.grad, expected, rtol=10 / temperature, atol=1 / temperature)
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


@pytest.mark.parametrize("loss", [hidden_loss, lambda s, t: relation_loss(s, t, 2)], ids=["hidden", "relations"])
def test_feature_losses_vanish_for_equal_models_and_average_over_images(loss) -> None:  # type: ignore[no-untyped-def]
    student, teacher = noise(6, 5, 12), noise(6, 5, 12, seed=1)
    assert loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert loss(student, teacher) > 0
    parts = torch.stack([loss(student[i : i + 2], teacher[i : i + 2]) for i in (0, 2, 4)])
    assert loss(student, teacher).item() == pytest.approx(parts.mean().item())
    assert loss(student.repeat(2, 1, 1), teacher.repeat(2, 1, 1)).item() == pytest.approx(loss(student, teacher).item())


def test_hidden_loss_is_the_error_over_the_teachers_variance() -> None:
    student, teacher = noise(6, 5, 12), 3 + 2 * noise(6, 5, 12, seed=1)
    error, variance = (student - teacher).square().mean(dim=(1, 2)), teacher.var(dim=(1, 2))
    assert hidden_loss(student, teacher).item() == pytest.approx((error / variance).mean().item(), rel=1e-12)


def test_hidden_loss_has_no_unit() -> None:
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
                mine, theirs = student[image, :, columns], teacher[image, :, columns]
                p, q = ((x @ x.T / 2**0.5).softmax(dim=-1) for x in (theirs, mine))
                total += (p * (p / q).log()).sum().item() / 3  # mean over the three tokens
    assert relation_loss(student, teacher, 2).item() == pytest.approx(total / (2 * 3 * 2))


def run(settings: DistillationSettings, blocks: tuple[int, ...] = (0, 3)) -> tuple[dict[str, Tensor], dict, dict]:
    """The terms, and what was tapped, for a cut model and its teacher."""
    teacher = build()
    plan = random_plan(describe(teacher), seed=1, blocks=blocks)
    student = prune(teacher, plan)
    loss = DistillationLoss.between(settings, describe(student), describe(teacher), plan)
    images, targets = random_images(), F.one_hot(torch.arange(4), 7).double()
    with (
        recorded_states(student, loss.recorded_in_student()) as mine,
        recorded_states(teacher, loss.recorded_in_teacher()) as theirs,
    ):
        outputs = student(images), teacher(images)
    return loss(*outputs, targets, mine, theirs), mine, theirs


TERMS = ("soft", "hard", "hidden", "relations")


@pytest.mark.parametrize("name", TERMS)
def test_a_term_of_weight_zero_is_not_computed(name: str) -> None:
    settings = DistillationSettings(**{**dict.fromkeys(TERMS, 0.0), name: 2.0}, relation_heads=2)
    terms, mine, theirs = run(settings)
    assert list(terms) == [name]
    assert bool(mine) == bool(theirs) == (name in ("hidden", "relations"))
    half = DistillationSettings(**{**dict.fromkeys(TERMS, 0.0), name: 1.0}, relation_heads=2)
    assert terms[name].item() == pytest.approx(2 * run(half)[0][name].item())


def test_all_terms_together_are_the_terms_alone() -> None:
    together = run(DistillationSettings(soft=1, hard=1, hidden=1, relations=1, relation_heads=4))[0]
    for name in TERMS:
        alone = DistillationSettings(**{**dict.fromkeys(TERMS, 0.0), name: 1.0}, relation_heads=4)
        assert together[name].item() == pytest.approx(run(alone)[0][name].item())


def test_an_uncut_student_has_nothing_to_learn_from_the_teacher() -> None:
    teacher = build()
    structure = describe(teacher)
    settings = DistillationSettings(soft=1, hidden=1, relations=1, relation_heads=2)
    loss = DistillationLoss.between(settings, structure, structure, PruningPlan.full(structure))
    with recorded_states(teacher, loss.recorded_in_student()) as taps:
        logits = teacher(random_images())
    terms = loss(logits, logits, logits.softmax(dim=-1), dict(taps), dict(taps))
    assert sum(terms.values()).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("kept", "followed"),
    [((0, 1, 2, 3), (0, 1, 2, 3)), ((0, 3), (2, 3)), ((1, 2), (1, 3)), ((0, 1), (0, 3)), ((2,), (3,))],
)
def test_a_block_follows_the_teacher_to_the_end_of_the_removed_stretch(
    kept: tuple[int, ...], followed: tuple[int, ...]
) -> None:
    teacher = build()
    plan = random_plan(describe(teacher), seed=2, blocks=kept)
    settings = DistillationSettings(hidden=1.0, relations=1.0, relation_heads=1)
    loss = DistillationLoss.between(settings, describe(prune(teacher, plan)), describe(teacher), plan)
    assert loss.student_names == tuple(f"blocks.{index}" for index in range(len(kept)))
    assert loss.teacher_names == tuple(f"blocks.{index}" for index in followed)
    assert loss.student_qkv == f"blocks.{len(kept) - 1}.attn.qkv"
    assert loss.teacher_qkv == f"blocks.{kept[-1]}.attn.qkv"


def test_taps_end_with_their_context() -> None:
    model = build()
    with recorded_states(model, ["blocks.0", "blocks.1.attn.qkv"]) as taps:
        model(random_images(2))
    assert taps["blocks.0"].shape == (2, 5, 16)
    assert taps["blocks.1.attn.qkv"].shape == (2, 5, 48)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "changes",
    [
        {"soft": -1.0},
        {"soft": 0.0, "hidden": 0.0},
        {"hard": -0.1},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"relation_heads": 0},
    ],
    ids=str,
)
def test_bad_settings_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(SettingError):
        DistillationSettings(**changes)


def test_hidden_states_of_another_width_cannot_be_compared() -> None:
    teacher, other = describe(build()), describe(build(embed_dim=32))
    with pytest.raises(SettingError, match=r"distillation\.hidden .* of width 32 .* set it to 0"):
        DistillationLoss.between(DistillationSettings(), other, teacher, PruningPlan.full(teacher))
    DistillationLoss.between(DistillationSettings(hidden=0.0), other, teacher, PruningPlan.full(teacher))


def test_relation_heads_must_divide_the_head_width() -> None:
    structure = describe(build())
    with pytest.raises(SettingError, match="relation_heads is 3"):
        DistillationLoss.between(
            DistillationSettings(relations=1.0, relation_heads=3), structure, structure, PruningPlan.full(structure)
        )
