"""Signals that ask a run to stop: Ctrl-C, and those of schedulers before they kill. A run stops at a point where no half-done work is lost."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ClassVar

Handler = Callable[[int, FrameType | None], object]
"""What Python calls when a signal arrives."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C; the end of a job (Slurm, PBS, Kubernetes); a warning before it (Slurm's --signal, SGE, LSF); a limit on CPU time; a closed terminal."""
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


class _State:
    """The state of this process. Signals arrive in its main thread only."""

    blocks = 0
    """How many open blocks have to be finished first."""
    arrived: int | None = None
    """The signal that has arrived meanwhile."""
    others: ClassVar[dict[int, Handler]] = {}
    """Handlers of warnings that existed before."""


@contextmanager
def interruptible() -> Iterator[None]:
    """While open, each of `SIGNALS` raises KeyboardInterrupt, except in `deferred` blocks.

    Signals that were ignored before (nohup) are still ignored. If a warning already has a handler, such as submitit's that requeues its job, that
    handler is called.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    mine = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    _State.others = {number: handler for number in mine if number in _WARNINGS and callable(handler := before[number])}
    _State.arrived = None
    for number in mine:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def interrupt(number: int, frame: FrameType | None = None) -> None:
    """Handle a signal.

    Raises:
        KeyboardInterrupt: unless signals are deferred, or the signal had a handler before.
    """
    if _State.blocks:
        _State.arrived = number
    elif number in _State.others:
        _State.others[number](number, frame)
    else:
        raise KeyboardInterrupt


def defer() -> None:
    """Hold signals back from here on."""
    _State.blocks += 1


def deliver() -> None:
    """Undo one `defer`, and handle a signal that has arrived meanwhile.

    Raises:
        KeyboardInterrupt: one has arrived, and no other block is open.
    """
    assert _State.blocks
    _State.blocks -= 1
    if _State.arrived is not None and not _State.blocks:
        number, _State.arrived = _State.arrived, None
        interrupt(number)


def discard() -> None:
    """Undo one `defer` while another exception is being raised; a signal that has arrived is forgotten."""
    assert _State.blocks
    _State.blocks -= 1
    if not _State.blocks:
        _State.arrived = None


def pending() -> bool:
    """Whether a signal has arrived while signals were deferred."""
    return _State.arrived is not None


@contextmanager
def deferred() -> Iterator[None]:
    """Finish the block before a signal interrupts it."""
    defer()
    try:
        yield
    except BaseException:
        discard()
        raise
    deliver()
