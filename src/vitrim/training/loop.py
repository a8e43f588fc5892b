"""The one training loop, with a teacher or without.

Every step is a pure function of the weights and of (seed, step): the batches, stochastic depth and dropout draw from
generators seeded by them. So a checkpoint needs no random state, and a resumed run ends with the weights of an
uninterrupted one. Several processes share each batch and end with the weights of one, up to rounding, unless the model
itself draws (stochastic depth, dropout): then each process draws its own.
"""

import copy
import json
import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import safe_open
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F

from vitrim.data.augmentation import AugmentationSettings
from vitrim.data.batches import BatchSchedule, Part, check_batch_size, num_train_steps, train_batches
from vitrim.data.images import ImageData
from vitrim.data.matching import match_labels, preprocessing_of
from vitrim.errors import FolderInUse, NonFiniteLoss, SettingError
from vitrim.evaluation import evaluate
from vitrim.hooks import eval_mode, logits_of
from vitrim.losses import DistillationLoss, DistillationSettings, check_relation_heads, tapped
from vitrim.models import adapter_for, describe
from vitrim.plan import PruningPlan
from vitrim.runs.files import write_tensors, writing
from vitrim.runs.processes import this_process
from vitrim.runs.progress import advancing, log
from vitrim.saving.checkpoint import fingerprint
from vitrim.structure import ViTStructure

