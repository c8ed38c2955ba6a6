"""Polite requests to stop: Ctrl-C, and what schedulers send before they kill. A run is interrupted where that loses nothing that is half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; the end of a job (Slurm, PBS, Kubernetes); a warning ahead of it (Slurm's --signal, SGE, LSF); a limit on CPU time; a closed terminal."""
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class _State:
    """Of this process; signals arrive in its main thread alone."""

    held = 0
    """Blocks that are open and are to be finished first."""
    waiting: int | None = None
    """The signal that has arrived meanwhile."""
    others: ClassVar[dict[int, Any]] = {}
    """What was done before for a warning ahead of the end."""


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, each of `SIGNALS` raises KeyboardInterrupt, outside of `held` blocks.

    Signals that were ignored before (nohup) still are. Where somebody listens for a warning, as submitit does to requeue its job, they are called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    _State.others = {number: before[number] for number in mine if number in _WARNINGS and callable(before[number])}
    _State.waiting = None
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def interrupt(number: int, frame: object = None) -> None:
    """What a signal does.

    Raises:
        KeyboardInterrupt: unless something is held, or somebody else listens.
    """
    if _State.held:
        _State.waiting = number
    elif number in _State.others:
        _State.others[number](number, frame)
    else:
        raise KeyboardInterrupt


def hold() -> None:
    """From here on signals wait."""
    _State.held += 1


def release() -> None:
    """Until here.

    Raises:
        KeyboardInterrupt: one has arrived, and nothing else is held.
    """
    assert _State.held
    _State.held -= 1
    if _State.waiting is not None and not _State.held:
        number, _State.waiting = _State.waiting, None
        interrupt(number)


def let_go() -> None:
    """`release` where an exception is on its way already; one that has arrived is forgotten."""
    assert _State.held
    _State.held -= 1
    if not _State.held:
        _State.waiting = None


def pending() -> bool:
    """Whether a signal has arrived while something was held."""
    return _State.waiting is not None


@contextmanager
def held() -> Iterator[None]:
    """What is inside is finished before a signal interrupts."""
    hold()
    try:
        yield
    except BaseException:
        let_go()
        raise
    release()
