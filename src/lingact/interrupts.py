"""Polite requests to stop: Ctrl-C, and what schedulers send before they kill. A run is interrupted where that loses nothing that is half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; the end of a job (Slurm, PBS, Kubernetes); a warning ahead of it (Slurm's --signal, SGE, LSF); a limit on CPU time; a closed terminal."""


class _State:
    """Of this process; signals arrive in its main thread alone."""

    held = 0
    """Blocks that are open and are to be finished first."""
    waiting = False
    """A signal has arrived meanwhile."""


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, each of `SIGNALS` raises KeyboardInterrupt, outside of `held` blocks. Signals that were ignored before (nohup) still are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, interrupt)
    _State.waiting = False
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def interrupt(*_: object) -> None:
    """What a signal does.

    Raises:
        KeyboardInterrupt: unless something is held.
    """
    if _State.held:
        _State.waiting = True
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
    let_go()
    if _State.waiting and not _State.held:
        _State.waiting = False
        raise KeyboardInterrupt


def let_go() -> None:
    """`release` where another exception is on its way."""
    assert _State.held
    _State.held -= 1


def waiting() -> bool:
    """Whether a signal has arrived while something was held."""
    return _State.waiting


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
