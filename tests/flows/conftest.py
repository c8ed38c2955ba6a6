"""Jobs through the real command line, on the small organism and few sentences."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingact.cli import main as cli

CONF = Path(__file__).parents[2] / "conf"
ROOT = CONF.parent
Start = Callable[..., int]


@pytest.fixture(scope="session")
def arguments(small_organism: Path) -> Callable[..., list[str]]:
    """`arguments("train", folder, overrides...)`: what stands on the command line of a run in that folder."""
    few = [
        f"model.name={small_organism}/model",
        f"sae.measuring.release={small_organism}/sae",
        f"sae.heldout.release={small_organism}/sae_heldout",
        f"corpus.path={small_organism}/corpus.jsonl",
        "corpus.max_sentences=60",
        "statistics.resamples=100",
    ]
    short = ["trainer.steps=7", "trainer.sentences=4", "trainer.checkpoint_every=2", "optim.warmup_steps=1", "cache=null"]

    def of(job: str, folder: Path | None, *overrides: str) -> list[str]:
        where = [f"hydra.run.dir={folder}"] if folder else []
        flags = [text for text in overrides if text.startswith("-")]  # argparse wants them before the first override
        given = [text for text in overrides if text not in flags]
        return [*flags, *few, *(short if job == "train" else []), *where, *given]

    return of


@pytest.fixture(scope="session")
def start(arguments: Callable[..., list[str]]) -> Start:
    """`start("train", folder, overrides...)`: exit code of a run in that folder."""
    return lambda job, folder, *overrides: cli.main(job, CONF, arguments(job, folder, *overrides))


@pytest.fixture(scope="session")
def command(arguments: Callable[..., list[str]]) -> Callable[..., list[str]]:
    """`command(folder, overrides...)`: the command that does in a process of its own what `start("train", ...)` does in this one."""
    return lambda folder, *overrides: [sys.executable, str(ROOT / "train.py"), *arguments("train", folder, *overrides)]


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`process(address, command...)`: run Python in an empty folder with the hub at that address. Its address is read when the client is imported."""
    (tmp_path / "here").mkdir()

    def run(address: str, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        everything = hub_surroundings(tmp_path / "home") | {"HF_ENDPOINT": address, **more}
        return subprocess.run([sys.executable, *command], cwd=tmp_path / "here", env=everything, capture_output=True, text=True, check=False)

    return run


def unused_port() -> int:
    """A port of this machine at which there is nobody."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def launch(command: list[str], log: Path, **more: Any) -> subprocess.Popen[bytes]:
    """A process whose errors and progress bars go into a file; a pipe that nobody reads would fill up."""
    with log.open("wb") as errors:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, **more)


def hub_surroundings(home: Path) -> dict[str, str]:
    """The environment of a process that asks a hub on this machine and keeps what it gets in that folder. The hub's address is still to be added."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return kept | {"HF_HOME": str(home), "PYTHONPATH": str(ROOT / "src"), "no_proxy": "127.0.0.1", "COLUMNS": "110"}
