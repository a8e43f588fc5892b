"""Teachers: what must hold before a model can teach another one, and which parts of the models are compared.

A teacher may be any model that returns logits. What it says about its images and classes is read here. Whatever does
not fit is refused here, before the training starts. Running the teachers is in `soft_labels`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.data.matching import device_of, preprocessing_of
from vitrim.data.preprocessing import Preprocessing, normalise
from vitrim.data.views import can_view, is_same_view, view_between
from vitrim.errors import SettingError, UnsupportedModel
from vitrim.hooks import eval_mode, logits_of, recorded_states
from vitrim.losses import DistillationLoss, DistillationSettings, needs_states, without_states
from vitrim.models import describe, origin_of
from vitrim.models.any_model import name_of, num_channels, recorded_classes, recorded_preprocessing, unwrapped
from vitrim.plan import PruningPlan
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint
from vitrim.structure import ViTStructure

PROBE_IMAGES = 2
MODEL_ERRORS = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, LookupError, NotImplementedError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A model whose outputs a student learns.

    Attributes:
        model: is not changed.
        name: for messages and reports.
        preprocessing: of its images. It is shown the images of the student, converted to this.
        outputs: which of its outputs belong to the student's classes, in their order; None for all, in its own order.
        about: how its images and outputs are used, as a sentence.
    """

    model: nn.Module
    name: str
    preprocessing: Preprocessing
    outputs: tuple[int, ...] | None
    about: str

    @classmethod
    def of(cls, model: nn.Module, student: nn.Module, classes: tuple[str, ...]) -> "Teacher":
        """Read how the teacher's images are prepared and what its outputs are, and run it once on two images.

        Args:
            model: any module that takes images `(B, C, H, W)` and returns logits, alone, first in a tuple, or as
                `logits`.
            student: the model that will learn from it.
            classes: names of the student's outputs.

        Raises:
            SettingError: the teacher cannot be run on the student's images, or its outputs are not logits of the
                student's classes.
        """
        model = unwrapped(model)
        own = preprocessing_of(student)
        name, preprocessing, source = _inputs_of(model, own)
        if not can_view(own, preprocessing):
            raise SettingError(
                f"The number of image channels of the teacher {name} is {len(preprocessing.mean)}, and that of the "
                f"student {len(own.mean)}; expected the same, or 1 and 3."
            )
        logits = _probe(model, name, own, preprocessing)
        outputs = _outputs_for(classes, _classes_of(model), logits.shape[1], name)
        return cls(
            model=model,
            name=name,
            preprocessing=preprocessing,
            outputs=outputs,
            about=f"{_about_images(own, preprocessing)} ({source}); {_about_outputs(outputs, logits.shape[1])}",
        )

    @cached_property
    def weights(self) -> str:
        """A hash of the weights."""
        return fingerprint(self.model)

    def to_dict(self) -> dict[str, Any]:
        """What the result of a training depends on, as plain data for JSON."""
        outputs = "all" if self.outputs is None else hashlib.sha256(repr(self.outputs).encode()).hexdigest()[:16]
        images = {key: getattr(self.preprocessing, key) for key in ("img_size", "mean", "std", "interpolation")}
        return {"name": self.name, "weights": self.weights, "images": images, "outputs": outputs}


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


def logits_in(output: Any) -> Tensor:
    """The logits `(B, C)` in what a teacher returned: the first entry of a tuple, the entry `logits`, or all of it."""
    if isinstance(output, tuple | list):
        output = output[0]
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    return logits_of(output)


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
    classes: tuple[str, ...],
    plan: PruningPlan | None = None,
) -> tuple[DistillationLoss, Teachers]:
    """The loss with which `student` learns from any teachers.

    With a plan, the student was cut from the first teacher, and every term must fit. Without, hidden states and
    relations are compared with the first teacher if they fit it. If not, their terms are left out, and a line of the
    log says why. A weight that is not the default is refused instead.

    Args:
        teacher: a model, several models, or teachers that were checked before.
        classes: names of the student's outputs.
        plan: which blocks of the teacher the student's blocks are.

    Raises:
        SettingError: a teacher or a loss term does not fit the student.
    """
    if plan is not None and not isinstance(teacher, Teachers):
        teacher = _with_dense(teacher, student, classes)
    if isinstance(teacher, Teachers) and teacher.compared is not None:
        return loss_between(student, teacher.compared, plan, settings), teacher
    labels = teacher.labels if isinstance(teacher, Teachers) else checked_teachers(teacher, student, classes)
    first, is_compared = labels[0], needs_states(settings)
    if reason := _why_not_compared(student, first) if is_compared else "":
        changed = without_states(settings, f"the teacher {first.name} {reason}")
        log(f"teacher {first.name}: only its outputs are learned, because it {reason}")
        return DistillationLoss.of_outputs(changed), Teachers(labels=labels)
    if _structure_of(first.model) is None:
        return DistillationLoss.of_outputs(settings), Teachers(labels=labels)
    loss = loss_between(student, first.model, None, settings)
    if len(labels) == 1 and first.outputs is None:
        return loss, Teachers(compared=first.model)
    return loss, Teachers(compared=first.model if is_compared else None, labels=labels)


