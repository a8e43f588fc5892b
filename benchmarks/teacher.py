"""The better teacher of a cell: models whose mean softmax outputs all students learn, and how good this mean is.

Each teacher sees the images as it was trained, prepared from those of the student. Hidden states are compared with the
dense model. What a teacher must fulfil is checked by `vitrim.training.teachers`.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.config import TeacherSettings
from benchmarks.divergence import BATCH_SIZE
from vitrim.data.images import ImageData
from vitrim.data.matching import Calibration, device_of, preprocessing_of
from vitrim.data.views import view_between
from vitrim.errors import SettingError
from vitrim.hooks import eval_mode
from vitrim.runs.processes import this_process
from vitrim.saving.checkpoint import load
from vitrim.training.teachers import Teacher, checked_teachers, dtype_of, logits_in


def load_teachers(settings: TeacherSettings, base: Path) -> list[nn.Module]:
    """Load the models of a teacher.

    Args:
        settings: name the folders of the models.
        base: folder to which relative paths refer.

    Raises:
        SettingError: a folder does not exist. CheckpointMismatch: it has no model, or a damaged one.
    """
    return [load_named(named_folder(path, base), "teacher.models") for path in settings.models]


def named_folder(path: str, base: Path) -> Path:
    """Return the folder that a path of a configuration names. Relative paths begin at `base`, which need not exist."""
    return Path(os.path.normpath(base / path))


def load_named(folder: Path, key: str) -> nn.Module:
    """Load the model that a configuration names.

    Args:
        folder: of the model, or of the run that trained it.
        key: of the configuration, for the error.

    Raises:
        SettingError: the folder does not exist. CheckpointMismatch: it has no model, or a damaged one.
    """
    if not folder.is_dir():
        raise SettingError(
            f"{key} names {folder}, which does not exist; expected the folder of a model or of a finished training. "
            "Relative paths begin at the folder of the cell (-o)."
        )
    return load(folder, device=this_process().device)


@torch.no_grad()
def target_marks(models: Sequence[nn.Module], dense: nn.Module, data: ImageData, *, flip: bool) -> Tensor:
    """Return whether the mean of the teachers' softmax outputs classifies each test image right, `(N,)` of bool.

    Args:
        models: the teachers; the dense model teaches if there are none.
        dense: the dense model, for which the images are prepared.
        data: the images, with labels as the dense model counts them.
        flip: the mean is also over each image and its mirror image.
    """
    teachers = checked_teachers(models or [dense], dense, data)
    marks = []
    with eval_mode(*(teacher.model for teacher in teachers)):
        for images, labels in Calibration(images=data.validation, model=dense, batch_size=BATCH_SIZE):
            mean = sum(_softmax(teacher, dense, images, flip=flip) for teacher in teachers)
            assert isinstance(mean, Tensor)
            marks.append((mean.argmax(dim=1) == labels).cpu())
    return torch.cat(marks)


def _softmax(teacher: Teacher, dense: nn.Module, images: Tensor, *, flip: bool) -> Tensor:
    """Return the sum of the softmax outputs for the images, and for their mirror images with `flip`, `(B, C)`."""
    view = view_between(preprocessing_of(dense), teacher.preprocessing, device_of(dense))
    total = torch.zeros((), device=images.device)
    for shown in (images, images.flip(-1)) if flip else (images,):
        logits = logits_in(teacher.model(view(shown).to(dtype_of(teacher.model)))).float()
        logits = logits if teacher.outputs is None else logits[:, list(teacher.outputs)]
        total = total + logits.softmax(dim=1)
    return total
