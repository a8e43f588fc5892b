"""`train`: from a model and images to the trained copy. The loop is in `loop`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from vitrim.copying import copied
from vitrim.data.files.run_record import as_in_run
from vitrim.data.files.unreadable import log_replaced
from vitrim.data.images import ImageData
from vitrim.data.matching import device_of, note_classes
from vitrim.models import adapter_for
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.runs.locks import locking
from vitrim.runs.processes import this_process
from vitrim.training.distillation import Teachers, loss_with
from vitrim.training.job import TrainingJob
from vitrim.training.loop import TrainingLoop
from vitrim.training.settings import TrainingSettings
from vitrim.training.teachers import match_student


@locking("run_dir")
def train(
    model: nn.Module,
    data: ImageData,
    settings: TrainingSettings,
    *,
    teacher: nn.Module | Sequence[nn.Module] | Teachers | None = None,
    plan: PruningPlan | None = None,
    run_dir: str | Path | None = None,
    stage: str = "train",
    seed: int = 0,
) -> nn.Module:
    """Train a copy of `model`, on labels or with a teacher.

    Args:
        teacher: the model learns from its outputs as `settings.distillation` says. It is not changed. It may be any
            model that returns logits of the same classes; its images are prepared as it was trained. Of several, the
            mean of their softmax outputs is learned, and hidden states are compared with the first.
        plan: which blocks of the teacher the model's blocks are; by default all of them. Indices refer to the teacher,
            from which the model was cut.
        run_dir: folder of the checkpoint of this `stage` and of `metrics.jsonl`. If it holds a checkpoint, training
            goes on from there, and ends with the weights of an uninterrupted training (bit for bit on the CPU).
        seed: decides batches and augmentation.

    Returns:
        The trained copy in eval mode: the moving average of its weights, if `settings.ema_decay` is above 0. It is that
        of the last epoch, or of the one that `settings.keep_epoch` chooses.

    Raises:
        NonFiniteLoss: the loss or its gradient became infinite or not a number, also with a quarter of the learning
            rate. The last checkpoint is good.
        NotEnoughMemory: two images of one micro-batch do not fit into memory.
        FolderInUse: the checkpoint in `run_dir` was made with other settings.
        SettingError: a teacher does not fit the model. DataError: the data does not fit the model.
    """
    model = unwrapped(model)
    data = as_in_run(data.with_num_workers(settings.num_workers), run_dir)
    data, loss, teachers = match_student(data, model, teacher), None, Teachers()
    if teacher is not None and settings.epochs:
        loss, teachers = loss_with(model, teacher, settings.distillation, data, plan)
    job = TrainingJob(
        model=model,
        data=data,
        settings=settings,
        loss=loss,
        teacher=teachers.compared,
        soft_labels=teachers.labels,
        run_dir=Path(run_dir) if run_dir else None,
        stage=stage,
        seed=seed,
    )
    return note_classes(run_job(job), job.data)


def run_job(job: TrainingJob) -> nn.Module:
    """Train a copy of `job.model`, as `train` does.

    Raises:
        NonFiniteLoss, NotEnoughMemory, FolderInUse, DataError: as `train`.
    """
    model = copied(job.model)
    if job.settings.epochs == 0:
        return model.eval()
    model.requires_grad_(True)  # a teacher may be frozen; its student learns
    adapter_for(model).set_drop_path(model, job.settings.drop_path)
    device = this_process().device
    with _not_on_device(job), torch.random.fork_rng([device] if device.type == "cuda" else []):
        trained = TrainingLoop(replace(job, model=model)).run()
    images = job.data.train
    log_replaced(images.unreadable.among(images.files), job.stage)
    return trained


@contextmanager
def _not_on_device(job: TrainingJob) -> Iterator[None]:
    """A context in which the memory of the device has only divided copies of the models, if the job divides them."""
    if not job.settings.shard or this_process().num_processes == 1:
        yield
        return
    models = [job.model, *([job.teacher] if job.teacher is not None else []), *(one.model for one in job.soft_labels)]
    devices = [(model, device_of(model)) for model in models]
    try:
        for model in models:
            model.cpu()
        yield
    finally:
        for model, device in devices:
            model.to(device)
