"""Ctrl-C, SIGTERM and SIGHUP: a training finishes its update and saves a checkpoint, anything else ends at once.

Only the command line handles signals, inside `handled`. Elsewhere they do what they do in every Python program. A
handler raises `Interrupted`, or only notes the signal inside `deferred`. A second signal ends the command at once. A
signal that is ignored when the command starts, as under `nohup`, stays ignored.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
AGENT_SECONDS = 5.0  # `torchrun` sends its processes a signal that the terminal or the batch system has sent them too


class Interrupted(KeyboardInterrupt):
    """A signal has ended the command.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal_name(number))
        self.number = number


@dataclass
class _State:
    """What this process knows about signals.

    Attributes:
        pid: of the process that handles them. Processes that it forks do not.
        number: of the first signal; 0 if there was none.
        received_at: when it came.
        deferring: how many `deferred` blocks are open.
    """

    pid: int = 0
    number: int = 0
    received_at: float = 0.0
    deferring: int = 0


_state = _State()


def signal_name(number: int) -> str:
    """The name of a signal, such as `SIGTERM`."""
    return signal.Signals(number).name


def exit_status(number: int) -> int:
    """The status with which a command ends after a signal: 2 after Ctrl-C, else 128 and the number of the signal."""
    return 2 if number == signal.SIGINT else 128 + number


def received() -> int:
    """The number of the first signal that this process has handled; 0 if there was none."""
    return _state.number


@contextmanager
def handled() -> Iterator[None]:
    """A context in which signals end the command as this module says. Without effect in other threads than the main."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        usual = (signal.SIG_DFL, signal.default_int_handler)
        before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) in usual}
    if before:
        _state.pid, _state.number = os.getpid(), 0
    try:
        for number in before:
            signal.signal(number, _receive)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _state.number = 0


@contextmanager
def deferred(*, enabled: bool = True) -> Iterator[None]:
    """A context in which the first signal is only noted. What is inside asks `received` and ends at a safe point.

    Args:
        enabled: if false, the context has no effect.
    """
    if not enabled:
        yield
        return
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1


def _receive(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _state.pid:  # a forked process, before it has set its own handlers
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        return
    is_first = not _state.number
    if is_first:
        _state.number, _state.received_at = number, time.monotonic()
    elif "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - _state.received_at < AGENT_SECONDS:
        return
    if is_first and _state.deferring:
        _announce(number)
        return
    if not is_first:
        for name in NAMES:  # the third ends the process even where Python does not come to its handlers
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) == _receive:
                signal.signal(getattr(signal, name), signal.SIG_DFL)
    raise Interrupted(_state.number)


def _announce(number: int) -> None:
    """Say what happens now. Written to the file descriptor, because the signal may have come inside a `print`."""
    if os.environ.get("RANK", "0") == "0":
        text = "a checkpoint is saved after this update. Another signal ends the command at once."
        with suppress(OSError):
            os.write(2, f"{signal_name(number)}: {text}\n".encode())
