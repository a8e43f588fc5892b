"""The loss terms of distillation. All of them are defined in this file.

A new term is a field of `DistillationSettings` (its weight), a function, and a row of `TERMS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrim.checks import check_types
from vitrim.errors import SettingError, counted
from vitrim.plan import PruningPlan
from vitrim.structure import ViTStructure

Need = Literal["student logits", "teacher logits", "hidden states", "qkv"]


@dataclass(frozen=True, kw_only=True)
class DistillationSettings:
    """Weights of the loss terms. A term with weight 0 is not computed.

    Attributes:
        soft: divergence from the teacher's output distribution, T^2 KL(teacher/T || student/T).
        temperature: T of the soft term.
        flip: the soft term learns the mean of the teacher's softmax outputs, at T, for an image and its mirror image.
        hidden: mean squared error of the hidden states after matched blocks, relative to the teacher's variance.
        relations: divergence of the tokens' query-query, key-key and value-value relations, last block (MiniLMv2).
        relation_heads: number of parts that queries, keys and values are split into for the relations. It must divide
            the width of one head.
        hard: cross entropy with the labels, mixed and smoothed as the augmentation made them.

    Raises:
        SettingError: a weight is negative, all weights are 0, a setting is out of range, or `flip` would not be used.
    """

    soft: float = 1.0
    temperature: float = 1.0
    flip: bool = False
    hidden: float = 1.0
    relations: float = 0.0
    relation_heads: int = 8
    hard: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        weights = {name: getattr(self, name) for name in TERMS}
        if min(weights.values()) < 0 or not any(weights.values()):
            values = ", ".join(f"{name} is {weight:g}" for name, weight in weights.items())
            raise SettingError(f"{values}; expected no weight below 0 and one above 0.")
        if self.temperature <= 0:
            raise SettingError(f"temperature is {self.temperature:g}; expected a number above 0.")
        if self.flip and not needs_teacher_logits(self):
            raise SettingError("flip is true, but no teacher's output is learned; set soft above 0, or flip to false.")
        if self.relation_heads < 1:
            raise SettingError(f"relation_heads is {self.relation_heads}; expected at least 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class LossInputs:
    """What one forward pass of both models leaves for the loss terms. Unneeded entries are None or empty.

    Attributes:
        student_logits, teacher_logits: `(B, C)`.
        targets: probabilities of the classes, `(B, C)`.
        student_states, teacher_states: hidden states after matched blocks, `(B, N, D)` each, in order.
        student_qkv, teacher_qkv: outputs of the fused qkv layers of the last block, `(B, N, 3*H*K)`; H may differ.
        compiled: compute the loss on hidden states with `torch.compile`, which reads them fewer times.
    """

    student_logits: Tensor
    teacher_logits: Tensor | None
    targets: Tensor
    student_states: tuple[Tensor, ...] = ()
    teacher_states: tuple[Tensor, ...] = ()
    student_qkv: Tensor | None = None
    teacher_qkv: Tensor | None = None
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One term of the loss.

    Attributes:
        compute: its value, a mean over images, without its weight.
        needs: which of `LossInputs` it reads besides the targets.
        check: raises `SettingError` if a model of this structure cannot have the term; None if every model can.
    """

    compute: Callable[[LossInputs, DistillationSettings], Tensor]
    needs: frozenset[Need]
    check: Callable[[DistillationSettings, ViTStructure], None] | None = None


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)), mean over images (Hinton et al. 2015); logits `(B, C)`.

    The factor T^2 keeps the size of the gradient the same at every temperature.
    """
    student_log = F.log_softmax(student / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True)


def hidden_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the variance of the teacher's values, mean over images; `(B, ...)` both.

    The variance is taken image by image. So the loss of a batch is the mean of the losses of its parts, also on several
    processes. The two states are kept for the gradient, and their difference is not: the student's next block keeps the
    first one in any case.
    """
    error = F.mse_loss(student, teacher, reduction="none").flatten(1).mean(dim=1)
    return (error / _variance(teacher.flatten(1)).clamp_min(1e-12)).mean()


def relation_loss(student: Tensor, teacher: Tensor, num_heads: int) -> Tensor:
    """KL(teacher || student) between the relations of the tokens (MiniLMv2, Wang et al. 2021, eq. 4-6).

    Args:
        student: output of the fused qkv layer, `(B, N, 3*H*K)`.
        teacher: the same of the teacher; H may differ.
        num_heads: number of parts R that queries, keys and values are split into.

    Returns:
        The mean over queries, keys and values, a scalar.
    """
    total = torch.zeros((), device=student.device)
    for student_part, teacher_part in zip(student.chunk(3, dim=-1), teacher.chunk(3, dim=-1), strict=True):
        student_log, teacher_log = _relations(student_part, num_heads), _relations(teacher_part, num_heads)
        divergence = F.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
        total = total + divergence / teacher_log[..., 0].numel()
    return total / 3


