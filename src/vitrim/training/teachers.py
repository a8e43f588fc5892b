"""Teachers: what must hold before a model can teach another one.

A teacher may be any model that returns logits. What it says about its images and classes is read here. Whatever does
not fit is refused here, before the training starts. Running the teachers is in `soft_labels`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from scipy import stats
from torch import Tensor, nn

from vitrim.data.batches import eval_batches
from vitrim.data.images import ImageData, ImageSet
from vitrim.data.matching import find_outputs, match_labels, names_of_outputs, preprocessing_of
from vitrim.data.preprocessing import Preprocessing, normalise
from vitrim.data.views import can_view, is_same_view, view_between, view_interpolation
from vitrim.errors import SettingError, UnsupportedModel
from vitrim.hooks import eval_mode, logits_of
from vitrim.models import describe, origin_of
from vitrim.models.any_model import name_of, recorded_classes, recorded_preprocessing
from vitrim.models.channels import input_channels
from vitrim.models.wrappers import unwrapped
from vitrim.runs.processes import this_process
from vitrim.runs.progress import log
from vitrim.saving.checkpoint import fingerprint
from vitrim.structure import ViTStructure

IMAGE_SETTINGS = ("img_size", "mean", "std", "interpolation")  # of `Preprocessing`; a view has its own crop
PROBE_IMAGES = 2
MAX_P_OF_CHANCE = 0.05
MAX_JUDGED_IMAGES = 64  # validation images on which a teacher is tried before it teaches
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
        names = _classes_of(model, logits.shape[1])
        outputs = _outputs_for(classes, names, logits.shape[1], name)
        return cls(
            model=model,
            name=name,
            preprocessing=preprocessing,
            outputs=outputs,
            about=f"{_about_images(own, preprocessing)} ({source}); {_about_outputs(outputs, logits.shape[1], names)}",
        )

    @cached_property
    def weights(self) -> str:
        """A hash of the weights."""
        return fingerprint(self.model)

    def to_dict(self) -> dict[str, Any]:
        """What the result of a training depends on, as plain data for JSON."""
        outputs = "all" if self.outputs is None else hashlib.sha256(repr(self.outputs).encode()).hexdigest()[:16]
        images = {key: getattr(self.preprocessing, key) for key in IMAGE_SETTINGS}
        return {"name": self.name, "weights": self.weights, "images": images, "outputs": outputs}


def logits_in(output: Any) -> Tensor:
    """The logits `(B, C)` in what a teacher returned: the first entry of a tuple, the entry `logits`, or all of it."""
    if isinstance(output, tuple | list):
        output = output[0]
    if isinstance(output, dict) and "logits" in output:
        output = output["logits"]
    return logits_of(output)


def checked_teachers(
    teacher: nn.Module | Sequence[nn.Module] | None, student: nn.Module, data: ImageData
) -> tuple[Teacher, ...]:
    """Check one model or several as teachers of `student`, and print a line about each; none for None.

    They are moved to the device of this process.

    Args:
        data: with labels as the student counts them. Up to 64 validation images are classified.

    Raises:
        SettingError: a teacher does not fit the student, or there is something else than models.
    """
    if teacher is None:
        return ()
    models = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    if not models or not all(isinstance(model, nn.Module) for model in models):
        kinds = ", ".join(type(model).__name__ for model in models) or "an empty list"
        raise SettingError(f"The teacher is {kinds}; expected a model (nn.Module) or a list of models.")
    device = this_process().device
    checked = [Teacher.of(model.to(device), student, data.classes) for model in models]
    teachers = tuple(_judged(one, student, data.validation) for one in checked)
    for one in teachers:
        log(f"teacher {one.name}: {one.about}")
    return teachers


def match_student(data: ImageData, student: nn.Module, teacher: Any = None) -> ImageData:
    """Return the data set with labels as a model that is to be trained counts them, see `match_labels`.

    A student without class names copies the outputs of its teacher. So its labels are those of the first teacher, if
    an adapter knows this model, and it has as many outputs and input channels.

    Args:
        teacher: one model or several; None or anything else is not asked.

    Raises:
        DataError: as for `match_labels`.
    """
    first = teacher[0] if isinstance(teacher, list | tuple) and teacher else teacher
    if isinstance(first, nn.Module) and not names_of_outputs(student):
        structure, own = structure_if_known(unwrapped(first)), describe(student)
        sizes = (own.num_classes, own.in_chans)
        if structure is not None and (structure.num_classes, structure.in_chans) == sizes:
            return match_labels(data, unwrapped(first))
    return match_labels(data, student, learns=True)


def structure_if_known(model: nn.Module) -> ViTStructure | None:
    """The structure of a model that an adapter knows, else None."""
    try:
        return describe(model)
    except UnsupportedModel:
        return None


def _inputs_of(model: nn.Module, student: Preprocessing) -> tuple[str, Preprocessing, str]:
    """Name of a teacher, how its images are prepared, and who says so. What it does not say is as for the student."""
    structure = structure_if_known(model)
    if structure is not None:
        return structure.model, preprocessing_of(model), "as for its evaluation"
    name = name_of(model)
    recorded, source = recorded_preprocessing(model)
    as_student = {key: getattr(student, key) for key in IMAGE_SETTINGS}
    try:
        preprocessing = Preprocessing(**{**as_student, **recorded}) if recorded else student
    except SettingError as problem:
        raise SettingError(f"The teacher {name}: {problem}") from None
    channels = input_channels(model, len(preprocessing.mean))
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


def _classes_of(model: nn.Module, num_outputs: int) -> tuple[str, ...]:
    """Names of a teacher's outputs; empty if they are unknown, or are those of an earlier classifier."""
    try:
        names = origin_of(model).classes or recorded_classes(model)
    except UnsupportedModel:
        names = recorded_classes(model)
    return names if len(names) == num_outputs else ()


