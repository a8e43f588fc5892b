"""The target of a distillation: what its students learn, evaluated before the training like the output of a model."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from vitrim.data.images import ImageData
from vitrim.data.matching import preprocessing_of
from vitrim.evaluation import Evaluation, evaluate_outputs
from vitrim.hooks import eval_mode
from vitrim.losses import DistillationLoss
from vitrim.precision import autocast
from vitrim.runs.processes import this_process
from vitrim.training.distillation import Teachers
from vitrim.training.job import TrainingJob
from vitrim.training.settings import TrainingSettings
from vitrim.training.soft_labels import SoftLabels


@torch.no_grad()
def evaluate_target(student: nn.Module, data: ImageData, teachers: Teachers, settings: TrainingSettings) -> Evaluation:
    """Measure the accuracy of the soft labels on the validation images, as the training will compute them.

    Args:
        student: says how the images are prepared. Any smaller model of it prepares them in the same way.
        data: with labels as the student counts them.
        teachers: of the training.
        settings: of the training; its loss has a soft term.

    Raises:
        DataError: there are no validation images.
    """
    outputs = replace(settings.distillation, hidden=0.0, relations=0.0)
    job = TrainingJob(
        model=student,
        data=data,
        settings=settings,
        loss=DistillationLoss.of_outputs(outputs),
        teacher=None if teachers.labels else teachers.compared,
        soft_labels=teachers.labels,
    )
    device = this_process().device
    labels = SoftLabels(job, device)

    def predict(images: Tensor) -> Tensor:
        with autocast(device, settings.precision):
            return labels(images).float()

    with eval_mode(*labels.models):
        return evaluate_outputs(
            predict, data.validation, [preprocessing_of(student)], device=device, description="evaluating the target"
        )
