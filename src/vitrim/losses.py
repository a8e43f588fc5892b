"""What the student learns from: the teacher's soft output, its hidden states, its token relations, and the labels."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.errors import SettingError
from vitrim.hooks import output_state
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """Weights of the terms; a term with weight 0 is not computed.

    Attributes:
        soft: divergence from the teacher's output distribution, T^2 KL(teacher/T || student/T).
        temperature: T.
        hidden: mean squared error of the hidden states after matched blocks, relative to the teacher's variance.
        relations: divergence of the tokens' query-query, key-key and value-value relations, last block (MiniLMv2).
        relation_heads: into how many parts queries, keys and values are split for it, whatever heads are left; must
            divide the width of one head.
        hard: cross entropy with the labels, mixed and smoothed as the augmentation made them.
    """

    soft: float = 1.0
    temperature: float = 1.0
    hidden: float = 1.0
    relations: float = 0.0
    relation_heads: int = 8
    hard: float = 0.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("soft", "hidden", "relations", "hard")}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise SettingError(f"The distillation weights are {weights}; expected none below 0 and one above.")
        if self.temperature <= 0 or self.relation_heads < 1:
            raise SettingError("distillation.temperature must be above 0 and distillation.relation_heads at least 1.")


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over images (Hinton et al. 2015); logits `(B, C)`.

    T^2 keeps the gradient's size the same at every temperature.
    """
    student_log = F.log_softmax(student / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the variance of the teacher's values, mean over images; `(B, ...)` both.

    The variance is taken image by image: then the loss of a batch is the mean of its parts' on several processes.
    Kept for the gradient are the two states and not their difference: the student's next block keeps the first anyway.
    """
    error = F.mse_loss(student, teacher, reduction="none").flatten(1).mean(dim=1)
    return (error / _variance(teacher.flatten(1)).clamp_min(1e-12)).mean()


def _variance(values: Tensor) -> Tensor:
    """Of each row of `(B, n)`; `Tensor.var` goes through the values one by one on the CPU."""
    centred = values - values.mean(dim=1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=1).square() / (values.shape[1] - 1)


def relation_loss(student: Tensor, teacher: Tensor, num_heads: int) -> Tensor:
    """Mean over queries, keys and values of KL(teacher || student) between the tokens' relations (MiniLMv2, eq. 4-6).

    Args:
        student, teacher: outputs of the fused qkv layers, `(B, N, 3*H*K)`; H may differ.
        num_heads: R, into how many parts each third is split.
    """
    total = torch.zeros((), device=student.device)
    for mine, theirs in zip(student.chunk(3, dim=-1), teacher.chunk(3, dim=-1), strict=True):
        student_log, teacher_log = _relations(mine, num_heads), _relations(theirs, num_heads)
        total = (
            total + F.kl_div(student_log, teacher_log, reduction="sum", log_target=True) / teacher_log[..., 0].numel()
        )
    return total / 3


def _relations(states: Tensor, num_heads: int) -> Tensor:
    """Log of softmax(X X' / sqrt d), `(B, R, N, N)`, from `(B, N, H*K)`."""
    parts = states.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, R, N, d)
    return F.log_softmax(parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5, dim=-1)


def check_relation_heads(settings: DistillationSettings, structure: ViTStructure) -> None:
    """Raise `SettingError` if queries, keys and values cannot be had or not be split as the relations term asks."""
    last = structure.blocks[-1]
    if settings.relations and not last.qkv:
        raise SettingError(
            f"distillation.relations needs one layer for queries, keys and values, which `{last.name}` of "
            f"{structure.model} does not have; set its weight to 0."
        )
    width = last.heads.width
    if settings.relations and width % settings.relation_heads:
        raise SettingError(
            f"distillation.relation_heads is {settings.relation_heads}, which does not divide the head width {width}."
        )


@contextmanager
def tapped(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, every forward pass of `model` leaves the named modules' outputs in the yielded dict."""
    taps: dict[str, Tensor] = {}

    def keep(name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            taps[name] = output_state(output)

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The weighted terms for one pair of models; a plan has said which teacher block each student block follows."""

    settings: DistillationSettings
    student_names: tuple[str, ...]
    teacher_names: tuple[str, ...]
    student_qkv: str
    teacher_qkv: str

    @classmethod
    def between(
        cls, settings: DistillationSettings, student: ViTStructure, teacher: ViTStructure, plan: PruningPlan
    ) -> "DistillationLoss":
        """Match the blocks by `plan`, which counts in the teacher.

        Raises:
            SettingError: `relation_heads` does not divide the width of a head, or hidden states cannot be compared.
        """
        alike = student.embed_dim == teacher.embed_dim and len(student.blocks) == len(plan.blocks)
        if settings.hidden and not alike:
            raise SettingError(
                f"distillation.hidden compares the student's {len(student.blocks)} blocks of width {student.embed_dim} "
                f"with {len(plan.blocks)} of the teacher's, of width {teacher.embed_dim}; set it to 0 for a teacher "
                "that the student was not cut from."
            )
        check_relation_heads(settings, student)
        ends = teacher.matched_teacher_blocks([kept.block for kept in plan.blocks])
        return cls(
            settings=settings,
            student_names=tuple(block.name for block in student.blocks),
            teacher_names=tuple(teacher.blocks[end].name for end in ends),
            student_qkv=student.blocks[-1].qkv,
            teacher_qkv=teacher.blocks[plan.blocks[-1].block].qkv,
        )

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return bool(self.settings.soft or self.settings.hidden or self.settings.relations)

    def student_taps(self) -> list[str]:
        return self._taps(self.student_names, self.student_qkv)

    def teacher_taps(self) -> list[str]:
        return self._taps(self.teacher_names, self.teacher_qkv)

    def _taps(self, names: tuple[str, ...], qkv: str) -> list[str]:
        return [*(names if self.settings.hidden else ()), *([qkv] if self.settings.relations else [])]

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor | None,
        targets: Tensor,
        student_taps: dict[str, Tensor],
        teacher_taps: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """The weighted terms by name; their sum is the loss.

        Args:
            student, teacher: logits `(B, C)`; the teacher's may be None where no term looks at it.
            targets: shares of the classes, `(B, C)`.
        """
        weights = self.settings
        terms: dict[str, Tensor] = {}
        if weights.soft:
            assert teacher is not None
            terms["soft"] = weights.soft * soft_loss(student, teacher, weights.temperature)
        if weights.hard:
            terms["hard"] = weights.hard * F.cross_entropy(student, targets)
        if weights.hidden:
            pairs = zip(self.student_names, self.teacher_names, strict=True)
            losses = [hidden_loss(student_taps[mine].float(), teacher_taps[theirs].float()) for mine, theirs in pairs]
            terms["hidden"] = weights.hidden * torch.stack(losses).mean()
        if weights.relations:
            mine, theirs = student_taps[self.student_qkv].float(), teacher_taps[self.teacher_qkv].float()
            terms["relations"] = weights.relations * relation_loss(mine, theirs, weights.relation_heads)
        return terms
