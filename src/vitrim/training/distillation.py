"""The loss between a student and its teachers: which teachers give labels, and which parts of the models are compared.

The terms of the loss are in `vitrim.losses`, and what must hold of a teacher in `teachers`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from vitrim.data.images import ImageData
from vitrim.data.matching import device_of, preprocessing_of
from vitrim.data.views import view_between
from vitrim.errors import counted
from vitrim.hooks import eval_mode, recorded_states
from vitrim.losses import DistillationLoss, DistillationSettings, needs_states, without_states
from vitrim.models import describe
from vitrim.plan import PruningPlan
from vitrim.runs.progress import log
from vitrim.training.teachers import PROBE_IMAGES, Teacher, checked_teachers, dtype_of, structure_if_known


@dataclass(frozen=True, kw_only=True, eq=False)
class Teachers:
    """The teachers of one training.

    Attributes:
        compared: the hidden states and relations of the student are compared with those of this model; None if no term
            of the loss compares them. It also gives the soft labels if `labels` is empty.
        labels: the mean of their softmax outputs is the soft label.
    """

    compared: nn.Module | None = None
    labels: tuple[Teacher, ...] = ()


def loss_between(
    student: nn.Module, teacher: nn.Module, plan: PruningPlan | None, settings: DistillationSettings
) -> DistillationLoss:
    """The loss with which `student` learns from `teacher`.

    Args:
        plan: which blocks of the teacher the student's blocks are; by default all of them.

    Raises:
        SettingError: a loss term does not fit the student.
    """
    dense = describe(teacher)
    return DistillationLoss.between(settings, describe(student), dense, plan or PruningPlan.full(dense))


def loss_with(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | Teachers,
    settings: DistillationSettings,
    data: ImageData,
    plan: PruningPlan | None = None,
) -> tuple[DistillationLoss, Teachers]:
    """The loss with which `student` learns from any teachers.

    With a plan, the student was cut from the first teacher, and every term must fit. Without, hidden states and
    relations are compared with the first teacher if they fit it. If not, their terms are left out, and a line of the
    log says why. A weight that is not the default is refused instead.

    Args:
        teacher: a model, several models, or teachers that were checked before.
        data: with labels as the student counts them.
        plan: which blocks of the teacher the student's blocks are.

    Raises:
        SettingError: a teacher or a loss term does not fit the student.
    """
    if plan is not None and not isinstance(teacher, Teachers):
        teacher = _with_dense(teacher, student, data)
    if isinstance(teacher, Teachers) and teacher.compared is not None:
        return loss_between(student, teacher.compared, plan, settings), teacher
    labels = teacher.labels if isinstance(teacher, Teachers) else checked_teachers(teacher, student, data)
    first, is_compared = labels[0], needs_states(settings)
    if reason := _why_not_compared(student, first) if is_compared else "":
        changed = without_states(settings, f"the teacher {first.name} {reason}")
        log(f"teacher {first.name}: only its outputs are learned, because it {reason}")
        return DistillationLoss.of_outputs(changed), Teachers(labels=labels)
    if structure_if_known(first.model) is None:
        return DistillationLoss.of_outputs(settings), Teachers(labels=labels)
    loss = loss_between(student, first.model, None, settings)
    if len(labels) == 1 and first.outputs is None:
        return loss, Teachers(compared=first.model)
    return loss, Teachers(compared=first.model if is_compared else None, labels=labels)


def _with_dense(teacher: nn.Module | Sequence[nn.Module], student: nn.Module, data: ImageData) -> Teachers:
    """The teachers of a student that was cut from the first one."""
    if isinstance(teacher, nn.Module):
        return Teachers(compared=teacher)
    labels = checked_teachers(teacher, student, data)
    return Teachers(compared=labels[0].model, labels=labels if len(labels) > 1 else ())


def _why_not_compared(student: nn.Module, teacher: Teacher) -> str:
    """Why hidden states and relations cannot be compared with this teacher; empty if they can."""
    structure = structure_if_known(teacher.model)
    if structure is None:
        return "is no Vision Transformer that vitrim can describe"
    own = describe(student)
    blocks = len(own.blocks), len(structure.blocks)
    if blocks[0] != blocks[1]:
        difference = f"has {counted(blocks[1], 'block')} and the student {blocks[0]}"
        return f"{difference} (a student that was cut from it needs its plan)"
    if own.embed_dim != structure.embed_dim:
        return f"has hidden states of width {structure.embed_dim} and the student of width {own.embed_dim}"
    before, device = preprocessing_of(student), device_of(student)
    blank = torch.zeros((PROBE_IMAGES, len(before.mean), *before.img_size), device=device)
    view = view_between(before, teacher.preprocessing, device)
    shapes = []
    for model, found, images in ((student, own, blank), (teacher.model, structure, view(blank))):
        images = images.to(device_of(model), dtype_of(model))
        names = [block.name for block in found.blocks]
        with torch.no_grad(), eval_mode(model), recorded_states(model, names) as states:
            model(images)
        shapes.append([tuple(states[name].shape[1:]) for name in names])
    for index, (mine, theirs) in enumerate(zip(*shapes, strict=True)):
        if mine != theirs:
            return f"has hidden states of shape {theirs} after block {index} and the student of shape {mine}"
    return ""
