"""How long one image takes on this machine: the dense model and the teachers are timed on a few images.

How often images run is in `forecast`.
"""

import time
from dataclasses import dataclass

import torch
from torch import nn

from vitrim.copying import copied
from vitrim.data.batches import eval_batches
from vitrim.data.files.decoding import num_cores
from vitrim.data.images import ImageSet
from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import Preprocessing
from vitrim.hooks import eval_mode, logits_of
from vitrim.precision import autocast
from vitrim.runs.processes import this_process
from vitrim.source import Source
from vitrim.training.settings import TrainingSettings

FEW_IMAGES, MORE_IMAGES = 2, 16  # timed together; more only where they take less than `QUICK_SECONDS`
ON_GPU = (16, 16, 128, 128, 512, 512)  # small batches do not fill a GPU; the first of each size loads its kernels
QUICK_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds for one image on this machine.

    Attributes:
        forward: a forward pass of the dense model.
        training: a forward and a backward pass of a model of its size.
        teachers: the forward passes of all models that teach.
        decoding: reading an image, divided by the number of cores; 0 if the pixels are in memory.
        overlaps: whether images are read while the model runs, because it runs on a GPU.
    """

    forward: float
    training: float
    teachers: float = 0.0
    decoding: float = 0.0
    overlaps: bool = False

    def seconds(self, num_images: float, compute: float) -> float:
        """The time for so many images, if the models need `compute` seconds for each."""
        return num_images * (max(compute, self.decoding) if self.overlaps else compute + self.decoding)


def measure_pace(source: Source, settings: TrainingSettings) -> Pace:
    """Time the dense model and the teachers on a few images. Models and random state are not changed."""
    device, images = source.device, source.data.train
    preprocessing = preprocessing_of(source.model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        forward = _seconds_for_an_image(source.model, preprocessing, settings, device)
        trained = copied(source.model).requires_grad_(True)
        training = _seconds_for_an_image(trained, preprocessing, settings, device, backward=True)
        teachers = [
            _seconds_for_an_image(teacher.model, teacher.preprocessing, settings, device) for teacher in source.teachers
        ]
    num_processes, passes = this_process().num_processes, 2 if settings.distillation.flip else 1
    return Pace(
        forward=forward / num_processes,
        training=training / num_processes,
        teachers=passes * (sum(teachers) if teachers else forward) / num_processes,
        decoding=_seconds_to_decode(images, preprocessing) / num_cores(),
        overlaps=device.type == "cuda",
    )


def _seconds_for_an_image(
    model: nn.Module,
    preprocessing: Preprocessing,
    settings: TrainingSettings,
    device: torch.device,
    *,
    backward: bool = False,
) -> float:
    """The time of one image in the largest batch that is quick and fits. The first batch prepares the device."""
    model, seconds = model.to(device), 0.0
    larger = ON_GPU if device.type == "cuda" else (MORE_IMAGES,)
    for number, count in enumerate((FEW_IMAGES, FEW_IMAGES, *larger)):
        if number >= 2 and seconds * count > QUICK_SECONDS:
            break
        shape = (count, preprocessing.channels, *preprocessing.img_size)
        images = torch.zeros(shape, device=device, dtype=next(model.parameters()).dtype)
        began = time.perf_counter()
        try:
            with eval_mode(model), torch.set_grad_enabled(backward), autocast(device, settings.precision):
                logits = logits_of(model(images)).float()
                if backward:
                    logits.square().mean().backward()
        except torch.OutOfMemoryError:
            if not seconds:
                raise
            break
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = (time.perf_counter() - began) / count
    return seconds


def _seconds_to_decode(images: ImageSet, preprocessing: Preprocessing) -> float:
    """The time to read one image in one process; 0 if the pixels are in memory."""
    if images.pixels is not None or not len(images):
        return 0.0
    few, began = images.subset(range(min(len(images), 2 * FEW_IMAGES))), time.perf_counter()
    num_read = sum(len(batch) for batch, _ in eval_batches(few, preprocessing, batch_size=len(few), num_workers=0))
    return (time.perf_counter() - began) / max(1, num_read)