@torch.no_grad()
def _probe(model: nn.Module, name: str, before: Preprocessing, after: Preprocessing) -> Tensor:
    """The logits `(2, C)` of a teacher for two images of noise, prepared for the student.

    Raises:
        SettingError: it cannot be run, or returns something else than finite logits.
    """
    size = (PROBE_IMAGES, len(before.mean), *before.img_size)
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown = "x".join(str(side) for side in (len(after.mean), *after.img_size))
    device = _device_of(model)
    images = view_between(before, after, device)(normalise(noise.to(device), before)).to(dtype_of(model))
    try:
        with eval_mode(model):
            logits = _only_logits(model(images)).float()
    except MODEL_ERRORS as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise SettingError(
            f"The teacher {name} cannot be run on images of {shown} values (channels, height, width): {reason}. If "
            "it takes another image size, state it in its `pretrained_cfg`: `input_size` as (channels, height, width)."
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


def _device_of(model: nn.Module) -> torch.device:
    """The device of a model; the CPU if it has no weights."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


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
    if not names and num_outputs != len(classes):
        raise SettingError(
            f"The teacher {teacher} has {num_outputs} outputs and no class names, but the student has {len(classes)} "
            "classes; expected a teacher that was trained on these classes."
        )
    if not names or names == classes:
        return None
    index, _, notes = find_outputs(classes, [names])
    if index is None:
        missing = [label for label in classes if label not in names]
        if twice := [label for label in classes if names.count(label) > 1]:
            raise SettingError(f"The teacher {teacher} has several outputs of the name {twice[0]}; expected one.")
        raise SettingError(
            f"The teacher {teacher} has no output for {len(missing)} of the student's {len(classes)} classes, such as "
            f"{', '.join(missing[:3])}. It has {num_outputs}, such as {', '.join(names[:3])}; expected a teacher of "
            "these classes. If the names that it carries are wrong, correct or remove them."
        )
    for note in notes:
        log(f"teacher {teacher}: {note}")
    return index


def _about_images(student: Preprocessing, teacher: Preprocessing) -> str:
    if is_same_view(student, teacher):
        return "the student's images, prepared in the same way"
    size = "{} x {} pixels".format(*teacher.img_size)
    if student.img_size != teacher.img_size:
        size = "{} x {} resized to {} ({})".format(*student.img_size, size, view_interpolation(teacher))
    numbers = (", ".join(f"{value:.4g}" for value in values) for values in (teacher.mean, teacher.std))
    return "the student's images, {}, with mean {} and standard deviation {}".format(size, *numbers)


def _about_outputs(outputs: tuple[int, ...] | None, num_outputs: int, names: tuple[str, ...]) -> str:
    if outputs is None:
        unnamed = "" if names else "; they have no names, so this is assumed"
        return f"{num_outputs} outputs in the order of the student's{unnamed}"
    if len(outputs) == num_outputs:
        return f"{num_outputs} outputs, put into the order of the student's by their names"
    return f"{len(outputs)} of its {num_outputs} outputs, chosen by their names; softmax is over these"


@torch.no_grad()
def _judged(teacher: Teacher, student: nn.Module, images: ImageSet) -> Teacher:
    """The teacher, with the number of images in `about` that it classifies as they are labelled.

    This tries views and order of classes on images, and shows a teacher whose weights are random.
    """
    images = images.sample(MAX_JUDGED_IMAGES, seed=0)
    before, device = preprocessing_of(student), _device_of(teacher.model)
    view = view_between(before, teacher.preprocessing, device)
    num_right, num_judged, num_classes, in_unit_range = 0, 0, 0, True
    for batch, labels in eval_batches(images, before, batch_size=MAX_JUDGED_IMAGES, device=device, num_workers=0):
        with eval_mode(teacher.model):
            logits = logits_in(teacher.model(view(batch).to(dtype_of(teacher.model)))).float()
        in_unit_range &= bool((logits >= 0).all() and (logits <= 1).all() and logits.any())
        logits = logits if teacher.outputs is None else logits[:, list(teacher.outputs)]
        num_right += int((logits.argmax(dim=1) == labels).sum())
        num_judged, num_classes = num_judged + len(labels), logits.shape[1]
    if not num_judged:
        return teacher
    about = f"{teacher.about}; right on {num_right} of {num_judged} validation images"
    if stats.binomtest(num_right, num_judged, 1 / num_classes, alternative="greater").pvalue > MAX_P_OF_CHANCE:
        about += ", no better than chance: are its weights trained, and are its classes in this order?"
    if in_unit_range:
        about += "; its outputs are all between 0 and 1, as probabilities are: are they logits, as expected?"
    return replace(teacher, about=about)
