"""Signals: they interrupt, but nothing that is held; and whoever listened before is still heard."""

import os
import signal

import pytest

from lingact.runtime import interrupts

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ALL)
def test_each_interrupts_and_is_put_back(number: int) -> None:
    before = {each: signal.getsignal(each) for each in ALL}
    with pytest.raises(KeyboardInterrupt), interrupts.interruptible():
        send(number)
    assert {each: signal.getsignal(each) for each in ALL} == before


def test_what_is_held_is_finished_however_many_come() -> None:
    done = []
    with interrupts.interruptible():
        with pytest.raises(KeyboardInterrupt), interrupts.deferred():  # noqa: PT012 (the end of the block raises)
            send(signal.SIGTERM)
            with interrupts.deferred():
                send(signal.SIGINT)
                assert interrupts.pending()
            send(signal.SIGUSR1)
            done.append("outer")
        assert done == ["outer"]
        assert not interrupts.pending()
        with interrupts.deferred():  # once is once
            pass


def test_another_error_goes_first() -> None:
    with interrupts.interruptible(), pytest.raises(ValueError, match="wrong"), interrupts.deferred():  # noqa: PT012 (the end of the block raises)
        send(signal.SIGTERM)
        raise ValueError("wrong")


def test_a_run_under_nohup_does_not_hear_of_the_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.interruptible():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_who_listens_for_a_warning_is_called_when_nothing_is_held() -> None:
    """As submitit, which requeues its job and exits."""
    heard: list[str] = []

    def requeue(*_: object) -> None:
        heard.append("requeued" if "written" in heard else "too early")
        raise SystemExit

    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with interrupts.interruptible(), pytest.raises(SystemExit), interrupts.deferred():  # noqa: PT012 (the end of the block raises)
            send(signal.SIGUSR2)
            heard.append("written")
        assert heard == ["written", "requeued"]
        with interrupts.interruptible(), pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGUSR2, before)