def check_relation_heads(settings: DistillationSettings, structure: ViTStructure) -> None:
    """Raise `SettingError` if the last block has no fused qkv layer, or its heads cannot be split as asked."""
    last = structure.blocks[-1]
    if not last.qkv:
        raise SettingError(
            f"distillation.relations needs one layer for queries, keys and values, which `{last.name}` of "
            f"{structure.model} does not have; set its weight to 0."
        )
    width = last.heads.width
    if width % settings.relation_heads:
        raise SettingError(
            f"distillation.relation_heads is {settings.relation_heads}, which does not divide the head width {width}."
        )


def _variance(values: Tensor) -> Tensor:
    """The variance of each row of `(B, n)`; `Tensor.var` reads the values one by one on the CPU."""
    centred = values - values.mean(dim=1, keepdim=True)
    return torch.linalg.vector_norm(centred, dim=1).square() / (values.shape[1] - 1)


def _relations(states: Tensor, num_heads: int) -> Tensor:
    """Log of softmax(X X' / sqrt d), `(B, R, N, N)`, from `(B, N, H*K)`."""
    parts = states.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, R, N, d)
    return F.log_softmax(parts @ parts.transpose(-1, -2) / parts.shape[-1] ** 0.5, dim=-1)


def _soft(inputs: LossInputs, settings: DistillationSettings) -> Tensor:
    assert inputs.teacher_logits is not None
    return soft_loss(inputs.student_logits, inputs.teacher_logits, settings.temperature)


def _hard(inputs: LossInputs, settings: DistillationSettings) -> Tensor:
    return F.cross_entropy(inputs.student_logits, inputs.targets)


def _hidden(inputs: LossInputs, settings: DistillationSettings) -> Tensor:
    loss = _compiled_hidden_loss() if inputs.compiled else hidden_loss
    pairs = zip(inputs.student_states, inputs.teacher_states, strict=True)
    return torch.stack([loss(student.float(), teacher.float()) for student, teacher in pairs]).mean()


@cache
def _compiled_hidden_loss() -> Callable[[Tensor, Tensor], Tensor]:
    return torch.compile(hidden_loss, fullgraph=True)


def _relation(inputs: LossInputs, settings: DistillationSettings) -> Tensor:
    assert inputs.student_qkv is not None and inputs.teacher_qkv is not None
    return relation_loss(inputs.student_qkv.float(), inputs.teacher_qkv.float(), settings.relation_heads)


TERMS: Mapping[str, LossTerm] = {  # by the name of the weight in `DistillationSettings`
    "soft": LossTerm(compute=_soft, needs=frozenset({"student logits", "teacher logits"})),
    "hard": LossTerm(compute=_hard, needs=frozenset({"student logits"})),
    "hidden": LossTerm(compute=_hidden, needs=frozenset({"hidden states"})),
    "relations": LossTerm(compute=_relation, needs=frozenset({"qkv"}), check=check_relation_heads),
}


def terms_of(settings: DistillationSettings) -> dict[str, LossTerm]:
    """The terms with a weight above 0, by name."""
    return {name: term for name, term in TERMS.items() if getattr(settings, name)}


def check_terms(settings: DistillationSettings, structure: ViTStructure) -> None:
    """Raise `SettingError` if a term with a weight above 0 does not fit a model of this structure."""
    for term in terms_of(settings).values():
        if term.check:
            term.check(settings, structure)


STATES: frozenset[Need] = frozenset({"hidden states", "qkv"})  # what a teacher of another kind does not have


def needs_states(settings: DistillationSettings) -> bool:
    """Whether a term with a weight above 0 compares what is inside of the models."""
    return any(term.needs & STATES for term in terms_of(settings).values())


def needs_teacher_logits(settings: DistillationSettings) -> bool:
    """Whether a term with a weight above 0 reads the teacher's outputs."""
    return any("teacher logits" in term.needs for term in terms_of(settings).values())


