"""The one training loop, with or without a teacher.

Every step is a pure function of the weights and of (seed, step): batches, stochastic depth and dropout draw from
generators seeded by them. So a checkpoint needs no random state, and a resumed training ends with the weights of an
uninterrupted one. Several processes divide each batch and end with the weights of one process, up to rounding. With
stochastic depth or dropout, each process draws its own masks, and the weights differ.
"""

import math
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.copying import copied
from vitrim.data.batches import BatchSchedule, Part, check_batch_size, num_train_steps, train_batches
from vitrim.data.files.run_record import as_in_run, keep_record
from vitrim.data.files.unreadable import log_replaced
from vitrim.data.images import ImageData
from vitrim.data.matching import note_classes, preprocessing_of
from vitrim.data.seeds import mixed_seed
from vitrim.errors import NonFiniteLoss
from vitrim.hooks import eval_mode, logits_of, recorded_states
from vitrim.models import adapter_for, describe
from vitrim.models.wrappers import unwrapped
from vitrim.plan import PruningPlan
from vitrim.precision import autocast
from vitrim.runs.files import CHECKPOINT
from vitrim.runs.locks import locking
from vitrim.runs.processes import this_process
from vitrim.runs.progress import advancing, log
from vitrim.training.batch_memory import Memory, measure_memory, num_micro_batches
from vitrim.training.compiling import CompileSchedule
from vitrim.training.distillation import Teachers, loss_with
from vitrim.training.job import TrainingJob
from vitrim.training.metrics import Metrics
from vitrim.training.optimizer import optimizer_and_scheduler
from vitrim.training.settings import TrainingSettings
from vitrim.training.soft_labels import SoftLabels
from vitrim.training.state import TrainingState
from vitrim.training.stopping import stopping
from vitrim.training.teachers import match_student
from vitrim.training.validation import Validation

