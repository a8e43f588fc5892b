"""One training as data, and the checks that need no computation."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from vitrim.data.batches import check_batch_size
from vitrim.data.images import ImageData
from vitrim.data.matching import preprocessing_of
from vitrim.data.views import is_same_view
from vitrim.losses import DistillationLoss, check_terms
from vitrim.runs.processes import this_process
from vitrim.saving.checkpoint import fingerprint
from vitrim.structure import ViTStructure
from vitrim.training.settings import TrainingSettings
from vitrim.training.teachers import Teacher

INTERVAL = "epochs between evaluations"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingJob:
    """One training: what is trained, on what, and how.

    Attributes:
        model: is trained in place.
        data: with labels as the model counts them.
        loss: the terms that compare with the teacher; None for a training on labels.
        teacher: its hidden states and relations are compared; without `soft_labels`, its outputs are learned too. None
            for a training on labels, or with `soft_labels` alone.
        soft_labels: teachers whose mean output is learned.
        run_dir: folder of the checkpoint and of `metrics.jsonl`; None to write nothing.
        stage: name of the training in these files.
        seed: decides batches and augmentation.
        checkpoint_at_end: write a checkpoint after the last update. Not needed if the caller keeps the result.
    """

    model: nn.Module
    data: ImageData
    settings: TrainingSettings
    loss: DistillationLoss | None = None
    teacher: nn.Module | None = None
    soft_labels: tuple[Teacher, ...] = ()
    run_dir: Path | None = None
    stage: str = "train"
    seed: int = 0
    checkpoint_at_end: bool = True

    @cached_property
    def identity(self) -> str:
        """Everything that the result depends on, as JSON. A checkpoint of another identity is refused."""
        settings = asdict(self.settings)
        about: dict[str, Any] = {
            "settings": {name: value for name, value in settings.items() if name not in self.settings.changeable()},
            "seed": self.seed,
            "weights": fingerprint(self.model),
            "teacher": fingerprint(self.teacher) if self.teacher is not None else None,
            "loss": repr(self.loss),
            "data": self.data.fingerprint(),
        }
        if self.soft_labels:
            about["soft labels"] = [teacher.to_dict() for teacher in self.soft_labels]
        if self.teacher is not None and not is_same_view(*(preprocessing_of(m) for m in (self.model, self.teacher))):
            about["teacher's images"] = preprocessing_of(self.teacher).to_dict()
        if self.settings.batch_size == "auto":  # it depends on the images and on the number of processes
            about["batch"] = self.settings.batch_for(len(self.data.train), this_process().num_processes)
        if self.settings.chooses_epoch:  # else evaluations change nothing
            about[INTERVAL] = self.settings.evaluation_interval
        return json.dumps(about, sort_keys=True)


def is_same_training(first: str, second: str) -> bool:
    """Whether two identities are of one training. Earlier versions also wrote settings that may change.

    An identity without `keep_epoch` is of an earlier version. Its training may go on with either value. One without
    `flip` is of a version that had no such setting.
    """
    abouts = [json.loads(identity) for identity in (first, second)]
    is_earlier = any("keep_epoch" not in about["settings"] for about in abouts)
    only_in_one = set.symmetric_difference(*(set(about["settings"]) for about in abouts))
    for about in abouts:
        about["settings"]["distillation"].setdefault("flip", False)
        about["loss"] = about["loss"].replace(", flip=False", "")
        for name in only_in_one & TrainingSettings.CHANGEABLE:
            about["settings"].pop(name, None)
        if is_earlier:
            about["settings"].pop("keep_epoch", None)
            about.pop(INTERVAL, None)
    return abouts[0] == abouts[1]


def check_training(settings: TrainingSettings, structure: ViTStructure, data: ImageData | None = None) -> None:
    """Refuse a training that could not run, before anything is computed.

    Args:
        data: None if no images have been read yet; then the batch is not checked.

    Raises:
        SettingError: the batch cannot be divided, or a loss term does not fit the model.
        DataError: there are too few images for one update.
    """
    if settings.epochs and data is not None:
        num_parts = this_process().num_processes * settings.accumulate
        batch_size = settings.batch_for(len(data.train), this_process().num_processes)
        check_batch_size(data.train, batch_size, num_parts, structure.num_classes)
    check_terms(settings.distillation, structure)
