"""Jobs through the real command line, on the small toy model and few sentences."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from lingact.cli import main as cli
from tests.helpers.figures import undrawn
from tests.helpers.paths import CONF, ROOT
from tests.helpers.processes import Start, fork, hub_surroundings


@pytest.fixture(scope="module", autouse=True)
def quick_figures(request: pytest.FixtureRequest) -> Iterator[None]:
    """`make test` draws figures in tests/unit, in the modules marked `draws` and where `drawn` says so; `make test-all` draws all of them."""
    if request.config.option.markexpr != "not slow" or request.node.get_closest_marker("draws"):
        yield
        return
    with undrawn():
        yield


@pytest.fixture(scope="session")
def arguments(small_toy_model: Path) -> Callable[..., list[str]]:
    """`arguments("train", folder, overrides...)`: what stands on the command line of a run in that folder."""
    few = [
        f"model.name={small_toy_model}/model",
        f"sae.measuring.release={small_toy_model}/sae",
        f"sae.heldout.release={small_toy_model}/sae_heldout",
        f"corpus.path={small_toy_model}/corpus.jsonl",
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


@pytest.fixture
def tasks_of_slurm() -> Callable[..., list[int | None]]:
    """`tasks_of_slurm(job, arguments)`: the exit codes of two processes as `srun` starts them."""

    def started(job: str, arguments: list[str]) -> list[int | None]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0"}
        shared |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

        def task(rank: int) -> int:
            os.environ.update(shared, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            return cli.main(job, CONF, arguments)

        processes = [fork(partial(task, rank)) for rank in range(2)]
        for process in processes:
            process.join()
        return [process.exitcode for process in processes]

    return started
