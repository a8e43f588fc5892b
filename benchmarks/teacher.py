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
from vitrim.data.images import ImageData
from vitrim.errors import SettingError
from vitrim.losses import DistillationSettings
from vitrim.runs.processes import this_process
from vitrim.saving.checkpoint import load
from vitrim.training.distillation import Teachers
from vitrim.training.settings import TrainingSettings
from vitrim.training.target import evaluate_target
from vitrim.training.teachers import checked_teachers


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


def target_marks(models: Sequence[nn.Module], dense: nn.Module, data: ImageData, *, flip: bool) -> Tensor:
    """Return whether the mean of the teachers' softmax outputs classifies each test image right, `(N,)` of bool.

    Args:
        models: the teachers; the dense model teaches if there are none.
        dense: the dense model, for which the images are prepared.
        data: the images, with labels as the dense model counts them.
        flip: the mean is also over each image and its mirror image.
    """
    teachers = Teachers(labels=checked_teachers(models or [dense], dense, data))
    settings = TrainingSettings(precision="fp32", distillation=DistillationSettings(flip=flip))
    return torch.from_numpy(evaluate_target(dense, data, teachers, settings).correct)
