"""How a training goes on after something went wrong: from its last good state, or with smaller micro-batches."""

from dataclasses import dataclass, field

import torch
from accelerate import Accelerator

from vitrim.errors import NonFiniteLoss, NotEnoughMemory, counted
from vitrim.runs.progress import log
from vitrim.training.batch_memory import finer_parts, nearest_parts
from vitrim.training.faults import MAX_HALVINGS, BadStep, Events, FiniteWatch, NotFinite
from vitrim.training.metrics import Metrics
from vitrim.training.settings import TrainingSettings
from vitrim.training.state import TrainingState

ADVICE = "Try a lower learning rate or a longer warm-up, and look at the data for broken values."


@dataclass(kw_only=True, eq=False)
class Safety:
    """Watches the numbers of one training, and restores its last good state. All processes call it together.

    Attributes:
        stage: name of the training.
        settings: of the training.
        accelerator: of the processes.
        state: the checkpoint.
        metrics: where events are noted.
        steps_per_epoch: updates of one epoch.
        num_images: images of one update on this process.
        watch: notes which updates were finite.
    """

    stage: str
    settings: TrainingSettings
    accelerator: Accelerator
    state: TrainingState
    metrics: Metrics
    steps_per_epoch: int
    num_images: int
    watch: FiniteWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = FiniteWatch(self.accelerator.device)

    @property
    def events(self) -> Events:
        """What went wrong so far."""
        return self.state.events

    def check(self) -> None:
        """Raise `NotFinite` if an update since the last good state was not finite on any process."""
        rows = self.watch.row()
        if self.accelerator.num_processes > 1:
            rows = self.accelerator.gather(rows)
        if found := self.watch.found_in(rows):
            raise NotFinite(found)

    def resume(self, parts: int) -> tuple[int, int]:
        """Go on from the checkpoint, if there is one, and else note the weights with which the training starts.

        Args:
            parts: the number of micro-batches of one update on this process.

        Returns:
            The number of updates that were made, and the number of micro-batches.
        """
        self.accelerator.wait_for_everyone()
        step = 0
        if self.state.is_usable():
            step, before = self.state.load()
            parts = nearest_parts(self.num_images, max(parts, before))  # as before, if the memory is enough
        else:
            self.state.keep_in_memory(0, parts)
        self.metrics.delete_after(step, len(self.events.all))  # an earlier start may have ended before its checkpoint
        return step, parts

    def go_back(self, found: BadStep, rate: float, parts: int) -> int:
        """Restore the last good state, and halve the learning rate.

        Args:
            found: the update that was not finite.
            rate: its learning rate.
            parts: the number of micro-batches of one update.

        Returns:
            The number of updates after which the training goes on.

        Raises:
            NonFiniteLoss: the rate was halved `MAX_HALVINGS` times before.
        """
        events = list(self.events.all)
        if self.events.num_halvings >= MAX_HALVINGS:
            raise self._stopped(found, rate)
        step = self._restore()
        self.events.all = events  # the state may be older than the events
        event = self.events.add_halving(found, self.steps_per_epoch, step)
        self.metrics.delete_after(step, len(events))
        self.metrics.add_event(event)
        self._save_again(step, parts)
        return step

    def divide(self, step: int, parts: int, *, restore: bool) -> tuple[int, int]:
        """Find the number of micro-batches with which an update needs less memory.

        Args:
            step: the number of updates that were made.
            parts: the number of micro-batches with which the memory was not enough.
            restore: whether the update has changed weights before it failed. The last good state is then restored.

        Returns:
            The number of updates after which the training goes on, and the number of micro-batches.

        Raises:
            NotEnoughMemory: a micro-batch cannot be divided any more, or there are several processes.
        """
        device = self.accelerator.device
        if self.accelerator.num_processes > 1:  # the others wait in the middle of the update
            raise NotEnoughMemory(
                f"{self.stage}: out of memory on {device.type} at step {step} with "
                f"{counted(self.num_images // parts, 'image')} in one pass of a process. Raise the setting accumulate "
                "of this training (twice as many micro-batches need about half the memory), lower its batch_size, or "
                "use more processes."
            )
        finer = finer_parts(self.num_images, parts, device)
        events = list(self.events.all)
        if restore:
            step = self._restore()
        self.events.all = events
        event = self.events.add_division(step, self.steps_per_epoch, self.num_images // finer)
        if restore:
            self.metrics.delete_after(step, len(events))
        self.metrics.add_event(event)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return step, finer

    def _restore(self) -> int:
        self.accelerator.wait_for_everyone()  # the first process may still write the checkpoint
        step, _ = self.state.load()
        self.watch = FiniteWatch(self.accelerator.device)
        self.accelerator.wait_for_everyone()
        return step

    def _save_again(self, step: int, parts: int) -> None:
        """Let the last good state say that the rate was halved. At the start there is no file, and none is written."""
        if self.state.path is None or not self.state.exists():
            self.state.keep_in_memory(step, parts)
        else:
            self.state.save(step, parts, write=self.accelerator.is_main_process)
        self.accelerator.wait_for_everyone()

    def _stopped(self, found: BadStep, rate: float) -> NonFiniteLoss:
        kept = f" The last good checkpoint is {self.state.path}." if self.state.exists() else ""
        message = (
            f"The loss or its gradient became infinite or not a number at step {found.step} (epoch "
            f"{found.step // self.steps_per_epoch + 1}) of {self.stage}, at a learning rate of {rate:.3g}: "
            f"{found.what()}. The learning rate was halved {counted(self.events.num_halvings, 'time')} before, and the "
            f"training went back each time.{kept} {ADVICE}"
        )
        log(f"{self.stage}: stopped at step {found.step}")
        return NonFiniteLoss(message)