def without_states(settings: DistillationSettings, reason: str) -> DistillationSettings:
    """The settings without the terms that compare what is inside of the models.

    Args:
        reason: why the models cannot be compared, for the error.

    Raises:
        SettingError: such a term has another weight than its default, so it was asked for; or no other term is left.
    """
    weights = {name: getattr(settings, name) for name, term in terms_of(settings).items() if term.needs & STATES}
    for name, weight in weights.items():
        if weight != getattr(DistillationSettings(), name):
            raise SettingError(f"distillation.{name} is {weight:g}, but {reason}; set it to 0.")
    if not terms_of(settings).keys() - weights.keys():
        names = " and ".join(f"distillation.{name}" for name in weights)
        raise SettingError(f"Only {names} is above 0, but {reason}; set distillation.soft above 0.")
    without: dict[str, Any] = dict.fromkeys(weights, 0.0)
    return replace(settings, **without)


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The weighted terms for one pair of models.

    Attributes:
        student_names: blocks of the student, in order.
        teacher_names: for each of them the teacher's block whose output it should match.
        student_qkv: the fused qkv layer of the student's last block, or empty.
        teacher_qkv: the same of the teacher's block that it was cut from.
    """

    settings: DistillationSettings
    student_names: tuple[str, ...]
    teacher_names: tuple[str, ...]
    student_qkv: str
    teacher_qkv: str

    @classmethod
    def between(
        cls, settings: DistillationSettings, student: ViTStructure, teacher: ViTStructure, plan: PruningPlan
    ) -> "DistillationLoss":
        """Match the blocks of two models by `plan`, whose indices refer to the teacher.

        Raises:
            SettingError: a term does not fit the student, or hidden states cannot be compared.
        """
        alike = student.embed_dim == teacher.embed_dim and len(student.blocks) == len(plan.blocks)
        if settings.hidden and not alike:
            raise SettingError(
                f"distillation.hidden compares the student's {counted(len(student.blocks), 'block')} of width "
                f"{student.embed_dim} with {len(plan.blocks)} of the teacher's, of width {teacher.embed_dim}; set it "
                "to 0 for a teacher that the student was not cut from."
            )
        check_terms(settings, student)
        if settings.relations and not teacher.blocks[plan.blocks[-1].block].qkv:
            raise SettingError(
                f"distillation.relations needs one layer for queries, keys and values, which the last block of the "
                f"teacher {teacher.model} does not have; set its weight to 0."
            )
        widths = student.blocks[-1].heads.width, teacher.blocks[plan.blocks[-1].block].heads.width
        if settings.relations and widths[0] != widths[1]:
            raise SettingError(
                f"distillation.relations compares heads of equal width, but the student's last block has heads of "
                f"width {widths[0]} and the teacher's {widths[1]}; set it to 0, or keep the width of the heads."
            )
        matched = teacher.matched_teacher_blocks([kept.block for kept in plan.blocks])
        return cls(
            settings=settings,
            student_names=tuple(block.name for block in student.blocks),
            teacher_names=tuple(teacher.blocks[index].name for index in matched),
            student_qkv=student.blocks[-1].qkv,
            teacher_qkv=teacher.blocks[plan.blocks[-1].block].qkv,
        )

    @classmethod
    def of_outputs(cls, settings: DistillationSettings) -> "DistillationLoss":
        """A loss that compares nothing inside of the models; no term of `settings` may need it."""
        return cls(settings=settings, student_names=(), teacher_names=(), student_qkv="", teacher_qkv="")

    @property
    def needs_states(self) -> bool:
        """Whether any term compares what is inside of the models."""
        return needs_states(self.settings)

    def needs(self, need: Need) -> bool:
        """Whether any term reads this input."""
        return any(need in term.needs for term in terms_of(self.settings).values())

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares with the teacher."""
        return self.needs("teacher logits") or self.needs("hidden states") or self.needs("qkv")

    def recorded_in_student(self) -> list[str]:
        """Names of the student's modules whose outputs the terms read."""
        return self._recorded(self.student_names, self.student_qkv)

    def recorded_in_teacher(self) -> list[str]:
        """Names of the teacher's modules whose outputs the terms read."""
        return self._recorded(self.teacher_names, self.teacher_qkv)

    def _recorded(self, names: tuple[str, ...], qkv: str) -> list[str]:
        return [*(names if self.needs("hidden states") else ()), *([qkv] if self.needs("qkv") else [])]

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor | None,
        targets: Tensor,
        student_outputs: Mapping[str, Tensor],
        teacher_outputs: Mapping[str, Tensor],
        *,
        compiled: bool = False,
    ) -> dict[str, Tensor]:
        """The weighted terms by name; their sum is the loss.

        Args:
            student_logits: `(B, C)`.
            teacher_logits: `(B, C)`; None where no term reads them.
            targets: probabilities of the classes, `(B, C)`.
            student_outputs: outputs of the modules `recorded_in_student()`, by name.
            teacher_outputs: outputs of the modules `recorded_in_teacher()`, by name.
            compiled: compute the loss on hidden states with `torch.compile`.
        """
        states, qkv = self.needs("hidden states"), self.needs("qkv")
        inputs = LossInputs(
            student_logits=student_logits,
            teacher_logits=teacher_logits,
            targets=targets,
            student_states=tuple(student_outputs[name] for name in self.student_names) if states else (),
            teacher_states=tuple(teacher_outputs[name] for name in self.teacher_names) if states else (),
            student_qkv=student_outputs[self.student_qkv] if qkv else None,
            teacher_qkv=teacher_outputs[self.teacher_qkv] if qkv else None,
            compiled=compiled,
        )
        return {
            name: getattr(self.settings, name) * term.compute(inputs, self.settings)
            for name, term in terms_of(self.settings).items()
        }
