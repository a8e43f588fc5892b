"""The other processes of a distributed run: waits for them at the start, and notices when one of them is gone.

A process may compute for hours while the others wait for its result. So a wait has no short limit. Instead, a thread of
each process writes a sign of life into the store of `torch.distributed` every second, and reads those of the others. If
one stays away, or the store is gone, the process ends with one sentence. Files are complete or absent at any time, so
nothing half is left. Which process this is, and its device, is in `processes`.
"""

import atexit
import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from vitrim.errors import PartnerMissing

MAX_START_SECONDS = 80.0  # between the starts of two processes
MAX_SILENT_SECONDS = 90.0  # a long operation that holds Python's lock, such as writing a large file, lets no thread run
SECONDS_BETWEEN_SIGNS = 1.0
SECONDS_TO_END = 4.0  # for which a process that has failed waits for the others to end
SECONDS_TO_LEAVE = 30.0  # for which the process that has the store waits for the others to end
FAILED, DONE = "failed", "done"
STORE_LOST = "The connection to process 0, or to the program that has started the processes, is lost."
CONTINUE = "The same command continues from the last checkpoint."
LOST = ("connection closed", "connection reset", "broken pipe", "gloo", "nccl", "socket", "connection refused")


def is_one_of_several() -> bool:
    """Whether `torchrun`, `accelerate launch` or the like has started this process as one of several."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(os.environ.get(name) for name in names) and int(os.environ["WORLD_SIZE"]) > 1


@dataclass(eq=False)
class Partners:
    """All processes of a run, as this process sees them.

    Attributes:
        store: of `torch.distributed`, for the group of processes.
        rank: number of this process.
        count: number of processes.
        own_store: another connection to the store, for the thread: a request that waits holds its connection.
    """

    store: Any
    rank: int
    count: int
    own_store: Any = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _signs: dict[int, str] = field(default_factory=dict)  # by the number of the process

    def watch(self) -> None:
        """Start the threads. They end the process if another one is gone."""
        self.own_store = self.store.clone()
        self.own_store.set_timeout(timedelta(seconds=MAX_SILENT_SECONDS))
        for target in (self._exchange, self._watch):
            threading.Thread(target=target, name="vitrim-partners", daemon=True).start()
        atexit.register(self.leave)

    def _exchange(self) -> None:
        """Write the sign of life of this process, and read those of the others. A request may wait for ever."""
        others = [rank for rank in range(self.count) if rank != self.rank]
        number = 0
        while not self._ended.is_set():
            number += 1
            try:
                self.own_store.set(_sign(self.rank), str(number))
                found = [value.decode() for value in self.own_store.multi_get([_sign(rank) for rank in others])]
            except (RuntimeError, OSError):
                return self._end(STORE_LOST)
            if FAILED in found:
                return self._end("")  # it has said why
            self._signs = {**dict(zip(others, found, strict=True)), self.rank: str(number)}
            self._ended.wait(SECONDS_BETWEEN_SIGNS)

    def _watch(self) -> None:
        """Count for how long each sign has not changed: in seconds awake, so a run may be suspended as a whole."""
        silent, before = dict.fromkeys(range(self.count), 0.0), self._signs
        while not self._ended.wait(SECONDS_BETWEEN_SIGNS):
            signs = self._signs
            for rank in silent:
                is_alive = signs.get(rank) == DONE or signs.get(rank) != before.get(rank)
                silent[rank] = 0.0 if is_alive else silent[rank] + SECONDS_BETWEEN_SIGNS
            before = signs
            if silent[self.rank] >= MAX_SILENT_SECONDS:  # its requests are not answered
                return self._end(STORE_LOST)
            gone = [rank for rank in silent if silent[rank] >= MAX_SILENT_SECONDS]
            if gone:
                return self._end(
                    f"Process {gone[0]} of {self.count} (counted from 0) has given no sign of life for "
                    f"{MAX_SILENT_SECONDS:.0f} s: it was killed or stopped, or its machine or the network failed."
                )

    def _end(self, message: str) -> None:
        """End this process from the thread: its main thread may wait for ever."""
        if self._ended.is_set():
            return
        if message:
            end_process(f"{message} This process ends, too. {CONTINUE}")
        os._exit(2)

    def claims(self, message: str) -> bool:
        """Whether this process is the first one to say something. Only the first one should print it."""
        key = f"said/{hashlib.sha256(message.encode()).hexdigest()}"
        try:
            return int(self.store.add(key, 1)) == 1
        except (RuntimeError, OSError):
            return True

    def leave(self, state: str = "") -> None:
        """Let the others know that this process ends. They end, too, if it has failed.

        Args:
            state: `FAILED` or `DONE`; by default, failed if Python has printed an exception.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        state = state or (FAILED if getattr(sys, "last_value", None) is not None else DONE)
        try:
            self.store.set(_sign(self.rank), state)
            self.store.add(f"ended/{state}", 1)
            until = time.monotonic() + (SECONDS_TO_END if state == FAILED else SECONDS_TO_LEAVE)
            if state == FAILED or _hosts_store(self.rank):  # the others still need the store
                while time.monotonic() < until and self._num_ended() < self.count:
                    time.sleep(0.05)
        except (RuntimeError, OSError):
            pass  # the store is gone, and with it whoever would read this

    def _num_ended(self) -> int:
        return sum(int(self.store.add(f"ended/{state}", 0)) for state in (FAILED, DONE))


