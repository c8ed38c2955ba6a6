"""What the surroundings of a command say is judged before anything is written: launchers, threads, folders, W&B."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lingact.cli import main as cli
from tests.helpers.paths import CONF

Train = Callable[..., int]
LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("WANDB_MODE", "WANDB_TAGS", "WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_DISABLED"),
)


@pytest.fixture
def surrounded(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Sets variables; whatever a command adds to the launchers' is put back."""
    for name in LAUNCHERS:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)

    def surround(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return surround


TWO = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "overrides", "said"),
    [
        ({"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1"}, (), "SLURM_NTASKS=2: the job has 2 tasks, but this process was not started by srun"),
        ({"RANK": "1"}, (), "RANK is set but WORLD_SIZE is not"),
        ({"RANK": "x", "OMP_NUM_THREADS": "y"}, (), "OMP_NUM_THREADS='y' is not a number of threads"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, (), "mpirun (Open MPI) has started 2 processes"),
        (TWO, ("trainer.devices=3",), "trainer.devices=3, trainer.nodes=1: 2 processes were started from outside (WORLD_SIZE)"),
        (TWO, ("trainer.sentences=1",), "trainer.sentences: it is 1, fewer than the 2 processes that share them"),
        (TWO, (), "hydra.run.dir: torchrun and srun start every process with the same command"),
        (TWO, ("hydra.run.dir='outputs/${now:%Y}'",), "name one for all, such as hydra.run.dir=outputs/train/mine"),
        (TWO | {"RANK": "1", "LOCAL_RANK": "1"}, (), "hydra.run.dir: torchrun and srun"),
        (TWO | {"RANK": "1", "LOCAL_RANK": "1"}, ("trainer.devices=3", "hydra.run.dir=run"), "trainer.devices=3"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}, (), "hydra.run.dir: torchrun and srun"),
        ({"NODE_RANK": "1"}, (), "NODE_RANK=1, but trainer.nodes=1"),
        ({}, ("trainer.nodes=2",), "the machines cannot find each other"),
        ({"WANDB_TAGS": "t" * 70}, (), "tracking: WANDB_TAGS: 'tttttttttttttttttttt...' has 70 characters"),
        ({"WANDB_SWEEP_ID": "abc", "WANDB_RUN_ID": "x"}, (), "tracking: an agent of the W&B sweep abc"),
        (
            {"WANDB_MODE": "disabled", "WANDB_API_KEY": "k" * 40},
            ("tracking=wandb",),
            "tracking: tracking=wandb means online, but WANDB_MODE=disabled",
        ),
        ({}, (f"tracking.tags=[{'t' * 70}]",), "tracking.tags: 'tttttttttttttttttttt...' has 70 characters"),
        ({}, ("tracking.project='a/b'",), "tracking.project: 'a/b' contains"),
        ({}, ("trainer.checkpoint_minutes=0",), "trainer.checkpoint_minutes: Input should be greater than or equal to 0.000001"),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else None,
)
def test_it_is_refused_at_once(
    variables: dict[str, str],
    overrides: tuple[str, ...],
    said: str,
    train: Train,
    runs: list,
    surrounded: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(Path.cwd().rglob("*"))
    surrounded(variables)
    assert train("lang=ml", *overrides) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py")
    assert said in error
    assert not runs
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_plan_starts_no_run_beside_the_first_process(train: Train, runs: list, surrounded: Callable[[dict[str, str]], None]) -> None:
    surrounded(TWO | {"RANK": "1", "LOCAL_RANK": "1"})
    assert train("lang=ml", "trainer.devices=2", "device=cpu", "plan=true", "hydra.run.dir=run") == 0
    assert not runs


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "interactive"},
        {"TMPDIR": "/nowhere/at/all"},
        {"CUDA_VISIBLE_DEVICES": ""},
        {"JOB_COMPLETION_INDEX": "1"},
        {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "1"},
        {"WANDB_MODE": "online", "WANDB_DIR": "/nowhere/at/all"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_it_is_nobodys_business(variables: dict[str, str], train: Train, runs: list, surrounded: Callable[[dict[str, str]], None]) -> None:
    surrounded(variables)
    assert train("lang=ml", "hydra.run.dir=run") == 0
    assert len(runs) == 1


def test_what_belongs_to_the_machine_may_change(train: Train, runs: list, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("lang=ml", "hydra.run.dir=run") == 0
    (place / "run" / "manifest.json").unlink()  # as if it had been killed
    elsewhere = ["device=cpu", "cache=other", "trainer.strategy=fsdp", "trainer.micro_batch=1", "trainer.checkpoint_minutes=0.5", "trainer.workers=1"]
    assert cli.main("train", CONF, ["resume=run", *elsewhere]) == 0
    config, _ = runs[1]
    assert (config.device, config.trainer.strategy, config.trainer.micro_batch, config.trainer.checkpoint_minutes) == ("cpu", "fsdp", 1, 0.5)
    (place / "run" / "manifest.json").unlink()
    for override in ("seed=1", "trainer.steps=3", "trainer.precision=bf16-mixed", "model.dtype=bfloat16"):
        assert cli.main("train", CONF, ["resume=run", override]) == 2
        assert f"{override.partition('=')[0]}: " in capsys.readouterr().err


def test_an_interruption_before_anything_is_kept_says_so(train: Train, runs: Any, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_config: object, folder: Path) -> None:
        (folder / "config.yaml").unlink()
        raise KeyboardInterrupt

    runs.does = interrupted
    assert train("lang=ml", "hydra.run.dir=run") == 130
    assert not (place / "run" / "config.yaml").exists()
    assert capsys.readouterr().err.endswith("\nInterrupted before anything was kept; give the same command again.\n")