STEPS_BETWEEN_CHECKS = 50  # a check whether the loss is finite waits for the device


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
        NonFiniteLoss: the loss or its gradient became infinite or not a number. The last checkpoint is good.
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
        NonFiniteLoss, FolderInUse, DataError: as `train`.
    """
    model = copied(job.model)
    if job.settings.epochs == 0:
        return model.eval()
    model.requires_grad_(True)  # a teacher may be frozen; its student learns
    adapter_for(model).set_drop_path(model, job.settings.drop_path)
    device = this_process().device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trained = TrainingLoop(replace(job, model=model)).run()
    images = job.data.train
    log_replaced(images.unreadable.among(images.files), job.stage)
    return trained


class TrainingLoop:
    """One training: the model, its optimiser, and the number of updates that were made (`step`)."""

    def __init__(self, job: TrainingJob) -> None:
        this_process()  # makes the group of processes, also without GPUs
        self.job, settings, loss = job, job.settings, job.loss
        no_logits = loss is not None and not loss.needs("student logits")
        parallel = DistributedDataParallelKwargs(find_unused_parameters=no_logits)
        # bf16 is handled here: one process may train in several precisions
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[parallel])
        self.device = self.accelerator.device
        self.images = job.data.train.to(self.device)
        self.model = job.model.to(self.device)
        self.teacher = SoftLabels(job, self.device) if loss is not None else None
        self.preprocessing = preprocessing_of(self.model)
        self.num_classes = describe(self.model).num_classes
        self.batch_size = settings.batch_for(len(self.images), self.accelerator.num_processes)
        self.steps_per_epoch = num_train_steps(self.images, self.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.optimizer, self.scheduler = optimizer_and_scheduler(
            self.model, settings, self.batch_size, self.steps_per_epoch
        )
        self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        self.student_outputs: dict[str, Tensor] = {}
        self.teacher_outputs: dict[str, Tensor] = {}
        if job.run_dir:
            job.run_dir.mkdir(parents=True, exist_ok=True)
            keep_record(job.data, job.run_dir)
        is_main = self.accelerator.is_main_process
        self.metrics = Metrics(job.run_dir, job.stage, settings.epochs, is_main_process=is_main)
        self.validation = Validation(job)
        self.state = TrainingState(
            path=job.run_dir / CHECKPOINT.format(stage=job.stage) if job.run_dir else None,
            identity=job.identity if job.run_dir else "",  # reads all weights and images
            model=self.model,
            ema=self.ema,
            optimizer=self.optimizer,
            validation=self.validation,
        )
        structures = {self.model: describe(self.model)}
        if self.teacher is not None and self.teacher.compared is not None and job.teacher is not None:
            structures[self.teacher.compared] = describe(job.teacher)  # `compared` may hold bf16 weights
        self.compiling = CompileSchedule(structures, settings.compile, self.device, job.stage)
        self.accumulate = self._accumulate() if settings.batch_size == "auto" else settings.accumulate
        self.step = 0
        self.saved_at = 0.0
        self.first_bad_step = torch.full((), math.inf, device=self.device)  # on the device, so no update waits for it

    def run(self) -> nn.Module:
        """Train from the checkpoint, if there is one, to the last step. Returns the model in eval mode."""
        self._resume()
        started = self.step
        with ExitStack() as stack:
            student, teacher = stack.enter_context(self.forward_functions())
            advance = stack.enter_context(advancing(self.job.stage, self.total_steps, self.step))
            batches = stack.enter_context(closing(self.batches()))
            stop = stack.enter_context(stopping(self.job, self.device, self.step))
            self.saved_at = time.monotonic()
            while self.step < self.total_steps:
                begun, first = time.monotonic(), self.step
                sums: dict[str, Tensor] = {}
                for _ in range(self.steps_per_epoch - first % self.steps_per_epoch):
                    self.update(next(batches), student, teacher, sums)
                    advance(1)
                    if self.step % STEPS_BETWEEN_CHECKS == 0:
                        self._check_finite()
                        self.compiling.observe(self.step, self.total_steps)
                    if self.step % self.steps_per_epoch:
                        self._save_if_due()
                        stop.after(self.step, self.save)
                self._check_finite()
                self.compiling.observe(self.step, self.total_steps)
                self._end_epoch(sums, self.step - first, time.monotonic() - begun)
                self.compiling.restart_clock(self.step)  # the evaluation is no part of an update
                self._save_if_due()  # with the result of the evaluation
                stop.after(self.step, self.save, ask=True)
        if self.step > started and self.job.checkpoint_at_end:
            self.save()
        result = self.ema.module if self.ema else self.accelerator.unwrap_model(self.model)
        self.validation.restore_best(result)  # after the checkpoint of the last epoch
        result.requires_grad_(True)
        return result.eval()

    @contextmanager
    def forward_functions(self) -> Iterator[tuple[Any, Any]]:
        """A context with the student in train mode and the teachers in eval mode, as functions of a batch of images.

        Each pass leaves the outputs that the loss terms read in `student_outputs` and `teacher_outputs`.
        """
        with ExitStack() as stack:
            stack.enter_context(closing(self.compiling))
            stack.enter_context(self._recording())
            student = self.accelerator.prepare(self.model.train())
            yield student, self.teacher

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """A context in which passes leave the outputs that the loss terms read, and teachers are in eval mode."""
        with ExitStack() as stack:
            if self.job.loss is not None and self.teacher is not None:
                loss = self.job.loss
                stack.enter_context(eval_mode(*self.teacher.models))
                student_hooks = recorded_states(self.model, loss.recorded_in_student())
                self.student_outputs = stack.enter_context(student_hooks)
                if self.teacher.compared is not None:
                    teacher_hooks = recorded_states(self.teacher.compared, loss.recorded_in_teacher())
                    self.teacher_outputs = stack.enter_context(teacher_hooks)
            yield

    def _accumulate(self) -> int:
        """The number of micro-batches of one update with which it fits into memory, on every process."""
        smallest, num_processes = self.job.settings.accumulate, self.accelerator.num_processes
        batch_size = check_batch_size(self.images, self.batch_size, num_processes * smallest, self.num_classes)

        def train_on(num_images: int) -> None:
            images = torch.randn(num_images, self.images.channels, *self.preprocessing.img_size, device=self.device)
            targets = torch.full((num_images, self.num_classes), 1 / self.num_classes, device=self.device)
            sum(self.loss_terms(images, targets, self.model, self.teacher).values()).backward()  # type: ignore

        with self._recording():
            own = measure_memory(self.model, train_on)
        measured = torch.tensor([[own.few, own.more, -own.free]], dtype=torch.float64, device=self.device)
        few, more, used = self.accelerator.gather(measured).max(dim=0).values.tolist()  # all processes decide alike
        found = num_micro_batches(batch_size // num_processes, Memory(few=few, more=more, free=-used), smallest)
        parts = num_processes * found
        log(f"{self.job.stage}: {batch_size} images for each update, in {parts} part{'s' if parts > 1 else ''}")
        return found

    def batches(self) -> Generator[list[tuple[Tensor, Tensor]], None, None]:
        """The micro-batches of this process, update by update, from the current step to the last."""
        epoch, first_step = divmod(self.step, self.steps_per_epoch)
        settings, rank = self.job.settings, self.accelerator.process_index
        schedule = BatchSchedule(
            batch_size=self.batch_size,
            seed=self.job.seed,
            epoch=epoch,
            num_epochs=settings.epochs - epoch,
            first_step=first_step,
        )
        micro = [
            train_batches(
                self.images,
                self.preprocessing,
                settings.augmentation,
                schedule,
                num_classes=self.num_classes,
                part=Part(
                    index=rank * self.accumulate + index,
                    count=self.accelerator.num_processes * self.accumulate,
                ),
                device=self.device,
                num_workers=settings.num_workers,
            )
            for index in range(self.accumulate)
        ]
        yield from map(list, zip(*micro, strict=True))

    def update(
        self, micro_batches: list[tuple[Tensor, Tensor]], student: Any, teacher: Any, sums: dict[str, Tensor]
    ) -> None:
        """Update the weights once.

        Args:
            micro_batches: images `(b, channels, h, w)` and targets `(b, C)`.
            student: the student and, next, the teacher, from `forward_functions`.
            teacher: None for a training on labels.
            sums: the loss terms are added to it, by name.

        Raises:
            SettingError: `compile` is true, and the blocks cannot be compiled.
        """
        self.compiling.run(partial(self._update, micro_batches, student, teacher, sums), self.optimizer.zero_grad)

    def _update(
        self, micro_batches: list[tuple[Tensor, Tensor]], student: Any, teacher: Any, sums: dict[str, Tensor]
    ) -> None:
        torch.manual_seed(mixed_seed(self.job.seed, self.step, self.accelerator.process_index))
        self.scheduler.step_update(self.step)
        loss = torch.zeros((), device=self.device)
        for index, (images, targets) in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(student):
                terms = self.loss_terms(images, targets, student, teacher)
                part = sum(terms.values(), torch.zeros((), device=self.device)) / len(micro_batches)
                part.backward()
            loss += part.detach()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.detach() / len(micro_batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.job.settings.clip_gradient or math.inf)
        finite = torch.isfinite(loss + norm)
        self.first_bad_step = torch.where(finite, self.first_bad_step, self.first_bad_step.clamp(max=self.step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, step=self.step)
        self.step += 1

    def loss_terms(self, images: Tensor, targets: Tensor, student: Any, teacher: Any) -> dict[str, Tensor]:
        """The terms of the loss by name, for images `(b, channels, h, w)` and targets `(b, C)`.

        When they are returned, nothing is held in memory that their gradient does not need.
        """
        loss, teacher_logits = self.job.loss, None
        if loss is not None and loss.needs_teacher:
            with torch.no_grad(), self._autocast():  # first: the student's activations are not in memory yet
                teacher_logits = teacher(images)
        with self._autocast():
            logits = logits_of(student(images)).float()
        if loss is None:
            return {"hard": F.cross_entropy(logits, targets)}
        outputs = self.student_outputs, self.teacher_outputs
        terms = loss(logits, teacher_logits, targets, *outputs, compiled=self.compiling.is_compiled)
        self.student_outputs.clear()
        self.teacher_outputs.clear()
        return terms

    def save(self) -> None:
        """Write a checkpoint, if there is a run folder.

        Raises:
            NonFiniteLoss: the loss is not finite any more; the last checkpoint stays.
        """
        self._check_finite()
        if self.accelerator.is_main_process:
            self.state.save(self.step, self.accumulate)

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.job.settings.precision)

    def _check_finite(self) -> None:
        if not math.isfinite(bad := self.first_bad_step.item()):
            return
        kept = f" The last good checkpoint is {self.state.path}." if self.state.exists() else ""
        raise NonFiniteLoss(
            f"The loss or its gradient became infinite or not a number at step {int(bad)} (epoch "
            f"{int(bad) // self.steps_per_epoch + 1}) of {self.job.stage}.{kept} Try a lower learning rate or a longer "
            "warm-up, and look at the data for broken values."
        )

    def _save_if_due(self) -> None:
        if time.monotonic() - self.saved_at >= 60 * self.job.settings.checkpoint_minutes:
            self.save()
            self.compiling.restart_clock(self.step)
            self.saved_at = time.monotonic()

    def _end_epoch(self, sums: dict[str, Tensor], steps: int, seconds: float) -> None:
        """Evaluate now and then, and write what is known about the epoch. `seconds` are those of its updates."""
        epoch = self.step // self.steps_per_epoch
        totals = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="mean")  # over processes
        means = {name: total / steps for name, total in zip(sums, totals.tolist(), strict=True)}
        row = {
            "step": self.step,
            "loss": sum(means.values()),
            **means,
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            "images_per_second": steps * min(self.batch_size, len(self.images)) / seconds,
        }
        with self.compiling.suspended():  # other batches would be compiled anew
            found = self.validation.after_epoch(epoch, self.ema.module if self.ema else self.model)
        if found:
            row |= {"top1": found.top1, "validation_loss": found.loss}
        self.metrics.add(epoch, row)

    def _resume(self) -> None:
        """Go on from the checkpoint, and drop the lines of `metrics.jsonl` that were written after it."""
        self.accelerator.wait_for_everyone()
        if self.state.is_usable():
            self.step, parts = self.state.load()
            if self.job.settings.batch_size == "auto":  # as before, if the memory is enough
                self.accumulate = max(parts, self.accumulate)
            log(f"{self.job.stage}: resuming at step {self.step} of {self.total_steps}")
        self.metrics.delete_after(self.step)  # an earlier start may have ended before its checkpoint
