"""The processes of one run that share its passes over text: how they start, wait for each other, and merge their results.

Lightning starts the processes, unless torchrun or Slurm has. They communicate over gloo, because they exchange sums in host memory. In a run of one
process the functions here do nothing.
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
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from lingact.errors import UserError
from lingact.runtime.compat.lightning import started_processes
from lingact.runtime.environment import shape, started_outside

if TYPE_CHECKING:
    from lightning_fabric.plugins.environments import ClusterEnvironment
    from torch import Tensor

T = TypeVar("T")
_TIMEOUT = timedelta(days=7)
"""How long a process waits for the results of others. The end of a process is noticed at once, independently of this."""
_GRACE = 10.0
"""Seconds that other processes have to save their state when a run is interrupted."""


def rank() -> int:
    """The rank of this process, from 0."""
    from torch import distributed

    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    from torch import distributed

    return distributed.get_world_size() if distributed.is_initialized() else 1


# --- collectives ----------------------------------------------------------------------------------------------------------------------------------


def broadcast(value: T, source: int = 0) -> T:
    """The value of one process, in all processes. The values of the others are ignored."""
    from torch import distributed

    if world() == 1:
        return value
    _wait()
    values = [value]
    distributed.broadcast_object_list(values, src=source)
    return values[0]


def all_gather(value: T) -> list[T]:
    """The values of all processes in the order of ranks, in every process."""
    from torch import distributed

    if world() == 1:
        return [value]
    _wait()
    values = [value] * world()  # overwritten
    distributed.all_gather_object(values, value)
    return values


def all_reduce(state: dict[str, np.ndarray], merge: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Merge the states of all processes, and give every process the result, equal to the last bit.

    The first process merges the others in the order of ranks and sends the result to all.

    Args:
        state: arrays in C order, with the same names, shapes and types in every process; changed in place.
        merge: adds the arrays of another process to `state`.
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


def broadcast_tensor(tensor: "Tensor", source: int = 0) -> None:
    """Overwrite a tensor in host memory with that of one process, which has the same shape and type."""
    from torch import distributed

    if world() > 1:
        _together(partial(distributed.broadcast, tensor, src=source))


def _wait() -> None:
    """Wait until all processes are here.

    Raises:
        UserError: another process has ended.
    """
    from torch import distributed

    _together(distributed.barrier)


def _together(collective: Callable[[], object]) -> None:
    """Do something that all processes take part in.

    Raises:
        UserError: another process has ended.
    """
    try:
        _in_thread(collective)
    except RuntimeError as error:
        time.sleep(2)  # if it ran on this machine, `_watching` may still say how it ended
        raise UserError(
            "another process of this run ended too early; its message is above, or in the log of its machine. What was saved is intact: give the "
            "same command with resume=<run folder>"
        ) from error


def _in_thread(wait: Callable[[], object]) -> None:
    """Wait in another thread, so that this one can still handle signals: interrupts, and the end of child processes."""
    raised: list[Exception] = []

    def run() -> None:
        try:
            wait()
        except Exception as error:  # noqa: BLE001 (raised again below)
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    if raised:
        raise raised[0]


# --- starting and watching processes --------------------------------------------------------------------------------------------------------------


def cluster_environment(nodes: int) -> "ClusterEnvironment":
    """Lightning's description of the launcher, given to it so that it does not guess (see `environment`): either torchrun or Lightning itself."""
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment

    if started_outside(os.environ):
        return TorchElasticEnvironment()
    if nodes == 1 and "LOCAL_RANK" not in os.environ:
        # These are left over from something else. Processes on one machine do not need them.
        os.environ.pop("MASTER_ADDR", None)
        os.environ.pop("MASTER_PORT", None)
    return LightningEnvironment()


@contextmanager
def process_group(devices: int, nodes: int) -> Iterator[None]:
    """While open, this many processes share the passes (`shape`). The first process of a machine starts the others, unless a launcher has.

    They run the same command from its beginning and join here. If the first process fails or is interrupted, it ends those that it has started. If
    one of those fails, the first process notices at once. A failure on another machine is noticed at the next wait.

    Raises:
        UserError: another process has ended.
    """
    devices, nodes = shape(devices, nodes, os.environ)
    if devices * nodes == 1:
        yield
        return
    children: list[subprocess.Popen] = []
    try:
        with terminated_on_failure(lambda: children), _watching(children):
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
            strategy=DDPStrategy(process_group_backend="gloo", timeout=_TIMEOUT),
            plugins=[cluster_environment(nodes)],
        ).strategy
    launcher = strategy.launcher
    assert launcher is not None

    def meet() -> None:
        # `_watching` watches them instead of Lightning.
        started = started_processes(strategy)
        _watch_also(children, started)
        started.clear()
        _in_thread(strategy.setup_environment)

    launcher.launch(meet)


def _watch_also(children: list[subprocess.Popen], more: Sequence[subprocess.Popen]) -> None:
    """Add these to the list of `_watching`. The signal is repeated in case one has ended before."""
    children.extend(more)
    signal.raise_signal(signal.SIGCHLD)


def _leave() -> None:
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def terminated_on_failure(children: Callable[[], list[subprocess.Popen]]) -> Iterator[None]:
    """If the block fails, end the processes that this one has started, which would wait for it.

    After an interrupt they are asked to end first, so that they can save their state. They are also removed from the list: Lightning watches the
    processes of its own list, and would kill this process some seconds later, for example in the next job of a sweep.

    Args:
        children: gives the list when it is needed, because Lightning makes a new one when it starts processes.
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
def _watching(children: Sequence[subprocess.Popen]) -> Iterator[None]:
    """While open, the block ends as soon as a child ends with an error.

    Raises:
        UserError: a child was killed, or ended with an error that the user can fix.
        RuntimeError: a child failed.
        KeyboardInterrupt: a child was interrupted.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return

    def check(*_: object) -> None:
        for number, child in enumerate(children, start=1):
            code = child.poll()
            if code == 130:
                raise KeyboardInterrupt
            if code:
                killed = f"was killed by signal {-code}, as the system does when memory runs out"
                how = "ended; its message is above" if code > 0 else killed
                raise (RuntimeError if code == 1 else UserError)(
                    f"process {number + 1} of this run on this machine {how}. What was saved is intact: give the same command with "
                    "resume=<run folder>"
                )

    before = signal.signal(signal.SIGCHLD, check)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)
