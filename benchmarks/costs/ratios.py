"""One ratio beside its bound, and the three ways to get it: times in turns, bytes alive, calls of torch.

Machines differ and drift, so nothing here is judged in seconds: what is compared runs in turn, in one process, and the
median of the paired ratios is quoted with its quartiles. Bytes and calls are counted and come out the same each time.
"""

import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitrim.runs.progress import track


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One line of the table.

    Attributes:
        section: `scoring`, `distillation`, `latency`, `growth` or `gpu`.
        measure: what was measured. against: by what it was divided; empty for a number that is no ratio.
        value: the median of the paired ratios. low, high: their quartiles; equal to `value` for what was counted.
        bound: what `value` may be at most, or at least; None for a line that only informs.
        at_least: which of the two.
        setting: model, images, batch, rounds, threads: what must be known to read the line.
        unit: of `value`, for what is no ratio, such as `s` or `%`.
    """

    section: str
    measure: str
    against: str
    value: float
    low: float
    high: float
    bound: float | None = None
    at_least: bool = False
    setting: str = ""
    unit: str = ""

    @classmethod
    def counted(cls, value: float, **about: Any) -> "Ratio":
        """A ratio of counts, which has no spread."""
        return cls(value=float(value), low=float(value), high=float(value), **about)

    @classmethod
    def timed(cls, ratios: np.ndarray, **about: Any) -> "Ratio":
        """The median of paired ratios `(rounds,)` and their quartiles."""
        low, value, high = np.percentile(ratios, (25, 50, 75)).tolist()
        return cls(value=value, low=low, high=high, **about)

    @property
    def holds(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.bound is None:
            return None
        return bool(self.value >= self.bound if self.at_least else self.value <= self.bound)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


def seconds_in_turns(
    runs: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Seconds of each run, `(rounds,)`; all of them once a round, in an order that alternates from round to round."""
    names: Sequence[str] = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in track(range(warmup + rounds), f"timing {', '.join(names)}"):
        for name in names if index % 2 == 0 else reversed(names):
            gc.collect()  # not in somebody's turn
            start = time.perf_counter()
            runs[name]()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            if index >= warmup:
                found[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in found.items()}


class Tally(TorchDispatchMode):
    """Within the context: how many operations torch is asked for, and how many bytes of new tensors are alive at most.

    Counts what operations return, each storage once, until nobody holds it; what a kernel needs inside is not seen.
    Tensors from before do not count. The backward pass of the CPU runs in this thread and is counted too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.peak_bytes = 0
        self._bytes = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(_storage(leaf)) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        found = func(*args, **(kwargs or {}))
        self.calls += 1
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and id(_storage(leaf)) not in before:
                self._count(_storage(leaf))
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return
        self._alive[key] = weakref.finalize(storage, self._forget, key, size)
        self._bytes += size
        self.peak_bytes = max(self.peak_bytes, self._bytes)

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self._bytes -= size


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def tally(run: Callable[[], object]) -> Tally:
    """Count one run's calls and bytes."""
    gc.collect()
    with Tally() as found:
        run()
    return found
