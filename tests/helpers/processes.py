"""Jobs as processes of their own: how they are started, what they see, and which of them are left."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.paths import ROOT

Start = Callable[..., int]
"""Runs a job in this process and returns its exit code."""


def launch(command: list[str], log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start a process whose errors and progress bars go to a file; a pipe that nobody reads would fill up."""
    with log.open("wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, **more)


def processes_of(folder: Path) -> list[str]:
    """The running processes whose command names this folder."""
    lines = subprocess.run(("ps", "-A", "-ww", "-o", "pid=,args="), capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line]


def unused_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def hub_surroundings(home: Path) -> dict[str, str]:
    """The environment of a process that asks a hub on this machine and caches what it gets in `home`. The caller adds the hub's address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return kept | {"HF_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), "no_proxy": "127.0.0.1", "COLUMNS": "110"}
