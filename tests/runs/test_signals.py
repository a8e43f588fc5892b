"""Signals: which ones end a command, when, and with which status."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vitrim.runs.signals import Interrupted, deferred, exit_status, handled, received

USUAL = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}


@pytest.fixture(autouse=True)
def _usual_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The handlers with which Python starts. A shell that runs tests in the background lets them ignore Ctrl-C."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = {name: signal.signal(getattr(signal, name), handler) for name, handler in USUAL.items()}
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 2), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_a_command_at_once_with_its_status(name: str, status: int) -> None:
    with pytest.raises(Interrupted) as caught, handled():
        send(name)
        pytest.fail("goes on")
    assert isinstance(caught.value, KeyboardInterrupt)
    assert exit_status(caught.value.number) == status


def test_handlers_are_those_of_before_when_the_command_has_ended() -> None:
    with handled():
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    assert {name: signal.getsignal(getattr(signal, name)) for name in USUAL} == USUAL
    assert not received()


def test_the_first_signal_is_deferred_and_the_second_ends_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted) as caught, handled(), deferred():
        send("SIGTERM")
        assert received() == signal.SIGTERM
        assert "SIGTERM: a checkpoint is saved" in capfd.readouterr().err
        send("SIGHUP")
        pytest.fail("goes on")
    assert caught.value.number == signal.SIGTERM


def test_after_the_second_signal_the_system_ends_the_process() -> None:
    with handled():
        for _ in range(2):
            with pytest.raises(Interrupted):
                send("SIGTERM")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_signal_of_torchrun_is_that_of_its_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with handled(), deferred():
        send("SIGINT")
        send("SIGTERM")
        assert received() == signal.SIGINT


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with handled():
        send("SIGHUP")
        assert not received()


def test_handlers_of_the_user_are_kept() -> None:
    called = []
    signal.signal(signal.SIGTERM, lambda number, frame: called.append(number))
    with handled():
        send("SIGTERM")
    assert called == [signal.SIGTERM]


def test_in_another_thread_nothing_is_handled() -> None:
    problems: list[BaseException] = []

    def work() -> None:
        try:
            with handled(), deferred():
                assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        except BaseException as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not problems


def test_without_a_reason_to_defer_a_signal_ends_at_once() -> None:
    with pytest.raises(Interrupted), handled(), deferred(enabled=False):
        send("SIGTERM")
        pytest.fail("goes on")
