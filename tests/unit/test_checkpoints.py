"""Checkpoints and files that are whole or not there."""

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import SingleDeviceStrategy
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lingact.errors import UserError
from lingact.files.atomic import full_disk, write_atomically
from lingact.training.checkpoints import CheckpointCallback, LastStep, RunCheckpoints
from tests.helpers.disk import files_of_at_most

HEADER = {"configuration": "a" * 64, "corpus": "b" * 64}


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3, "history": [{"step": 0, "loss": float("inf")}]}
    RunCheckpoints(HEADER).save_checkpoint(content, path)
    return path, content


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    weights = torch.equal(one["state_dict"]["w"], other["state_dict"]["w"])
    return weights and (one["global_step"], one["history"]) == (other["global_step"], other["history"])


def test_what_is_saved_is_loaded(saved: tuple[Path, dict[str, Any]]) -> None:
    path, content = saved
    assert same(RunCheckpoints(HEADER).load_checkpoint(path), content)
    assert same(torch.load(path, weights_only=True), content), "plain torch reads it, too"
    assert list(path.parent.iterdir()) == [path]


def test_weights_and_moments_that_are_not_finite_are_refused(saved: tuple[Path, dict[str, Any]]) -> None:
    path, content = saved
    moments = [{"state": {0: {"exp_avg": torch.tensor([1.0, float("nan")])}}}]
    RunCheckpoints(HEADER).save_checkpoint(content | {"optimizer_states": moments}, path)
    with pytest.raises(UserError, match=r"last\.ckpt': 'optimizer_states\.0\.state\.0\.exp_avg' holds 1 value that is not finite \(1 NaN\)"):
        RunCheckpoints(HEADER).load_checkpoint(path)


def test_any_cut_and_any_changed_byte_is_noticed(saved: tuple[Path, dict[str, Any]]) -> None:
    path, _ = saved
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for place in [0, 1, 31, 32, len(whole) - 33, len(whole) - 1, *random.integers(len(whole), size=40).tolist()]:
        changed = bytearray(whole)
        changed[place] ^= 1
        for damaged in (whole[:place], bytes(changed), whole + whole[:place] + b"\0"):
            path.write_bytes(damaged)
            with pytest.raises(
                UserError, match=r"last.ckpt' is truncated, damaged or not a checkpoint of lingact train; restore the right one, or delete it"
            ):
                RunCheckpoints(HEADER).load_checkpoint(path)


def test_a_checkpoint_of_another_run_is_refused(saved: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"last.ckpt' is a checkpoint of another run \(corpus: b{12} there, c{12} here\)"):
        RunCheckpoints(HEADER | {"corpus": "c" * 64}).load_checkpoint(saved[0])


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(saved: tuple[Path, dict[str, Any]]) -> None:
    path, content = saved
    with files_of_at_most(3000), pytest.raises(OSError, match="File too large") as raised:
        RunCheckpoints(HEADER).save_checkpoint(content | {"global_step": 4}, path)
    assert full_disk(raised.value) == f"'{path}' could not be written: File too large"
    assert list(path.parent.iterdir()) == [path]
    assert same(RunCheckpoints(HEADER).load_checkpoint(path), content)


class Line(pl.LightningModule):
    """Learns a slope of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Linear(1, 1)
        nn.init.zeros_(self.slope.weight)
        nn.init.zeros_(self.slope.bias)

    def training_step(self, batch: Tensor, _: int) -> Tensor:
        return (self.slope(batch) - 3 * batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*(many workers|num_workers|LeafSpec|exists and is not empty|training batches).*")
def test_lightning_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(steps: int, header: dict[str, str], resumed: Path | None = None) -> list[float]:
        module = Line()
        trainer = pl.Trainer(
            accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
            plugins=[RunCheckpoints(header)],
            callbacks=[ModelCheckpoint(dirpath=tmp_path / "run", filename="last", every_n_train_steps=2, enable_version_counter=False)],
        )  # fmt: skip
        trainer.fit(module, DataLoader(torch.arange(4.0).view(2, 2, 1), batch_size=None), ckpt_path=resumed, weights_only=True)
        return [module.slope.weight.item(), module.slope.bias.item()]

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # a checkpoint that is first written elsewhere fails
    undisturbed = fit(5, HEADER)
    last = tmp_path / "run" / "last.ckpt"
    last.unlink()
    fit(3, HEADER)
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert fit(5, HEADER, last) == undisturbed
    with pytest.raises(UserError, match="of another run"):
        fit(5, HEADER | {"model": "d"}, last)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_atomically(path, "before")
    with files_of_at_most(5000), pytest.raises(OSError, match=r"table\.csv"):
        write_atomically(path, "x" * 5001)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_known_by_whoever_meets_it(tmp_path: Path) -> None:
    weights = {"w": torch.zeros(5000)}
    with files_of_at_most(6000):
        with pytest.raises(SafetensorError) as met:
            save_file(weights, tmp_path / "a.safetensors")
        assert "could not be written" in str(full_disk(met.value))
        with pytest.raises(RuntimeError) as met:
            torch.save(weights, tmp_path / "a.pt")
        assert "could not be written" in str(full_disk(met.value))
    wrapped = RuntimeError("while saving")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device", "stats/ml.safetensors")
    assert full_disk(wrapped) == "'stats/ml.safetensors' could not be written: No space left on device"
    assert full_disk(OSError(errno.EDQUOT, "Disk quota exceeded")) == "a file could not be written: Disk quota exceeded"
    assert full_disk(OSError(errno.EACCES, "Permission denied", "x")) is None
    assert full_disk(RuntimeError("shapes differ")) is None


# --- the last whole step -------------------------------------------------------------------------------------------------------------------------


class Meetings(SingleDeviceStrategy):
    """Counts where all processes wait for each other during a step."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))
        self.met: list[str | None] = []

    def barrier(self, name: str | None = None) -> None:
        self.met.append(name)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec:FutureWarning")
def test_a_step_is_held_without_waiting_for_other_processes(tmp_path: Path) -> None:
    kept, strategy, module = LastStep(HEADER), Meetings(), Line()
    path = tmp_path / "last.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu", strategy=strategy, plugins=[kept], max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[CheckpointCallback(kept, path, every=100, minutes=1000.0)],
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(8, 1)))
    assert kept.load_checkpoint(path)["global_step"] == 3
    assert torch.equal(kept.load_checkpoint(path)["state_dict"]["slope.weight"], module.slope.weight.detach())
    assert "Trainer.save_checkpoint" not in strategy.met
