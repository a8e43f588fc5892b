"""Evaluations during a training: how accurate the model is after some epochs, and which epoch is kept.

An evaluation changes nothing that the training computes. The moving average is evaluated, if there is one.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from vitrim.errors import counted
from vitrim.evaluation import evaluate
from vitrim.runs.digests import read_kept_text, write_text_noted
from vitrim.runs.folder import parsed
from vitrim.runs.processes import is_main_process
from vitrim.runs.progress import log
from vitrim.training.job import TrainingJob

KEPT_FILE = "{stage}.kept-epoch.json"


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The accuracy after an epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        top1: top-1 on the validation images, in percent.
        loss: mean cross entropy on them.
    """

    epoch: int
    top1: float
    loss: float

    def is_better_than(self, other: "Validated") -> bool:
        """Whether this epoch is kept instead of the other: by top-1, if equal by loss, if equal the later one."""
        return self._order() > other._order()

    def _order(self) -> tuple[float, float, int]:
        return self.top1, -self.loss if math.isfinite(self.loss) else -math.inf, self.epoch


@dataclass(frozen=True, kw_only=True)
class KeptEpoch:
    """Which epoch of a finished training was kept because of its accuracy.

    Attributes:
        best: the epoch that was kept.
        last: the last epoch.
        num_images: number of validation images that decided.
    """

    best: Validated
    last: Validated
    num_images: int

    @classmethod
    def read(cls, folder: Path, stage: str) -> "KeptEpoch | None":
        """Read what a training of this folder noted; None if its last epoch was kept whatever its accuracy.

        A note on a training of one epoch, as earlier versions wrote it, is None too: nothing was chosen.
        """
        file = folder / KEPT_FILE.format(stage=stage)
        text = read_kept_text(file)
        if text is None:
            return None
        found: KeptEpoch = parsed(file, cls._parse, text)
        return found if found.last.epoch > 1 else None

    @classmethod
    def _parse(cls, text: str) -> "KeptEpoch":
        table = json.loads(text)
        best, last = (
            Validated(epoch=int(found["epoch"]), top1=float(found["top1"]), loss=float(found["loss"]))
            for found in (table["best"], table["last"])
        )
        return cls(best=best, last=last, num_images=int(table["num_images"]))

    def write(self, folder: Path, stage: str) -> None:
        """Write the note that `read` reads."""
        text = json.dumps(asdict(self)) + "\n"
        write_text_noted(folder / KEPT_FILE.format(stage=stage), text, keep_text=True)

    def sentence(self) -> str:
        """Say which epoch was kept, and what this means for its accuracy."""
        others = "" if self.best.epoch == self.last.epoch else f"; epoch {self.last.epoch} has {self.last.top1:.2f} %"
        return (
            f"epoch {self.best.epoch} of {self.last.epoch} is kept, which has the best validation top-1 "
            f"({self.best.top1:.2f} %{others}). It was chosen on these {counted(self.num_images, 'image')}, so its "
            "top-1 on them is optimistic. keep_epoch=last keeps the last epoch."
        )


class Validation:
    """The evaluations of one training, and the weights of the best epoch so far.

    Attributes:
        best: the best epoch so far; None if no epoch was evaluated, or if the last epoch is kept. It is also None if
            only the last epoch is evaluated, because nothing is chosen then.
        last: the epoch that was evaluated last.
        weights: state dict after the epoch `best`, on the CPU.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job, settings = job, job.settings
        has_images = len(job.data.validation) > 0
        self._interval = settings.evaluation_interval if has_images else 0
        self._keeps_best = 0 < self._interval < settings.epochs and settings.keep_epoch == "best"
        self.best: Validated | None = None
        self.last: Validated | None = None
        self.weights: dict[str, Tensor] = {}
        if settings.keep_epoch == "best" and settings.epochs > 1 and not self._keeps_best:
            reason = "no other is evaluated" if self._interval else "evaluate_every is 0"
            reason = reason if has_images else "there are no validation images"
            log(f"{job.stage}: the last epoch will be kept, not the best one, because {reason}")

    def after_epoch(self, epoch: int, trained: Callable[[], nn.Module]) -> Validated | None:
        """Evaluate the model, if it is to be evaluated after this epoch; None if not.

        All processes call this together, and have the same result.

        Args:
            epoch: number of the epoch, from 1.
            trained: returns the model.
        """
        settings = self._job.settings
        if not self._interval or (epoch % self._interval and epoch != settings.epochs):
            return None
        model = trained()
        found = evaluate(model, self._job.data, num_workers=settings.num_workers)
        self.last = Validated(epoch=epoch, top1=found.top1, loss=found.loss)
        if self._keeps_best and (self.best is None or self.last.is_better_than(self.best)):
            self.best = self.last
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        return self.last

    def restore_best(self, model: nn.Module) -> None:
        """Load the weights of the best epoch into the trained model, and say and note which epoch that is."""
        if self.best is None or self.last is None:
            return
        model.load_state_dict(self.weights)
        kept = KeptEpoch(best=self.best, last=self.last, num_images=len(self._job.data.validation))
        log(f"{self._job.stage}: {kept.sentence()}")
        if self._job.run_dir and is_main_process():
            kept.write(self._job.run_dir, self._job.stage)

    def to_text(self) -> str:
        """Return what a checkpoint keeps beside the weights, as JSON."""
        return json.dumps({name: asdict(found) for name, found in (("best", self.best), ("last", self.last)) if found})

    def load(self, text: str, weights: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint.

        Args:
            text: from `to_text`.
            weights: those of the best epoch; empty if there is none.
        """
        table = json.loads(text)
        self.best, self.last = (Validated(**table[name]) if name in table else None for name in ("best", "last"))
        if not self._keeps_best:  # an earlier version also noted the only epoch that it evaluated
            self.best = None
        self.weights = dict(weights)