def _with_dense(teacher: nn.Module | Sequence[nn.Module], student: nn.Module, classes: tuple[str, ...]) -> Teachers:
    """The teachers of a student that was cut from the first one."""
    if isinstance(teacher, nn.Module):
        return Teachers(compared=teacher)
    labels = checked_teachers(teacher, student, classes)
    return Teachers(compared=labels[0].model, labels=labels if len(labels) > 1 else ())


def checked_teachers(
    teacher: nn.Module | Sequence[nn.Module] | None, student: nn.Module, classes: tuple[str, ...]
) -> tuple[Teacher, ...]:
    """Check one model or several as teachers of `student`; none for None.

    Args:
        classes: names of the student's outputs.

    Raises:
        SettingError: a teacher does not fit the student, or there is something else than models.
    """
    if teacher is None:
        return ()
    models = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    if not models or not all(isinstance(model, nn.Module) for model in models):
        found = ", ".join(type(model).__name__ for model in models) or "an empty list"
        raise SettingError(f"The teacher is {found}; expected a model (nn.Module) or a list of models.")
    teachers = tuple(Teacher.of(model, student, classes) for model in models)
    for one in teachers:
        log(f"teacher {one.name}: {one.about}")
    return teachers


def _structure_of(model: nn.Module) -> ViTStructure | None:
    """The structure of a model that an adapter knows, else None."""
    try:
        return describe(model)
    except UnsupportedModel:
        return None


def _inputs_of(model: nn.Module, student: Preprocessing) -> tuple[str, Preprocessing, str]:
    """Name of a teacher, how its images are prepared, and who says so. What it does not say is as for the student."""
    structure = _structure_of(model)
    if structure is not None:
        return structure.model, preprocessing_of(model), "as for its evaluation"
    name = name_of(model)
    recorded, source = recorded_preprocessing(model)
    values = {key: value for key, value in asdict(student).items() if key not in recorded}
    try:
        preprocessing = Preprocessing(**values, **recorded)
    except SettingError as problem:
        raise SettingError(f"The teacher {name}: {problem}") from None
    channels = num_channels(model) or len(preprocessing.mean)
    if channels != len(preprocessing.mean) and recorded:
        raise SettingError(
            f"The number of image channels of the teacher {name} is {channels}, but its mean has "
            f"{len(preprocessing.mean)} values; set mean and std in its `pretrained_cfg`."
        )
    unknown = (
        "assumed, because it does not say how its images are prepared; if this is wrong, set its attribute "
        '`pretrained_cfg`, such as {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 224, 224)}'
    )
    return name, preprocessing, source or unknown


def _classes_of(model: nn.Module) -> tuple[str, ...]:
    try:
        return origin_of(model).classes or recorded_classes(model)
    except UnsupportedModel:
        return recorded_classes(model)


