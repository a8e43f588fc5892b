"""The one training loop, with or without a teacher. `train` opens it.

Every step is a pure function of the weights and of (seed, step): batches, stochastic depth and dropout draw from
generators seeded by them. So a checkpoint needs no random state, and a resumed training ends with the weights of an
uninterrupted one. Several processes divide each batch and end with the weights of one process, up to rounding. With
stochastic depth or dropout, each process draws its own masks, and the weights differ.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from vitrim.asking import is_out_of_memory
from vitrim.copying import copied
from vitrim.data.batches import BatchSchedule, Part, check_batch_size, num_train_steps, train_batches
from vitrim.data.files.run_record import keep_record
from vitrim.data.matching import preprocessing_of
from vitrim.data.seeds import mixed_seed
from vitrim.errors import counted
from vitrim.hooks import eval_mode, logits_of, recorded_states
from vitrim.models import describe
from vitrim.precision import autocast
from vitrim.runs.files import CHECKPOINT
from vitrim.runs.processes import this_process
from vitrim.runs.progress import advancing, log
from vitrim.training.batch_memory import fitting_parts, rehearsed_parts
from vitrim.training.compiling import CompileSchedule
from vitrim.training.faults import BadStep, Events, NotFinite
from vitrim.training.going_back import Safety
from vitrim.training.job import TrainingJob
from vitrim.training.metrics import Metrics
from vitrim.training.optimizer import optimizer_and_scheduler, scale_rates
from vitrim.training.sharding import WholeModule, WholeOptimizer, shard, synchronized, whole, with_weights_of
from vitrim.training.soft_labels import SoftLabels
from vitrim.training.state import TrainingState
from vitrim.training.stopping import StopPoints, stopping
from vitrim.training.validation import Validation

STEPS_BETWEEN_CHECKS = 50  # a check whether the loss is finite waits for the device


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
        self.is_sharded = settings.shard and self.accelerator.num_processes > 1
        self.whole_model = copied(job.model) if self.is_sharded else job.model  # is evaluated and returned
        self.model = job.model.to(self.device)
        sharding = self.accelerator if self.is_sharded else None
        self.teacher = SoftLabels(job, self.device, sharding) if loss is not None else None
        self.preprocessing = preprocessing_of(self.model)
        self.num_classes = describe(self.model).num_classes
        self.batch_size = settings.batch_for(len(self.images), self.accelerator.num_processes)
        self.steps_per_epoch = num_train_steps(self.images, self.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        identity = job.identity if job.run_dir else ""  # reads all weights and images
        if self.is_sharded:
            for module in (self.model, *([self.ema.module] if self.ema else [])):
                shard(module, describe(self.whole_model), self.accelerator)
        self.optimizer, self.scheduler = optimizer_and_scheduler(
            self.model, settings, self.batch_size, self.steps_per_epoch
        )
        self.student_outputs: dict[str, Tensor] = {}
        self.teacher_outputs: dict[str, Tensor] = {}
        if job.run_dir:
            job.run_dir.mkdir(parents=True, exist_ok=True)
            keep_record(job.data, job.run_dir)
        is_main = self.accelerator.is_main_process
        self.metrics = Metrics(job.run_dir, job.stage, settings.epochs, is_main_process=is_main)
        self.validation = Validation(job)
        structures = {} if self.is_sharded else {self.model: describe(self.model)}
        if structures and self.teacher and self.teacher.compared is not None and job.teacher is not None:
            structures[self.teacher.compared] = describe(job.teacher)  # `compared` may hold bf16 weights
        setting = settings.compile if structures else False
        self.compiling = CompileSchedule(structures, setting, self.device, job.stage)
        self.step, num_processes = 0, self.accelerator.num_processes
        smallest = num_processes * settings.accumulate
        self.images_per_update = check_batch_size(self.images, self.batch_size, smallest, self.num_classes)
        self.accumulate = settings.accumulate
        if settings.batch_size == "auto" or (num_processes > 1 and not self.is_sharded):
            self.accumulate = self._accumulate()
        self.safety = Safety(
            stage=job.stage,
            settings=settings,
            accelerator=self.accelerator,
            state=self._state(identity),
            metrics=self.metrics,
            steps_per_epoch=self.steps_per_epoch,
            num_images=self.images_per_update // num_processes,
        )
        self.saved_at = 0.0
        self.is_stepping = False  # the weights of an update are being changed

    def _state(self, identity: str) -> TrainingState:
        job = self.job
        return TrainingState(
            path=job.run_dir / CHECKPOINT.format(stage=job.stage) if job.run_dir else None,
            identity=identity,
            model=WholeModule(self.model),
            ema=WholeModule(self.ema.module) if self.ema else None,
            optimizer=WholeOptimizer(self.optimizer),
            validation=self.validation,
            events=Events(),
        )

    def run(self) -> nn.Module:
        """Train from the checkpoint, if there is one, to the last step. Returns the model in eval mode."""
        self.step, self.accumulate = self.safety.resume(self.accumulate)
        if started := self.step:
            log(f"{self.job.stage}: resuming at step {self.step} of {self.total_steps}")
        with ExitStack() as stack:
            student, teacher = stack.enter_context(self.forward_functions())
            advance = stack.enter_context(advancing(self.job.stage, self.total_steps, self.step))
            stop = stack.enter_context(stopping(self.job, self.device, self.step))
            self.saved_at = time.monotonic()
            while self.step < self.total_steps:
                if problem := self._train_until_problem(student, teacher, advance, stop):
                    before = self.step
                    self._handle(problem)
                    advance(self.step - before)
        if self.step > started and self.job.checkpoint_at_end:
            self.save()
        result = self._result()
        self.validation.restore_best(result)  # after the checkpoint of the last epoch
        result.requires_grad_(True)
        return result.eval()

    def _train_until_problem(
        self, student: Any, teacher: Any, advance: Callable[[int], None], stop: StopPoints
    ) -> BadStep | Literal["memory"] | None:
        """Train to the last step, or until an update is not finite or the memory is not enough. Returns which.

        The error of the allocator is not returned, because it holds what the update has in memory.
        """
        try:
            with closing(self.batches()) as batches:
                while self.step < self.total_steps:
                    self._train_epoch(batches, student, teacher, advance, stop)
        except NotFinite as problem:
            return problem.found
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return "memory"
        return None

    def _handle(self, problem: BadStep | Literal["memory"]) -> None:
        """Go back to the last good state, or on with smaller micro-batches."""
        self._discard_gradient()
        if isinstance(problem, BadStep):
            self.step = self.safety.go_back(problem, self._learning_rate(), self.accumulate)
        else:
            has_averages = any(isinstance(module, _BatchNorm) for module in self.model.modules())
            self.step, self.accumulate = self.safety.divide(
                self.step, self.accumulate, restore=self.is_stepping or has_averages
            )
        self.is_stepping = False
        self.saved_at = time.monotonic()
        self.compiling.restart_clock(self.step)

    def _train_epoch(
        self, batches: Iterator[Any], student: Any, teacher: Any, advance: Callable[[int], None], stop: StopPoints
    ) -> None:
        """Train to the end of this epoch."""
        begun, first = time.monotonic(), self.step
        sums: dict[str, Tensor] = {}
        for _ in range(self.steps_per_epoch - first % self.steps_per_epoch):
            self.update(next(batches), student, teacher, sums)
            advance(1)
            if self.step % STEPS_BETWEEN_CHECKS == 0:
                self.safety.check()
                self.compiling.observe(self.step, self.total_steps)
            if self.step % self.steps_per_epoch:
                self._save_if_due()
                stop.after(self.step, self.save)
        self.safety.check()
        self.compiling.observe(self.step, self.total_steps)
        self._end_epoch(sums, self.step - first, time.monotonic() - begun)
        self.compiling.restart_clock(self.step)  # the evaluation is no part of an update
        self._save_if_due()  # with the result of the evaluation
        stop.after(self.step, self.save, ask=True)

    @contextmanager
    def forward_functions(self) -> Iterator[tuple[Any, Any]]:
        """A context with the student in train mode and the teachers in eval mode, as functions of a batch of images.

        Each pass leaves the outputs that the loss terms read in `student_outputs` and `teacher_outputs`.
        """
        with ExitStack() as stack:
            stack.enter_context(closing(self.compiling))
            stack.enter_context(self._recording())
            student = self.model.train()
            yield student if self.is_sharded else self.accelerator.prepare(student), self.teacher

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

        def train_on(num_images: int) -> None:
            images = torch.randn(num_images, self.images.channels, *self.preprocessing.img_size, device=self.device)
            targets = torch.full((num_images, self.num_classes), 1 / self.num_classes, device=self.device)
            sum(self.loss_terms(images, targets, self.model, self.teacher).values()).backward()  # type: ignore

        with self._recording():
            own = self.images_per_update // num_processes
            if self.job.settings.batch_size != "auto":
                return rehearsed_parts(self.model, train_on, own, self.accelerator, smallest)
            found = fitting_parts(self.model, train_on, own, self.accelerator, smallest)
        parts = num_processes * found
        log(f"{self.job.stage}: {self.images_per_update} images for each update, in {counted(parts, 'part')}")
        return found

    def batches(self) -> Generator[list[tuple[Tensor, Tensor]], None, None]:
        """The micro-batches of this process, update by update, from the current step to the last."""
        epoch, first_step = divmod(self.step, self.steps_per_epoch)
        settings, rank = self.job.settings, self.accelerator.process_index
        is_divided = self.accumulate != settings.accumulate  # then every update has the images of an undivided one
        schedule = BatchSchedule(
            batch_size=self.images_per_update if is_divided else self.batch_size,
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
        self.compiling.run(partial(self._update, micro_batches, student, teacher, sums), self._discard_gradient)

    def _update(
        self, micro_batches: list[tuple[Tensor, Tensor]], student: Any, teacher: Any, sums: dict[str, Tensor]
    ) -> None:
        torch.manual_seed(mixed_seed(self.job.seed, self.step, self.accelerator.process_index))
        self.scheduler.step_update(self.step)
        scale_rates(self.optimizer, self.safety.events.rate_factor)
        own: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        for index, (images, targets) in enumerate(micro_batches):
            with synchronized(self.accelerator, student, index == len(micro_batches) - 1):
                terms = self.loss_terms(images, targets, student, teacher)
                part = sum(terms.values(), torch.zeros((), device=self.device)) / len(micro_batches)
                part.backward()
            loss += part.detach()
            for name, term in terms.items():
                fraction = term.detach() / len(micro_batches)
                sums[name] = sums.get(name, 0.0) + fraction
                own[name] = own[name] + fraction if name in own else fraction
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self.job.settings.clip_gradient or math.inf))
        self.safety.watch.note(self.step, loss, norm, own)
        self.is_stepping = True
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, step=self.step)
        self.is_stepping = False
        self.step += 1

    def _result(self) -> nn.Module:
        """The model that is evaluated and returned: the moving average, if there is one."""
        found = self.ema.module if self.ema else self.accelerator.unwrap_model(self.model)
        return with_weights_of(found, self.whole_model).to(self.device) if self.is_sharded else found

    def _discard_gradient(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

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
        """Write a checkpoint, or keep one in memory if there is no run folder. Not after an update that is not finite.

        Raises:
            NotFinite: an update was not finite, and all processes save. Else they find it together later.
        """
        if self.accelerator.num_processes == 1 or self.is_sharded:
            self.safety.check()
        elif not self.safety.watch.is_good():
            return
        self.safety.state.save(self.step, self.accumulate, write=self.accelerator.is_main_process)

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self.device, self.job.settings.precision)

    def _save_if_due(self) -> None:
        is_due = time.monotonic() - self.saved_at >= 60 * self.job.settings.checkpoint_minutes
        saves_together = self.job.run_dir is None or self.is_sharded
        if saves_together and self.accelerator.num_processes > 1:  # all save the state of the same update
            if self.step % self.steps_per_epoch and self.step % STEPS_BETWEEN_CHECKS:
                return
            is_due = bool(self.accelerator.reduce(torch.tensor(float(is_due), device=self.device)).item())
        if is_due:
            self.save()
            self.compiling.restart_clock(self.step)
            self.saved_at = time.monotonic()

    def _learning_rate(self) -> float:
        return float(max(group["lr"] for group in self.optimizer.param_groups))

    def _end_epoch(self, sums: dict[str, Tensor], steps: int, seconds: float) -> None:
        """Evaluate now and then, and write what is known about the epoch. `seconds` are those of its updates."""
        epoch, ended = self.step // self.steps_per_epoch, time.monotonic()
        totals = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="mean")  # over processes
        means = {name: total / steps for name, total in zip(sums, totals.tolist(), strict=True)}
        row = {
            "step": self.step,
            "loss": sum(means.values()),
            **means,
            "learning_rate": self._learning_rate(),
            "images_per_second": steps * min(self.batch_size, len(self.images)) / seconds,
        }
        with self.compiling.suspended():  # other batches would be compiled anew
            found = self.validation.after_epoch(epoch, self._result)
        if self.is_sharded:
            self.whole_model.cpu()
        if found:
            row |= {"top1": found.top1, "validation_loss": found.loss}
        row["seconds"] = round(seconds + time.monotonic() - ended, 3)  # with the evaluation
        self.metrics.add(epoch, row)
