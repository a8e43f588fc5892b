"""One measured ratio with its limit, and the ways to measure it: interleaved times, bytes alive, calls of torch.

Machines differ, so seconds are not compared between machines. Runs to compare take turns in one process, and a line of
a table is the median of the paired ratios with its quartiles. Bytes and calls are counted, so they are the same each
time. What is measured belongs to the other files of this folder.
"""

import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitrim.runs.progress import track


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One line of a table.

    Attributes:
        section: name of the section, such as `scoring`.
        measure: what was measured.
        against: what it was divided by. Empty for a number that is not a ratio.
        value: the median of the paired ratios.
        low: their lower quartile. Equal to `value` for a count.
        high: their upper quartile. Equal to `value` for a count.
        limit: maximum of `value`, or minimum if `at_least` is set. None for a line without a limit.
        at_least: whether the limit is a minimum.
        setting: what one must know to read the line: model, images, batch, rounds, threads.
        unit: unit of `value`, such as `s` or `%`. Empty for a ratio.
    """

    section: str
    measure: str
    against: str
    value: float
    low: float
    high: float
    limit: float | None = None
    at_least: bool = False
    setting: str = ""
    unit: str = ""

    @classmethod
    def counted(cls, value: float, **about: Any) -> "Ratio":
        """Make a line from a count, which has no spread."""
        return cls(value=float(value), low=float(value), high=float(value), **about)

    @classmethod
    def timed(cls, ratios: np.ndarray, **about: Any) -> "Ratio":
        """Make a line from paired ratios `(rounds,)`: their median and quartiles."""
        low, value, high = np.percentile(ratios, (25, 50, 75)).tolist()
        return cls(value=value, low=low, high=high, **about)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Ratio":
        """Read a line that `to_dict` wrote."""
        about = {name: value for name, value in values.items() if name not in ("bound", "holds")}
        return cls(limit=values["bound"], **about)

    @property
    def holds(self) -> bool | None:
        """Whether the value is within its limit. None for a line without a limit."""
        if self.limit is None:
            return None
        return bool(self.value >= self.limit if self.at_least else self.value <= self.limit)

    def to_dict(self) -> dict[str, Any]:
        """Return the line with the keys of `performance.json`. The limit is stored as `bound`."""
        return {
            **{name: getattr(self, name) for name in ("section", "measure", "against", "value", "low", "high")},
            "bound": self.limit,
            **{name: getattr(self, name) for name in ("at_least", "setting", "unit", "holds")},
        }


def seconds_in_turns(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    device: str = "cpu",
    collect_each: bool = True,
) -> dict[str, np.ndarray]:
    """Time several runs in turns, and return the seconds of each, `(rounds,)`.

    Each round runs all of them once. The order is reversed in every second round.

    Args:
        runs: functions to time, by name.
        rounds: number of rounds that count.
        warmup: number of rounds before them that do not count.
        device: the device that the runs use. A GPU is synchronised after each run.
        collect_each: collect garbage before each run. This may take longer than a short run, and the GPU is idle then.
    """
    names: Sequence[str] = list(runs)
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in track(range(warmup + rounds), f"timing {', '.join(names)}"):
        for name in names if index % 2 == 0 else reversed(names):
            if collect_each:
                gc.collect()  # so that no run pays for the garbage of another one
            start = time.perf_counter()
            runs[name]()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            if index >= warmup:
                found[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in found.items()}


class OperationCounter(TorchDispatchMode):
    """Counts torch's operations within the context, and the bytes of new tensors that are alive.

    A storage counts once, from the operation that returns it until it is freed. Tensors from before the context do not
    count. Temporary memory inside an operation is not seen. On the CPU, the backward pass runs in the same thread, so
    it is counted too.

    Attributes:
        calls: number of operations.
        bytes_alive: bytes of new tensors that are alive now.
        peak_bytes: maximum of `bytes_alive`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.bytes_alive = 0
        self.peak_bytes = 0
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
        self._alive[key] = weakref.finalize(storage, self._discard, key, size)
        self.bytes_alive += size
        self.peak_bytes = max(self.peak_bytes, self.bytes_alive)

    def _discard(self, key: int, size: int) -> None:
        del self._alive[key]
        self.bytes_alive -= size


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def count_operations(run: Callable[[], object]) -> OperationCounter:
    """Count the operations and bytes of one run."""
    gc.collect()
    with OperationCounter() as found:
        run()
    return found
