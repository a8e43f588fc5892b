"""The teachers of a training while it runs: from the student's images to the soft labels.

What must hold before is checked in `teachers`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vitrim.copying import copied
from vitrim.data.matching import preprocessing_of
from vitrim.data.preprocessing import Preprocessing
from vitrim.data.views import view_between
from vitrim.ensembles import mean_logits
from vitrim.precision import computes_in_bf16, with_bf16_products
from vitrim.training.job import TrainingJob
from vitrim.training.sharding import shard
from vitrim.training.teachers import dtype_of, logits_in, structure_if_known


@dataclass(frozen=True, kw_only=True, eq=False)
class _Running:
    """One teacher on the device of the training."""

    model: nn.Module
    view: Callable[[Tensor], Tensor]
    dtype: torch.dtype | None  # of its images; None for that of the student's
    outputs: Tensor | None = None  # index (C,) of the student's classes
    is_learned: bool = True

    def __call__(self, images: Tensor) -> Tensor:
        images = self.view(images)
        logits = logits_in(self.model(images if self.dtype is None else images.to(self.dtype))).float()
        return logits if self.outputs is None else logits[:, self.outputs]


class SoftLabels:
    """The teachers of a training on its device, as a function from the student's images to soft labels.

    Each teacher runs once for each batch. With `distillation.flip`, a teacher whose outputs are learned runs before on
    the mirror images: hooks then hold the hidden states of the images themselves. Where the training computes in bf16,
    the teachers hold bf16 weights, which autocast would convert in each step.

    Attributes:
        compared: the model whose hidden states and relations are compared; None if there is none.
    """

    def __init__(self, job: TrainingJob, device: torch.device, sharding: Accelerator | None = None) -> None:
        """Move the teachers to the device.

        Args:
            job: has the teachers, and a loss.
            device: of the training.
            sharding: of the processes among which copies of the teachers are divided; None to divide nothing.
        """
        self._sharding = sharding
        assert job.loss is not None
        self.temperature, self.flip = job.loss.settings.temperature, job.loss.settings.flip
        self.in_bf16 = computes_in_bf16(device, job.settings.precision)
        self.device, self.student = device, preprocessing_of(job.model)
        self.compared: nn.Module | None = None
        self._running: list[_Running] = []
        labels = list(job.soft_labels)
        if job.teacher is not None and (not labels or job.loss.needs_states):
            same = next((one for one in labels if one.model is job.teacher), None)
            labels = [one for one in labels if one is not same]
            preprocessing = same.preprocessing if same else preprocessing_of(job.teacher)
            outputs = same.outputs if same else None
            is_learned = same is not None or not job.soft_labels
            self._running.append(self._start(job.teacher, preprocessing, outputs, is_learned))
            self.compared = self._running[0].model
        self._running += [self._start(one.model, one.preprocessing, one.outputs, True) for one in labels]

    @property
    def models(self) -> list[nn.Module]:
        """The teachers on the device."""
        return [one.model for one in self._running]

    def __call__(self, images: Tensor) -> Tensor:
        """The soft labels of a batch, as logits `(B, C)`; images `(B, channels, h, w)` are prepared for the student."""
        mirrored, found = images.flip(-1) if self.flip else None, []
        for one in self._running:
            if mirrored is not None and one.is_learned:
                found.append(one(mirrored))
            logits = one(images)  # last, because hooks record it
            if one.is_learned:
                found.append(logits)
        return mean_logits(found, self.temperature)

    def _start(
        self, model: nn.Module, preprocessing: Preprocessing, outputs: tuple[int, ...] | None, is_learned: bool
    ) -> _Running:
        dtype = dtype_of(model)
        model = model.to(self.device) if self._sharding is None else copied(model)
        model = with_bf16_products(model) if self.in_bf16 else model
        if self._sharding is not None:
            model = shard(model.requires_grad_(False), structure_if_known(model), self._sharding)
        return _Running(
            model=model,
            view=view_between(self.student, preprocessing, self.device),
            dtype=None if dtype == torch.float32 else dtype,
            outputs=None if outputs is None else torch.tensor(outputs, device=self.device),
            is_learned=is_learned,
        )
