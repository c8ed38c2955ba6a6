"""The processes of one run that share its passes over text: how they come together, wait for each other, and put their parts together.

Lightning starts them, or finds that torchrun or Slurm has; they speak to each other over gloo, since what they exchange are sums in host memory.
Without others beside it a process is the first of one, and everything here does nothing.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lingact.errors import UserError
from lingact.runtime.compat.lightning import started_processes
from lingact.runtime.environment import shape, started_outside

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment

T = TypeVar("T")
_PATIENCE = timedelta(days=7)
"""How long a process waits for the others' parts. One that ends is noticed at once, whatever this is."""
_GRACE = 10.0
"""Seconds for the others to save their parts when a run is interrupted."""


def rank() -> int:
    """The place of this process among those that share the passes now, from 0."""
    from torch import distributed

    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many processes share the passes now."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


# --- what they tell each other -------------------------------------------------------------------------------------------------------------------


def broadcast(value: T) -> T:
    """The first process's value, for all; what the others give does not count."""
    from torch import distributed

    if world() == 1:
        return value
    _wait()
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Every process's value in the order of ranks, for all."""
    from torch import distributed

    if world() == 1:
        return [value]
    _wait()
    values: list[Any] = [None] * world()
    distributed.all_gather_object(values, value)
    return values


def all_reduce(state: dict[str, np.ndarray], merge: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Give every process the state of all, the same to the last bit: the first takes the others' in, in the order of ranks, and hands it out.

    Args:
        state: arrays of the same names, shapes and types in every process, in C order; changed in place.
        merge: takes the arrays of another process into `state`.
    """
    import torch
    from torch import distributed

    if world() == 1:
        return
    _wait()
    for other in range(1, world()):
        if rank() == other:
            for array in state.values():
                distributed.send(torch.from_numpy(array), dst=0)
        elif rank() == 0:
            theirs = {name: np.empty_like(array) for name, array in state.items()}
            for array in theirs.values():
                distributed.recv(torch.from_numpy(array), src=other)
            merge(theirs)
    for array in state.values():
        distributed.broadcast(torch.from_numpy(array), src=0)


def _wait() -> None:
    """Until all processes are here.

    Raises:
        UserError: one will never be.
    """
    from torch import distributed

    try:
        _beside(distributed.barrier)
    except RuntimeError as error:
        time.sleep(2)  # one of this machine may still tell how it ended (`_heeding`)
        raise UserError(
            "another process of this run has ended before its part was done; what it said stands above, or in the log of its machine. What was saved "
            "is whole: give the same command with resume=<run folder>"
        ) from error


def _beside(wait: Callable[[], Any]) -> None:
    """Wait in a thread beside this one, which hears of interrupts and of the ends of processes meanwhile."""
    raised: list[Exception] = []

    def waiting() -> None:
        try:
            wait()
        except Exception as error:  # noqa: BLE001 (raised again below)
            raised.append(error)

    thread = threading.Thread(target=waiting, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    if raised:
        raise raised[0]


# --- how they come together ----------------------------------------------------------------------------------------------------------------------


def cluster_environment(nodes: int) -> "ClusterEnvironment":
    """What Lightning is told of the processes instead of finding out by itself (see `environment`): torchrun's names, or that it starts them."""
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    if started_outside(os.environ):
        return TorchElasticEnvironment()
    if nodes == 1 and "LOCAL_RANK" not in os.environ:
        # Left over from something else: processes of one machine meet on it.
        os.environ.pop("MASTER_ADDR", None)
        os.environ.pop("MASTER_PORT", None)
    return LightningEnvironment()


@contextmanager
def process_group(devices: int, nodes: int) -> Iterator[None]:
    """While open, so many processes share the passes (`shape`); the first one starts those of its machine that are not there.

    They run the command of the first one from its beginning and join it here. Where the first one fails, or is interrupted, it ends those that it has
    started; where one of those fails, the first one hears of it at once. Those of other machines are heard of when they are waited for.

    Raises:
        UserError: another process has ended.
    """
    devices, nodes = shape(devices, nodes, os.environ)
    if devices * nodes == 1:
        yield
        return
    children: list[subprocess.Popen] = []
    try:
        with ending(lambda: children), _heeding(children):
            _join(devices, nodes, children)
            yield
            _wait()
    finally:
        _leave()


def _join(devices: int, nodes: int, children: list[subprocess.Popen]) -> None:
    import logging
    import warnings

    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*srun.*")
        strategy = Fabric(
            accelerator="cpu",
            devices=devices,
            num_nodes=nodes,
            strategy=DDPStrategy(process_group_backend="gloo", timeout=_PATIENCE),
            plugins=[cluster_environment(nodes)],
        ).strategy
    launcher = strategy.launcher
    assert launcher is not None

    def meet() -> None:
        # Lightning would kill this process, without a word, for the end of another; see `_heeding` for what is done instead.
        started = started_processes(strategy)
        _heed_also(children, started)
        started.clear()
        _beside(strategy.setup_environment)

    launcher.launch(meet)


def _heed_also(children: list[subprocess.Popen], more: Sequence[subprocess.Popen]) -> None:
    """Put these on the list of `_heeding`; one that has ended before, of which the signal came too early, is heard of now."""
    children.extend(more)
    signal.raise_signal(signal.SIGCHLD)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def ending(children: Callable[[], list[subprocess.Popen]]) -> Iterator[None]:
    """Where the block fails, end the processes that were started beside this one: they would wait for it.

    Args:
        children: the list as it is then; Lightning makes a new one when it starts them.

    Where it is interrupted they are asked to end first, so that they save their parts.

    They are taken off the list, too. Lightning watches those of its own list, and would kill this process for their deaths some seconds later, in the
    middle of whatever it does then, such as the next job of a sweep.
    """
    try:
        yield
    except BaseException as error:
        started = children()
        if isinstance(error, KeyboardInterrupt):
            for child in started:
                child.terminate()
            end = time.monotonic() + _GRACE
            for child in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, end - time.monotonic()))
        for child in started:
            child.kill()
            child.wait()
        started.clear()
        raise


@contextmanager
def _heeding(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """While open, the end of a child before its time ends the block, in the middle of whatever it does.

    Raises:
        UserError: a child was killed, or has a problem that the user can mend.
        RuntimeError: it failed.
        KeyboardInterrupt: it was interrupted.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return

    def heed(*_: object) -> None:
        for number, child in enumerate(children, start=1):
            code = child.poll()
            if code == 130:
                raise KeyboardInterrupt
            if code:
                how = f"was killed by signal {-code}, as the system does when memory runs out" if code < 0 else "has ended; what it said stands above"
                raise (RuntimeError if code == 1 else UserError)(
                    f"process {number + 1} of this run on this machine {how}. What was saved is whole: give the same command with resume=<run folder>"
                )

    before = signal.signal(signal.SIGCHLD, heed)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
