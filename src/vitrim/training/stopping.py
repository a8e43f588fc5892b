"""Where a training that has received a signal stops: after an update, with a checkpoint, on all processes alike.

How signals are received is in `vitrim.runs.signals`.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather

from vitrim.runs.processes import this_process, wait_for_all
from vitrim.runs.progress import log
from vitrim.runs.signals import Interrupted, deferred, received, signal_name
from vitrim.training.job import TrainingJob

ASK_SECONDS = 2.0  # between the updates after which several processes ask each other whether to stop
MAX_UPDATES = 50  # between these


class StopPoints:
    """Stops a training that has received a signal. All processes stop after the same update.

    Args:
        stage: name of the training.
        device: of this process.
        step: number of updates that were made before.
    """

    def __init__(self, stage: str, device: torch.device, step: int = 0) -> None:
        self._stage, self._device = stage, device
        self._next, self._last, self._asked_at = step + 1, step, time.monotonic()

    def after(self, step: int, save: Callable[[], object], *, ask: bool = False) -> None:
        """Stop here if this process, or another one, has received a signal.

        Args:
            step: number of updates so far.
            save: writes a checkpoint.
            ask: several processes ask each other now. By default they do it about every two seconds.

        Raises:
            Interrupted: the checkpoint is written.
        """
        if number := self._agreed(step, ask):
            save()
            log(f"{self._stage}: stopped by {signal_name(number)} after {step} updates; the checkpoint is saved")
            wait_for_all()  # the first process has written it
            raise Interrupted(number)

    def _agreed(self, step: int, ask: bool) -> int:
        """The number of a signal; 0 to go on. It is the same on all processes."""
        if this_process().num_processes == 1:
            return received()
        if step < self._next and not ask:
            return 0
        seconds = (time.monotonic() - self._asked_at) / max(1, step - self._last)
        own = torch.tensor([[received(), seconds]], dtype=torch.float32, device=self._device)
        number, slowest = gather(own).max(dim=0).values.tolist()
        updates = min(MAX_UPDATES, int(ASK_SECONDS / max(slowest, 1e-6)))
        self._next, self._last, self._asked_at = step + max(1, updates), step, time.monotonic()
        return int(number)


@contextmanager
def stopping(job: TrainingJob, device: torch.device, step: int) -> Iterator[StopPoints]:
    """A context in which a signal ends a training with a checkpoint. Without a run folder it ends at once.

    Args:
        device: of this process.
        step: number of updates that were made before.
    """
    with deferred(enabled=job.run_dir is not None):
        yield StopPoints(job.stage, device, step)
    if job.run_dir is not None and received():  # since the last update
        raise Interrupted(received())
