"""vitrim's training loop and a minimal loop written by hand, each with single steps that can be measured."""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.costs.cases import Case
from benchmarks.costs.ratios import count_operations
from vitrim.data.images import ImageData
from vitrim.losses import DistillationLoss
from vitrim.models import describe
from vitrim.training.job import TrainingJob
from vitrim.training.loop import TrainingLoop


class VitrimLoop:
    """vitrim's training loop, opened so that epochs and single steps can be run.

    Args:
        case: models, plan, images and settings.
        stack: closes the loop.
        data: images to train on (default: those of the case).
        distil: train the student with the teacher. If False, a copy of the teacher is trained on the labels.

    Attributes:
        opening_seconds: seconds of making the functions that run the models.
    """

    def __init__(self, case: Case, stack: ExitStack, *, data: ImageData | None = None, distil: bool = True) -> None:
        model = copy.deepcopy(case.student if distil else case.teacher).requires_grad_(True)
        teacher = copy.deepcopy(case.teacher) if distil else None
        between = (describe(model), describe(case.teacher), case.plan)
        loss = DistillationLoss.between(case.settings.distillation, *between) if distil else None
        job = TrainingJob(
            model=model, data=data or case.data, settings=case.settings, loss=loss, teacher=teacher, stage="benchmark"
        )
        self.loop = TrainingLoop(job)
        start = time.perf_counter()
        self.forwards = stack.enter_context(self.loop.forward_functions())
        self.opening_seconds = time.perf_counter() - start
        self.sums: dict[str, Tensor] = {}

    def batches(self) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """Return the batches of one epoch, from the first step."""
        self.loop.step = 0
        return self.loop.batches()

    def update(self, batch: list[tuple[Tensor, Tensor]]) -> None:
        """Run one training step."""
        self.loop.update(batch, *self.forwards, self.sums)

    def epoch(self) -> None:
        """Run all steps of one epoch."""
        for batch in self.batches():
            self.update(batch)

    def seconds_waiting(self) -> tuple[float, float]:
        """Run one epoch and return the seconds of waiting for batches, and all seconds. The first step is left out."""
        batches = self.batches()
        self.update(next(batches))
        start, waited = time.perf_counter(), 0.0
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - asked
            if batch is None:
                break
            self.update(batch)
        if self.loop.device.type == "cuda":
            torch.cuda.synchronize()
        return waited, time.perf_counter() - start


class MinimalLoop:
    """A minimal loop with the same losses and optimiser.

    It uses hooks, one batch that is made before, and no moving average of the weights.
    """

    def __init__(self, case: Case, batch: tuple[Tensor, Tensor]) -> None:
        self.images = batch[0]
        device = self.images.device
        self.teacher, self.settings = copy.deepcopy(case.teacher).to(device).eval(), case.settings
        self.student = copy.deepcopy(case.student).to(device).requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(
            self.student.parameters(), lr=self.settings.learning_rate, weight_decay=0.05, fused=True
        )
        self.bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        self.states: dict[nn.Module, list[Tensor]] = {self.student: [], self.teacher: []}
        self.handles = [
            block.register_forward_hook(lambda *found, into=into: into.append(found[2]))
            for model, into in self.states.items()
            for block in model.blocks  # type: ignore[union-attr]
        ]

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()

    def step(self) -> None:
        """Run one training step."""
        self.loss().backward()
        self.update()

    def update(self) -> None:
        """Clip the gradients and update the weights."""
        nn.utils.clip_grad_norm_(self.student.parameters(), self.settings.clip_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(self) -> Tensor:
        """Return the loss on logits plus the mean loss on hidden states."""
        targets = self.teacher_logits()
        with self.bf16:
            logits = self.student(self.images).float()
        soft = F.kl_div(logits.log_softmax(-1), targets.log_softmax(-1), reduction="batchmean", log_target=True)
        hidden = [
            (F.mse_loss(mine, theirs, reduction="none").flatten(1).mean(1) / theirs.flatten(1).var(1)).mean()
            for mine, theirs in zip(*self.states.values(), strict=True)
        ]
        for states in self.states.values():
            states.clear()
        return soft + torch.stack(hidden).mean()

    def teacher_logits(self) -> Tensor:
        """Run the teacher and return its logits, `(B, C)`. The hooks keep its hidden states."""
        with torch.no_grad(), self.bf16:
            return self.teacher(self.images).float()


@contextmanager
def both_loops(case: Case) -> Iterator[tuple[VitrimLoop, MinimalLoop]]:
    """Open both loops, each with its own student, after a first step that allocates the optimiser's moments."""
    with ExitStack() as stack:
        ours = VitrimLoop(case, stack)
        batch = next(ours.batches())
        minimal = MinimalLoop(case, batch[0])
        stack.callback(minimal.close)
        ours.update(batch)
        minimal.step()
        yield ours, minimal


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """Counts for one step, without making its batch.

    Attributes:
        calls: calls of torch.
        peak_bytes: maximum bytes of new tensors alive.
        saved_bytes: bytes that autograd keeps for the backward pass.
    """

    calls: int
    peak_bytes: int
    saved_bytes: int


def count_step(step: Callable[[], None], model: nn.Module) -> StepCounts:
    """Run a step of training `model` twice, and count its calls and bytes."""
    found = count_operations(step)
    return StepCounts(calls=found.calls, peak_bytes=found.peak_bytes, saved_bytes=saved_bytes(step, model))


def saved_bytes(run: Callable[[], object], model: nn.Module) -> int:
    """Return the bytes that autograd keeps for backward passes of a run. Each storage counts once, weights do not."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # references keep each address from being used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


def needed_bytes(minimal: MinimalLoop) -> int:
    """Return the bytes that a step must keep: those of the student's forward pass, and the teacher's hidden states."""

    def forward() -> None:
        with minimal.bf16:
            minimal.student(minimal.images).sum().backward()
        minimal.optimizer.zero_grad()

    plain = saved_bytes(forward, minimal.student)
    minimal.teacher_logits()
    states = sum(state.nbytes for state in minimal.states[minimal.teacher])
    for found in minimal.states.values():
        found.clear()
    return plain + states