LINES_FOR_A_TRAINING = 10
STEPS_BETWEEN_CHECKS = 50  # asking the device whether the loss is finite makes it wait


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """One training: how long, how fast, with which augmentation and, if there is a teacher, which losses.

    Attributes:
        epochs: passes over the training images; 0 leaves the model as it is.
        batch_size: images for one update, over all processes and `accumulate` micro-batches together.
        learning_rate: peak of AdamW's rate; warm-up over `warmup_epochs`, then a cosine down to `min_learning_rate`.
        layer_decay: factor on the rate from each block to the one before it; 1 for none.
        clip_gradient: largest norm of the gradient; 0 for none.
        drop_path: rate of stochastic depth at the last block, growing linearly from 0 at the first.
        ema_decay: decay of the moving average of the weights that is returned, reached by a warm-up; 0 for none.
        precision: `auto` is bf16 on a GPU that has it, else fp32.
        compile: run student and teacher through `torch.compile`.
        evaluate_every: epochs between evaluations on the validation images; 0 for none. It decides nothing.
        checkpoint_minutes: time between checkpoints.
        num_workers: processes that decode images that do not fit in memory; `auto` is one for each core of the
            machine, shared out over the processes that train. 0 decodes in the process that trains.
    """

    epochs: int = 20
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 5e-4
    min_learning_rate: float = 1e-6
    warmup_epochs: int = 1
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    clip_gradient: float = 1.0
    drop_path: float = 0.0
    ema_decay: float = 0.9998
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    evaluate_every: int = 0
    checkpoint_minutes: float = 3.0
    num_workers: int | Literal["auto"] = "auto"
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    distillation: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self) -> None:
        at_least = {"epochs": 0, "batch_size": 2, "accumulate": 1, "warmup_epochs": 0, "evaluate_every": 0}
        at_least |= {"weight_decay": 0, "clip_gradient": 0, "checkpoint_minutes": 0}
        if self.num_workers != "auto":
            at_least["num_workers"] = 0
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise SettingError(f"training.{name} is {getattr(self, name)}; expected at least {least}.")
        if not self.learning_rate > 0 or not 0 <= self.min_learning_rate <= self.learning_rate:
            raise SettingError(
                f"training.learning_rate is {self.learning_rate:g} and min_learning_rate {self.min_learning_rate:g}; "
                "expected 0 <= min_learning_rate <= learning_rate and learning_rate above 0."
            )
        for name in ("layer_decay", "drop_path", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise SettingError(f"training.{name} is {getattr(self, name)}; expected a number from 0 to 1.")


def train(
    model: nn.Module,
    data: ImageData,
    settings: TrainingSettings,
    *,
    teacher: nn.Module | None = None,
    plan: PruningPlan | None = None,
    run_dir: str | Path | None = None,
    stage: str = "train",
    seed: int = 0,
) -> nn.Module:
    """Train a copy of `model` and return it in eval mode (the moving average of its weights, where there is one).

    Args:
        teacher: if given, the model learns from its outputs as `settings.distillation` says; stays as it is.
        plan: which of the teacher's blocks the model's blocks are; counts in the teacher. By default all of them.
        run_dir: where the checkpoint of this `stage` and `metrics.jsonl` go. Called again with a checkpoint there,
            training goes on and ends with the same weights as if it had not stopped (bit for bit on the CPU).

    Raises:
        NonFiniteLoss: the loss or its gradient became infinite or not a number; the last checkpoint is good.
        FolderInUse: the checkpoint in `run_dir` was made with other settings.
        DataError: the data does not fit the model.
    """
    data = match_labels(data, model)
    model = copy.deepcopy(model)
    if settings.epochs == 0:
        return model.eval()
    model.requires_grad_(True)  # a teacher may come frozen; its student learns
    adapter_for(model).set_drop_path(model, settings.drop_path)
    loss = _loss_of(model, teacher, plan, settings)
    loop = _Loop(model, data, settings, loss, teacher, Path(run_dir) if run_dir else None, stage, seed)
    devices = [loop.device] if loop.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        return loop.run()


def check_training(settings: TrainingSettings, structure: ViTStructure, data: ImageData) -> None:
    """Refuse before anything is computed what a training of this model on this data could not do.

    Raises:
        SettingError: the batch cannot be shared out, or `relation_heads` does not divide the width of a head.
        DataError: there are too few images for one update.
    """
    if settings.epochs:
        parts = this_process().num_processes * settings.accumulate
        check_batch_size(data.train, settings.batch_size, parts, structure.num_classes)
    check_relation_heads(settings.distillation, structure)


def _loss_of(
    model: nn.Module, teacher: nn.Module | None, plan: PruningPlan | None, settings: TrainingSettings
) -> DistillationLoss | None:
    if teacher is None:
        return None
    dense = describe(teacher)
    return DistillationLoss.between(settings.distillation, describe(model), dense, plan or PruningPlan.full(dense))


class _Loop:
    """The state of one training; only `step` changes besides the weights and the optimiser's moments."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        settings: TrainingSettings,
        loss: DistillationLoss | None,
        teacher: nn.Module | None,
        run_dir: Path | None,
        stage: str,
        seed: int,
    ) -> None:
        this_process()  # makes the group of processes, also without GPUs
        # bf16 is ours: one process may train in several precisions
        headless = loss is not None and not (loss.settings.soft or loss.settings.hard)  # no term reads the logits
        parallel = DistributedDataParallelKwargs(find_unused_parameters=headless)
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[parallel])
        self.device = self.accelerator.device
        self.settings, self.stage, self.seed, self.loss = settings, stage, seed, loss
        self.data, self.images = data, data.train.to(self.device)
        self.model = model.to(self.device)
        self.preprocessing = preprocessing_of(self.model)
        self.num_classes = describe(self.model).num_classes
        self.teacher = teacher.to(self.device) if teacher is not None else None
        self.steps_per_epoch = num_train_steps(self.images, settings.batch_size)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.optimizer = create_optimizer_v2(
            self.model,
            opt="adamw",
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay if settings.layer_decay < 1 else None,
            fused=self.device.type in ("cpu", "cuda") or None,  # one call for all weights, where torch has it
        )
        warmup = min(settings.warmup_epochs, settings.epochs - 1)
        self.scheduler, _ = create_scheduler_v2(
            self.optimizer,
            sched="cosine",
            num_epochs=settings.epochs - warmup,
            warmup_epochs=warmup,
            warmup_prefix=True,  # the cosine begins at its peak, after the warm-up
            warmup_lr=settings.learning_rate / 100,
            min_lr=settings.min_learning_rate,
            step_on_epochs=False,
            updates_per_epoch=self.steps_per_epoch,
        )
        self.ema = ModelEmaV3(self.model, decay=settings.ema_decay, use_warmup=True) if settings.ema_decay else None
        if run_dir and self.accelerator.is_main_process:
            run_dir.mkdir(parents=True, exist_ok=True)
        self.origin = {
            "weights": fingerprint(self.model),
            "teacher": fingerprint(teacher) if teacher is not None else None,
            "loss": repr(loss),
            "data": data.fingerprint(),
        }
        self.checkpoint = run_dir / f"{stage}.checkpoint.safetensors" if run_dir else None
        self.metrics = run_dir / "metrics.jsonl" if run_dir else None
        self.step = 0
        self.first_bad_step = torch.full((), math.inf, device=self.device)

    def run(self) -> nn.Module:
        self._resume()
        started = self.step
        with ExitStack() as stack:
            forward, teacher_forward = self._forwards(stack)
            advance = stack.enter_context(advancing(self.stage, self.total_steps, self.step))
            batches = stack.enter_context(closing(self._batches()))
            saved_at = time.monotonic()
            while self.step < self.total_steps:
                begun, first = time.monotonic(), self.step
                sums: dict[str, Tensor] = {}
                for _ in range(self.steps_per_epoch - first % self.steps_per_epoch):
                    self._update(next(batches), forward, teacher_forward, sums)
                    advance(1)
                    if self.step % STEPS_BETWEEN_CHECKS == 0:
                        self._check_finite()
                    if time.monotonic() - saved_at >= 60 * self.settings.checkpoint_minutes:
                        self._save()
                        saved_at = time.monotonic()
                self._check_finite()
                self._log(sums, self.step - first, time.monotonic() - begun)
        if self.step > started:
            self._save()
        best = self.ema.module if self.ema else self.accelerator.unwrap_model(self.model)
        best.requires_grad_(True)
        return best.eval()

    def _forwards(self, stack: ExitStack) -> tuple[Any, Any]:
        """The student as it trains and a function that gives the teacher's outputs, their taps in place."""
        self.student_taps: dict[str, Tensor] = {}
        self.teacher_taps: dict[str, Tensor] = {}
        if self.loss is not None and self.teacher is not None:
            stack.enter_context(eval_mode(self.teacher))
            self.student_taps = stack.enter_context(tapped(self.model, self.loss.student_taps()))
            self.teacher_taps = stack.enter_context(tapped(self.teacher, self.loss.teacher_taps()))
        forward = self.accelerator.prepare(self.model.train())
        if self.settings.compile:
            return torch.compile(forward), torch.compile(self.teacher) if self.teacher is not None else None
        return forward, self.teacher

    def _batches(self) -> Generator[list[tuple[Tensor, Tensor]], None, None]:
        """This process' micro-batches, update by update, from the current step to the last."""
        epoch, first_step = divmod(self.step, self.steps_per_epoch)
        rank, accumulate = self.accelerator.process_index, self.settings.accumulate
        schedule = BatchSchedule(
            batch_size=self.settings.batch_size,
            seed=self.seed,
            epoch=epoch,
            num_epochs=self.settings.epochs - epoch,
            first_step=first_step,
        )
        micro = [
            train_batches(
                self.images,
                self.preprocessing,
                self.settings.augmentation,
                schedule,
                num_classes=self.num_classes,
                part=Part(index=rank * accumulate + index, count=self.accelerator.num_processes * accumulate),
                device=self.device,
                num_workers=self.settings.num_workers,
            )
            for index in range(accumulate)
        ]
        yield from map(list, zip(*micro, strict=True))

    def _update(
        self, micro_batches: list[tuple[Tensor, Tensor]], forward: Any, teacher: Any, sums: dict[str, Tensor]
    ) -> None:
        """One update of the weights; adds the loss terms to `sums`."""
        torch.manual_seed(_mixed(self.seed, self.step, self.accelerator.process_index))
        self.scheduler.step_update(self.step)
        loss = torch.zeros((), device=self.device)
        for index, (images, targets) in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(forward):
                terms = self._terms(images, targets, forward, teacher)
                part = sum(terms.values(), torch.zeros((), device=self.device)) / len(micro_batches)
                part.backward()
            loss += part.detach()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0.0) + term.detach() / len(micro_batches)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_gradient or math.inf)
        finite = torch.isfinite(loss + norm)
        self.first_bad_step = torch.where(finite, self.first_bad_step, self.first_bad_step.clamp(max=self.step))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.model, step=self.step)
        self.step += 1

    def _terms(self, images: Tensor, targets: Tensor, forward: Any, teacher: Any) -> dict[str, Tensor]:
        """The terms of the loss. Nothing that they do not need for their gradient is held when they are returned."""
        wanted = None
        if self.loss is not None and self.loss.needs_teacher:
            with torch.no_grad(), self._autocast():  # before the student, whose activations would be in memory, too
                wanted = logits_of(teacher(images)).float()
        with self._autocast():
            logits = logits_of(forward(images)).float()
        if self.loss is None:
            return {"hard": F.cross_entropy(logits, targets)}
        terms = self.loss(logits, wanted, targets, self.student_taps, self.teacher_taps)
        self.student_taps.clear()
        self.teacher_taps.clear()
        return terms

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        on_gpu = self.device.type == "cuda"
        auto = on_gpu and torch.cuda.is_bf16_supported()
        enabled = self.settings.precision == "bf16" or (self.settings.precision == "auto" and auto)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            yield

    def _check_finite(self) -> None:
        if not math.isfinite(bad := self.first_bad_step.item()):
            return
        kept = (
            f" The last good checkpoint is {self.checkpoint}." if self.checkpoint and self.checkpoint.exists() else ""
        )
        raise NonFiniteLoss(
            f"The loss or its gradient became infinite or not a number at step {int(bad)} (epoch "
            f"{int(bad) // self.steps_per_epoch + 1}) of {self.stage}.{kept} Try a lower learning rate or a longer "
            "warm-up, and look at the data for broken values."
        )

    def _log(self, sums: dict[str, Tensor], steps: int, seconds: float) -> None:
        """One line of `metrics.jsonl` and now and then one for the person who waits."""
        epoch, every = self.step // self.steps_per_epoch, self.settings.evaluate_every
        totals = self.accelerator.reduce(torch.stack(list(sums.values())), reduction="mean")  # over processes
        means = {name: total / steps for name, total in zip(sums, totals.tolist(), strict=True)}
        row = {
            "stage": self.stage,
            "epoch": epoch,
            "step": self.step,
            "loss": sum(means.values()),
            **means,
            "learning_rate": max(group["lr"] for group in self.optimizer.param_groups),
            "images_per_second": steps * min(self.settings.batch_size, len(self.images)) / seconds,
        }
        if every and (epoch % every == 0 or self.step == self.total_steps):
            found = evaluate(self.ema.module if self.ema else self.model, self.data)
            row |= {"top1": found.top1, "validation_loss": found.loss}
        if self.metrics and self.accelerator.is_main_process:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if "top1" not in row and epoch % max(1, self.settings.epochs // LINES_FOR_A_TRAINING):
            return
        accuracy = f", validation top-1 {row['top1']:.2f} %" if "top1" in row else ""
        log(
            f"{self.stage}: epoch {epoch}/{self.settings.epochs}, loss {row['loss']:.4f}{accuracy}, "
            f"{row['images_per_second']:.0f} images/s"
        )

    def _identity(self) -> str:
        about = {"settings": asdict(self.settings), "seed": self.seed, **self.origin}
        return json.dumps(about, sort_keys=True)

    def _save(self) -> None:
        """Write weights, moving average and the optimiser's moments as one file; no pickle."""
        self._check_finite()
        if not self.checkpoint or not self.accelerator.is_main_process:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema:
            tensors |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(self.checkpoint, tensors, {"step": str(self.step), "identity": self._identity()})

    def _resume(self) -> None:
        self.accelerator.wait_for_everyone()
        if not self.checkpoint or not self.checkpoint.exists():
            self._delete_metrics_after(0)  # an earlier start may have been stopped before its first checkpoint
            return
        with safe_open(self.checkpoint, framework="pt") as file:
            about = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if about["identity"] != self._identity():
            raise FolderInUse(
                f"{self.checkpoint} was made from another model or teacher, with other settings, another seed or "
                "other data; use another folder."
            )
        self.step = int(about["step"])
        self.model.load_state_dict(_under("model.", tensors))
        if self.ema:
            self.ema.module.load_state_dict(_under("ema.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self._delete_metrics_after(self.step)
        log(f"{self.stage}: going on at step {self.step} of {self.total_steps}")

    def _delete_metrics_after(self, step: int) -> None:
        """Drop the lines of this stage that were written after the checkpoint."""
        if not self.metrics or not self.metrics.exists() or not self.accelerator.is_main_process:
            return
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [(json.loads(line), line) for line in lines if line.endswith("\n")]
        kept = [line for row, line in rows if row["stage"] != self.stage or row["step"] <= step]
        with writing(self.metrics) as path:
            path.write_text("".join(kept), encoding="utf-8")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _mixed(seed: int, step: int, rank: int) -> int:
    """One seed for each (seed, step, process)."""
    return (seed * 1_000_003 + step) * 4_099 + rank
