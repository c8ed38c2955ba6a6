"""Jobs as processes of their own: how they are started, what they see, and which of them are left."""

import gc
import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT

Start = Callable[..., int]
"""Runs a job in this process and returns its exit code."""


def fork(work: Callable[[], int], log: Path | None = None) -> BaseProcess:
    """Start `work` in a copy of this process, where nothing is imported again; it ends with the exit code that `work` returns, or 1.

    Args:
        work: what to do there. Patches of this process hold there, too.
        log: file for what it prints; without one that goes where this process prints.
    """

    def run() -> None:
        gc.freeze()  # what is inherited is never taken apart: the end of a process group would wait for threads that this process has not
        code = 1
        try:
            if log:
                sys.stdout = sys.stderr = log.open("w")
                os.dup2(sys.stdout.fileno(), 1)
                os.dup2(sys.stdout.fileno(), 2)
            code = work()
        except BaseException:  # noqa: BLE001 (told where the other messages are)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # nothing of what pytest has to do at its end

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def forked(work: Callable[[], int], log: Path | None = None) -> int | None:
    """The exit code of `work` in a copy of this process (`fork`); of one that was killed, minus the signal's number."""
    process = fork(work, log)
    process.join()
    return process.exitcode


def killed_at(call: int, owner: Any, name: str, work: Callable[[], int]) -> int | None:
    """What `forked(work)` gives where the process gets SIGKILL right before the given call, counted from 1, of the function `name` of `owner`."""
    real, calls = getattr(owner, name), itertools.count(1)

    def function(*given: Any, **more: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, function)
        return forked(work)


def launch(command: list[str], log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start a process whose errors and progress bars go to a file; a pipe that nobody reads would fill up."""
    with log.open("wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, **more)


def bars_of(log: Path) -> set[str]:
    """The beginnings, up to a colon, of everything that was drawn or written. Bars move the cursor where several are open."""
    text = re.sub(r"\x1b\[\w*", "", log.read_text())
    return {line.partition(":")[0] for line in text.replace("\r", "\n").splitlines() if line.strip()}


def processes_of(folder: Path) -> list[str]:
    """The running processes whose command names this folder."""
    lines = subprocess.run(("ps", "-A", "-ww", "-o", "pid=,args="), capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


_TAKEN: list[socket.socket] = []


def unused_port() -> int:
    """A port of this machine on which nothing listens: it stays taken, so that no other process gets it meanwhile."""
    _TAKEN.append(socket.socket())
    _TAKEN[-1].bind(("127.0.0.1", 0))
    return _TAKEN[-1].getsockname()[1]


def hub_surroundings(home: Path) -> dict[str, str]:
    """The environment of a process that asks a hub on this machine and caches what it gets in `home`. The caller adds the hub's address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return kept | {"HF_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), "no_proxy": "127.0.0.1", "COLUMNS": "110"}