@torch.no_grad()
def _probe(model: nn.Module, name: str, before: Preprocessing, after: Preprocessing) -> Tensor:
    """The logits `(2, C)` of a teacher for two images of noise, prepared for the student.

    Raises:
        SettingError: it cannot be run, or returns something else than finite logits.
    """
    size = (PROBE_IMAGES, len(before.mean), *before.img_size)
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = "x".join(str(side) for side in (len(after.mean), *after.img_size))
    try:
        device = device_of(model)
    except StopIteration:  # it has no weights
        device = torch.device("cpu")
    images = view_between(before, after, device)(normalise(noise.to(device), before)).to(dtype_of(model))
    try:
        with eval_mode(model):
            logits = _only_logits(model(images)).float()
    except MODEL_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise SettingError(
            f"The teacher {name} cannot be run on images of {shown} values (channels, height, width): {reason}."
        ) from error
    if logits.ndim != 2 or len(logits) != PROBE_IMAGES:
        raise SettingError(
            f"The teacher {name} returns {tuple(logits.shape)} for {PROBE_IMAGES} images; expected one row of logits "
            "for each image."
        )
    if not logits.isfinite().all():
        raise SettingError(f"The teacher {name} returns infinite logits, or some that are not a number, for noise.")
    if (logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-4).all():
        raise SettingError(
            f"The teacher {name} returns probabilities; expected logits. Leave its last softmax out, or return their "
            "logarithms, which serve as logits."
        )
    return logits


def _only_logits(output: Any) -> Tensor:
    """As `logits_in`, but features of a model without a classifier are no logits."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    has_logits = "logits" in first if isinstance(first, dict) else hasattr(first, "logits")
    if not isinstance(first, Tensor) and not has_logits:
        raise TypeError(f"it returns a {type(first).__name__} without logits")
    return logits_in(output)


def dtype_of(model: nn.Module) -> torch.dtype:
    """The type of the model's first floating-point parameter; float32 if it has none."""
    kinds = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return next(kinds, torch.float32)


def _outputs_for(
    classes: tuple[str, ...], names: tuple[str, ...], num_outputs: int, teacher: str
) -> tuple[int, ...] | None:
    """Which outputs of a teacher belong to the student's classes; None for all in the same order.

    Raises:
        SettingError: the teacher has other classes.
    """
    if len(names) != num_outputs:
        names = ()
    if not names and num_outputs != len(classes):
        raise SettingError(
            f"The teacher {teacher} has {num_outputs} outputs and no class names, but the student has {len(classes)} "
            "classes; expected a teacher that was trained on these classes."
        )
    if not names or names == classes:
        return None
    missing = [label for label in classes if label not in names]
    if missing:
        raise SettingError(
            f"The teacher {teacher} has no output for {len(missing)} of the student's {len(classes)} classes, such as "
            f"{', '.join(missing[:3])}. It has {num_outputs}, such as {', '.join(names[:3])}; expected a teacher of "
            "these classes. If the names that it carries are wrong, correct or remove them."
        )
    if twice := [label for label in classes if names.count(label) > 1]:
        raise SettingError(f"The teacher {teacher} has several outputs of the name {twice[0]}; expected one.")
    return tuple(names.index(label) for label in classes)


def _why_not_compared(student: nn.Module, teacher: Teacher) -> str:
    """Why hidden states and relations cannot be compared with this teacher; empty if they can."""
    structure = _structure_of(teacher.model)
    if structure is None:
        return "is no Vision Transformer that vitrim can describe"
    own = describe(student)
    blocks = len(own.blocks), len(structure.blocks)
    if blocks[0] != blocks[1]:
        return f"has {blocks[1]} blocks and the student {blocks[0]} (a student that was cut from it needs its plan)"
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


def _about_images(student: Preprocessing, teacher: Preprocessing) -> str:
    if is_same_view(student, teacher):
        return "the student's images, prepared in the same way"
    size = "{} x {} pixels".format(*teacher.img_size)
    if student.img_size != teacher.img_size:
        size = "{} x {} resized to {} ({})".format(*student.img_size, size, teacher.interpolation)
    numbers = (", ".join(f"{value:.4g}" for value in values) for values in (teacher.mean, teacher.std))
    return "the student's images, {}, with mean {} and standard deviation {}".format(size, *numbers)


def _about_outputs(outputs: tuple[int, ...] | None, num_outputs: int) -> str:
    if outputs is None:
        return f"{num_outputs} outputs in the order of the student's"
    if len(outputs) == num_outputs:
        return f"{num_outputs} outputs, put into the order of the student's by their names"
    return f"{len(outputs)} of its {num_outputs} outputs, chosen by their names; softmax is over these"
