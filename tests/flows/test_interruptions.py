"""Runs that are asked to stop, by Ctrl-C or a scheduler, wherever they are: what is kept, what they say of it, and that they go on from there."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lingact.activations import passes
from lingact.cli import main as cli
from lingact.evaluation import answers
from lingact.evaluation.scorer import Scorer
from lingact.runtime import tensor_files
from lingact.training import base_targets, checkpoints
from lingact.training.batch_loss import BatchLoss
from lingact.training.module import GapModule
from lingact.workflows import train
from tests.helpers.paths import CONF
from tests.helpers.processes import Start
from tests.helpers.tiers import first_of

LONG = ("trainer.checkpoint_every=1000", "trainer.checkpoint_minutes=1000")
"""No checkpoint that nobody asked for."""
SETTINGS = ("lang=ml", "tracking=none", "languages.high=[]", "languages.low=[ml]", "sae.heldout=null", "peft.dropout=0.1", "trainer.micro_batch=2")
SETTINGS = (*SETTINGS, "loss.retention.limit=0.001", "batch_tokens=256", *LONG)
"""Everything that a step depends on: dropout, momentum, a learning rate that changes, a multiplier; and a step in two parts."""


def results(folder: Path) -> dict[str, bytes]:
    """All that a training run found."""
    files = [folder / "adapter" / "adapter_model.safetensors", folder / "summary.json", *sorted((folder / "tables").iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def signalled(number: int, owner: Any, name: str, call: int, *, after: bool = False) -> Iterator[None]:
    """The process gets a signal in the given call of this function."""
    real, calls = getattr(owner, name), iter(range(1, 10_000))

    def function(*given: Any, **more: Any) -> Any:
        due = next(calls) == call
        if due and not after:
            os.kill(os.getpid(), number)
        found = real(*given, **more)
        if due and after:
            os.kill(os.getpid(), number)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, function)
        yield


def resume(folder: Path, *overrides: str) -> int:
    return cli.main("train", CONF, [f"resume={folder}", *overrides])


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def undisturbed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert start("train", folder, *SETTINGS) == 0
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)  # six starts
def test_training_is_interrupted_at_any_point_and_goes_on_bit_for_bit(
    start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under Slurm, in a folder in which somebody else's file has the name of Lightning's own checkpoints."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "hpc_ckpt_1.ckpt").write_bytes(b"of something else")
    monkeypatch.chdir(here)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "job", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    goes_on = f" To go on: python train.py resume={folder}"
    # In the gradient of the fourth step's second part.
    with signalled(signal.SIGTERM, BatchLoss, "_target_means", 16):  # parts are computed again for the gradient
        assert start("train", folder, *SETTINGS) == 130
    assert last_line(capsys) == "Interrupted at step 3 of 7; kept: 3 steps." + goes_on
    # In the middle of an update: that is finished.
    with signalled(signal.SIGUSR1, torch.optim.lr_scheduler.LambdaLR, "step", 3):  # beside one when it is made
        assert resume(folder) == 130
    assert last_line(capsys) == "Interrupted at step 5 of 7; kept: 5 steps." + goes_on
    # And again while that is being saved.
    with signalled(signal.SIGINT, GapModule, "training_step", 2), signalled(signal.SIGUSR2, tensor_files, "write_atomically", 1):
        assert resume(folder) == 130
    assert last_line(capsys) == "Interrupted at step 6 of 7; kept: 6 steps." + goes_on
    # Behind the last step.
    with signalled(signal.SIGTERM, GapModule, "training_step", 1, after=True), signalled(signal.SIGTERM, train, "save_adapter", 1):
        assert resume(folder) == 130
        assert last_line(capsys) == "Interrupted at step 6 of 7; kept: 6 steps." + goes_on
        assert resume(folder) == 130
        assert last_line(capsys) == "Interrupted at step 7 of 7; kept: 7 steps." + goes_on
    monkeypatch.setattr(GapModule, "training_step", lambda *_: pytest.fail("a step is made again"))
    assert resume(folder) == 0
    assert results(folder) == results(undisturbed)
    assert tree(here) == {"hpc_ckpt_1.ckpt": b"of something else"}
    assert not list(folder.rglob("hpc_ckpt*"))
    assert not list(folder.rglob(".*"))


def test_before_the_first_step_nothing_is_kept_and_the_message_says_so(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, cache, kept in (
        ("a", "null", "nothing (cache=null)"),
        ("b", f"{tmp_path}/cache", f"only the cached base-model outputs ('{tmp_path}/cache')"),
    ):
        with signalled(signal.SIGHUP, base_targets, "_add", 1):
            assert start("train", tmp_path / name, *SETTINGS, f"cache={cache}") == 130
        assert f"Interrupted before the first step; kept: {kept}. To go on: " in last_line(capsys)


def test_a_checkpoint_is_kept_by_the_clock_and_where_training_fails(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, real = [], GapModule.training_step

    def step(self: GapModule, *given: Any) -> Any:
        seen.append(checkpoints.steps_kept(tmp_path / "run"))
        if self.global_step == 4:
            raise RuntimeError("the driver is gone")
        return real(self, *given)

    monkeypatch.setattr(GapModule, "training_step", step)
    for minutes, kept in (("1e-6", [0, 1, 2, 3, 4]), ("1000", [4, 4])):
        seen.clear()
        with pytest.raises(RuntimeError, match="the driver is gone"):
            start("train", tmp_path / "run", *SETTINGS, f"trainer.checkpoint_minutes={minutes}")
        assert seen[: len(kept)] == kept[: len(seen)]
        assert checkpoints.steps_kept(tmp_path / "run") == 4
    capsys.readouterr()


@pytest.mark.slow
def test_measuring_goes_on_anywhere_with_the_very_adapter(
    start: Start, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with signalled(signal.SIGTERM, passes, "count_tokens", 1):
        assert start("train", folder, *SETTINGS) == 130
    assert last_line(capsys) == f"Interrupted after the training; kept: the adapter, 1 measured batch. To go on: python train.py resume={folder}"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["status"] == "interrupted"
    kept = json.loads((folder / "checkpoints" / "trained.json").read_text())
    assert manifest["identity"]["adapter"]["sha256"] == kept["adapter"]
    # Another machine: training there would come to other last bits.
    for name in ("fit", "batch_loss", "attach_adapter"):
        monkeypatch.setattr(train, name, lambda *_: pytest.fail("it trains again"))
    (folder / "checkpoints" / "last.ckpt").unlink()
    elsewhere = ("device=cpu", "trainer.devices=2", "trainer.workers=1", "trainer.activation_checkpointing=true", f"cache={tmp_path}/cache")
    assert resume(folder, "optim.lr=1") == 2
    assert "optim.lr: " in capsys.readouterr().err
    with signalled(signal.SIGINT, passes, "_forward", 2):
        assert resume(folder, *elsewhere) == 130
    assert "kept: the adapter, 3 measured batches." in last_line(capsys)
    assert resume(folder) == 0
    assert results(folder) == results(undisturbed)


@pytest.fixture
def trained(start: Start, tmp_path: Path) -> Path:
    """A run that was interrupted before it has measured anything."""
    with signalled(signal.SIGTERM, train, "measure", 1):
        assert start("train", tmp_path / "run", *SETTINGS) == 130
    return tmp_path / "run"


@pytest.mark.slow
def test_an_adapter_that_was_exchanged_is_refused_and_one_that_was_deleted_is_made_again(
    trained: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = trained / "adapter" / "adapter_config.json"
    as_it_was = settings.read_text()
    settings.write_text(json.dumps(json.loads(as_it_was) | {"lora_alpha": 1.0}))
    capsys.readouterr()
    assert resume(trained) == 2
    assert "/adapter' is not the adapter that this run has trained (" in capsys.readouterr().err
    settings.unlink()
    (trained / "adapter" / "adapter_model.safetensors").unlink()
    assert resume(trained) == 2
    capsys.readouterr()
    for path in (trained / "adapter").iterdir():
        path.unlink()
    (trained / "adapter").rmdir()
    record = trained / "checkpoints" / "trained.json"
    whole = record.read_text()
    record.write_text(whole[:50])
    assert resume(trained) == 2
    assert "trained.json' cannot be read: it is truncated or not a lingact file; restore the right one, or delete it" in capsys.readouterr().err
    record.write_text(json.dumps(json.loads(whole) | {"lingact": {"corpus": "0" * 64}}))
    assert resume(trained) == 2
    assert "trained.json' is of another run (" in capsys.readouterr().err
    record.unlink()
    assert resume(trained) == 0
    assert results(trained) == results(undisturbed)


@pytest.mark.parametrize("number", first_of([signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP]))
def test_an_analysis_keeps_the_batch_it_is_in(
    number: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("languages.high=[]", "languages.low=[ml]", "tracking=none", "sae.layers=[0]", "sae.heldout=null", "batch_tokens=256", "measures=core")
    with signalled(number, passes, "count_tokens", 3):
        assert start("analyze", tmp_path / "run", *few) == 130
    assert last_line(capsys) == f"Interrupted; kept: 3 measured batches. To go on: python analyze.py resume={tmp_path / 'run'}"
    calls, real = [], passes._forward
    monkeypatch.setattr(passes, "_forward", lambda *given: calls.append(1) or real(*given))
    if number == signal.SIGUSR1:
        assert cli.main("analyze", CONF, [f"resume={tmp_path / 'run'}"]) == 0
        resumed = len(calls)
        assert start("analyze", tmp_path / "whole", *few) == 0
        assert len(calls) - resumed == resumed + 3
        assert (tmp_path / "run" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_an_evaluation_says_how_many_tasks_it_has_answered(
    small_toy_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"model.name={small_toy_model}/model", "tasks.benchmarks=[micro_arc]", "tasks.limit=2", "tracking=none", "cache=null", "text_split=null"]
    folder = tmp_path / "run"
    # While the second is written: that is finished.
    with signalled(signal.SIGTERM, answers, "write_atomically", 2):
        assert cli.main("eval", CONF, [*given, "languages.high=[]", "languages.low=[ml,hi]", f"hydra.run.dir={folder}"]) == 130
    assert last_line(capsys) == f"Interrupted; kept: the answers to 2 of 3 tasks. To go on: python eval.py resume={folder}"
    asked, real = [], Scorer._answer
    monkeypatch.setattr(Scorer, "_answer", lambda self, *more: asked.append(1) or real(self, *more))
    assert cli.main("eval", CONF, [f"resume={folder}"]) == 0
    assert len(asked) == 1
