"""What goes wrong in a training, and what is done about it: numbers that are not finite, and a lack of memory.

After a loss or a gradient that is not finite, the training goes back to its last good state with half the learning
rate, at most twice. After a lack of memory, it goes on with smaller micro-batches. Both are noted as events. The events
are part of the checkpoint. The loop calls what is here; it decides when.
"""

import json
import math
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

MAX_HALVINGS = 2  # of the learning rate, in one training


class NotFinite(Exception):
    """Raised in the loop: an update had a loss or a gradient that is not finite. `found` says which."""

    def __init__(self, found: "BadStep") -> None:
        super().__init__(f"step {found.step}")
        self.found = found


@dataclass(frozen=True, kw_only=True)
class BadStep:
    """The first update whose loss or gradient was not finite.

    Attributes:
        step: number of the update, from 0.
        loss: the loss of this update.
        norm: the norm of its gradient.
        terms: the terms of the loss, by name.
        max_norm: the largest norm of the gradient of all updates before it that this process has made.
    """

    step: int
    loss: float
    norm: float
    terms: dict[str, float]
    max_norm: float

    def what(self) -> str:
        """Say what was not finite: terms of the loss, or the gradient of a finite loss."""
        bad = [f"the loss term {name} is {value:g}" for name, value in self.terms.items() if not math.isfinite(value)]
        if not bad and not math.isfinite(self.loss):
            bad = [f"the loss is {self.loss:g}"]
        bad = bad or [f"the loss is {self.loss:.4g}, the norm of its gradient is {self.norm:g}"]
        before = f"; the largest norm of the gradient before was {self.max_norm:.3g}" if self.max_norm else ""
        return ", ".join(bad) + before


class FiniteWatch:
    """Notes on the device whether each update is finite, so that no update waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), math.inf, device=device)  # the first update that was not finite
        self._max_norm = torch.zeros((), device=device)
        self._values: Tensor | None = None  # loss, norm and terms of this update
        self._names: tuple[str, ...] = ()

    def note(self, step: int, loss: Tensor, norm: Tensor, terms: dict[str, Tensor]) -> None:
        """Note one update. Every value is a scalar on the device."""
        self._names = tuple(terms)
        values = torch.stack([loss, norm, *(term.to(loss.dtype) for term in terms.values())])
        is_finite = torch.isfinite(loss + norm)
        if self._values is None or len(self._values) != len(values):
            self._values = values
        self._values = torch.where(torch.isinf(self._first), values, self._values)
        self._first = torch.where(is_finite, self._first, self._first.clamp(max=step))
        self._max_norm = torch.where(is_finite, torch.maximum(self._max_norm, norm), self._max_norm)

    def is_good(self) -> bool:
        """Whether all updates of this process were finite. It waits for the device."""
        return math.isinf(self._first.item())

    def row(self) -> Tensor:
        """What this process has noted, `(1, 4 + terms)`, to be gathered from all processes."""
        values = self._values if self._values is not None else self._first.new_zeros(2)
        return torch.cat([torch.stack([self._first, self._max_norm]).to(values.dtype), values])[None]

    def found_in(self, rows: Tensor) -> BadStep | None:
        """The first update that was not finite on any process; None if there is none.

        Args:
            rows: `row` of each process, `(processes, 4 + terms)`.
        """
        first, max_norm, loss, norm, *terms = min(rows.tolist(), key=lambda row: (row[0], math.isfinite(row[2])))
        if not math.isfinite(first):
            return None
        named = dict(zip(self._names, terms, strict=True))
        return BadStep(step=int(first), loss=loss, norm=norm, terms=named, max_norm=max_norm)


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that went wrong in a training, and after which it went on.

    Attributes:
        event: `non-finite loss` or `out of memory`.
        epoch: number of the epoch, from 1.
        step: number of updates that were made when the training went on.
        note: what happened, in a sentence.
    """

    event: str
    epoch: int
    step: int
    note: str


@dataclass
class Events:
    """The events of one training, in order. They are part of its checkpoint."""

    all: list[Event] = field(default_factory=list)

    @property
    def num_halvings(self) -> int:
        """How often the learning rate was halved."""
        return sum(event.event == "non-finite loss" for event in self.all)

    @property
    def rate_factor(self) -> float:
        """The factor on the learning rate."""
        return 0.5**self.num_halvings

    def to_text(self) -> str:
        """Return the events as JSON, for a checkpoint."""
        return json.dumps([asdict(event) for event in self.all])

    def load(self, text: str) -> None:
        """Replace the events by those of a checkpoint."""
        self.all = [Event(**values) for values in json.loads(text)]

    def add_halving(self, found: BadStep, steps_per_epoch: int, step: int) -> Event:
        """Note that the training goes back to `step` with half the learning rate."""
        epoch = found.step // steps_per_epoch + 1
        place = f"after step {step}" if step else "at its start"
        note = (
            f"The loss or its gradient was not finite at step {found.step} (epoch {epoch}): {found.what()}. The "
            f"training went on {place} with half the learning rate"
            f"{' (now a quarter of the one that was set)' if self.num_halvings else ''}."
        )
        self.all.append(Event(event="non-finite loss", epoch=epoch, step=step, note=note))
        return self.all[-1]

    def add_division(self, step: int, steps_per_epoch: int, num_images: int) -> Event:
        """Note that the training goes on with micro-batches of `num_images` images for each process."""
        epoch = step // steps_per_epoch + 1
        note = (
            f"The memory was not enough at step {step} (epoch {epoch}). The training went on with micro-batches of "
            f"{num_images} images; an update has as many images as before."
        )
        self.all.append(Event(event="out of memory", epoch=epoch, step=step, note=note))
        return self.all[-1]