def _sign(rank: int) -> str:
    return f"sign/{rank}"


def _hosts_store(rank: int) -> bool:
    """Whether the store is a thread of this process. That of `torchrun` is in the process that started this one."""
    return rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def meet_partners() -> Partners:
    """Wait until all processes have started, and watch them from then on.

    Raises:
        PartnerMissing: one has not started within `MAX_START_SECONDS`.
    """
    from torch.distributed import PrefixStore, rendezvous

    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    started = time.monotonic()
    try:
        store, rank, count = next(iter(rendezvous("env://", timeout=timedelta(seconds=MAX_START_SECONDS))))
        store = PrefixStore("vitrim", store)
        store.set(_sign(rank), "0")
        names = [_sign(other) for other in range(count)]
        store.wait(names, timedelta(seconds=max(1.0, MAX_START_SECONDS - (time.monotonic() - started))))
    except (RuntimeError, OSError) as problem:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PartnerMissing(
            f"Not all of the {count} processes of this run have met at {place} within {MAX_START_SECONDS:.0f} s; this "
            f"is process {rank}. Start all of them, on machines that reach this address, or only one process "
            "without WORLD_SIZE."
        ) from problem
    partners = Partners(store, rank, count)
    partners.watch()
    return partners


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that the connection to another process is lost."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in LOST)
    )


def end_process(message: str) -> None:
    """Print one sentence and end this process at once, whatever its main thread waits for. Exit status 2."""
    with suppress(OSError, ValueError):  # nobody may read any more
        print(f"vitrim: {message}", file=sys.stderr, flush=True)
    os._exit(2)


def watch_parent(end: Callable[[str], None] = end_process) -> None:
    """End this process if `torchrun` or `accelerate launch` has started it and is gone. Call it early.

    Other processes may outlive the program that started them, as with `nohup`.

    Args:
        end: called in the thread, with a sentence.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or any(t.name == "vitrim-parent" for t in threading.enumerate()):
        return
    import psutil  # takes 15 ms, also for commands in one process

    parent = psutil.Process(os.getppid())

    def watch() -> None:
        while os.getppid() == parent.pid and parent.is_running():
            time.sleep(SECONDS_BETWEEN_SIGNS)
        end(f"The process that started this one (torchrun or accelerate launch) is gone. This process ends. {CONTINUE}")

    threading.Thread(target=watch, name="vitrim-parent", daemon=True).start()
