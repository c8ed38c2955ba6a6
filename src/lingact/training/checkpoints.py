"""Checkpoints of a training run, and a record of its end. Files are complete or do not exist; those of other runs are refused."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.types import STEP_OUTPUT

from lingact.errors import UserError
from lingact.files.atomic import full_disk, write_json
from lingact.files.records import read_json_object
from lingact.models.finite import describe, nonfinite
from lingact.runtime import interrupts
from lingact.runtime.compat.lightning import checkpoint_of
from lingact.runtime.program import program
from lingact.runtime.tensor_files import load_tensors, save_tensors
from lingact.runtime.tracking import differences

CHECKPOINTS = "checkpoints"
"""Folder in the run's."""
_LAST, _TRAINED = "last.ckpt", "trained.json"
_HEADER = "lingact"
_FINITE_PARTS = ("state_dict", "optimizer_states")
"""Parts of a checkpoint that have to be finite. Callbacks may start with infinite scores."""


class RunCheckpoints(TorchCheckpointIO):
    """A Lightning plugin that writes checkpoints atomically.

    Lightning itself writes into the system's temporary folder and moves the file, which is a copy if that is another disk.

    A file is one of `tensor_files`. One is enough: only a fault of the disk can damage it, and without it the run starts over with the same result.

    Args:
        header: what the run depends on (`Run.header`). It is compared because checkpoints contain only the adapter and are not loaded strictly:
            from a checkpoint of another run, whatever fits would be loaded.
    """

    def __init__(self, header: Mapping[str, str]) -> None:
        super().__init__()
        self.header = dict(header)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:  # noqa: ARG002 (Lightning's)
        """Write the checkpoint to a temporary file and move it into place.

        Raises:
            OSError: naming the file. The earlier checkpoint is still there.
        """
        save_tensors(checkpoint | {_HEADER: self.header}, Path(path))

    def load_checkpoint(self, path: str | Path, map_location: Callable | str | None = "cpu", weights_only: bool | None = True) -> dict[str, Any]:  # noqa: ARG002
        """Read tensors and plain values, never code, whatever `weights_only` says.

        Raises:
            UserError: it is truncated, damaged or of another run.
        """
        checkpoint = load_tensors(Path(path), map_location)
        what_to_do = "restore the right one, or delete it: the run then starts over, with the same result"
        if checkpoint is None:
            raise UserError(f"'{path}' is truncated, damaged or not a checkpoint of {program('train')}; {what_to_do}")
        if different := differences(checkpoint[_HEADER], self.header):
            raise UserError(f"'{path}' is a checkpoint of another run ({'; '.join(different)}); {what_to_do}")
        if spoiled := nonfinite(_tensors({name: checkpoint.get(name) for name in _FINITE_PARTS})):
            raise UserError(f"'{path}': {describe(spoiled)}; training cannot continue from there. Delete it: the run then starts over")
        return checkpoint


def _tensors(node: object, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a checkpoint with their names: weights, moments of the optimiser."""
    if isinstance(node, torch.Tensor):
        yield path, node
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in parts:
        yield from _tensors(value, f"{path}.{name}" if path else str(name))


def last_checkpoint(folder: Path) -> Path:
    """The path of a run's checkpoint, which may not exist yet."""
    return folder / CHECKPOINTS / _LAST


class LastStep(RunCheckpoints):
    """Keeps the state after the last complete step in memory, and writes it on request.

    The state refers to the trained tensors themselves. They do not change before the next update, so keeping it costs nothing, and it can still be
    written in the middle of the next step. Before that update it has to be dropped.
    """

    def __init__(self, header: Mapping[str, str]) -> None:
        super().__init__(header)
        self._kept: tuple[dict[str, Any], str | Path] | None = None
        self._on_disk = True

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:  # noqa: ARG002 (Lightning's)
        """Keep the state in memory."""
        self._kept, self._on_disk = (checkpoint, path), False

    def drop(self) -> None:
        """Drop the state, because its tensors are about to change."""
        self._kept = None

    def write(self) -> None:
        """Write the state to the disk, unless there is none or it has been written."""
        if self._kept is not None and not self._on_disk:
            super().save_checkpoint(*self._kept)
            self._on_disk = True


class CheckpointCallback(pl.Callback):
    """Writes a checkpoint after a number of steps or minutes, after the last step, and when training is interrupted or fails.

    Signals are deferred from before a step's update until its state is kept, so that a half-done step is never saved.

    Args:
        checkpoints: the trainer's plugin.
        path: path of the checkpoint.
        every: steps between checkpoints.
        minutes: minutes between checkpoints.
    """

    def __init__(self, checkpoints: LastStep, path: Path, *, every: int, minutes: float) -> None:
        self._checkpoints, self._path, self._every, self._seconds = checkpoints, path, every, 60 * minutes
        self._written = time.monotonic()
        self._deferring = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002 (Lightning's)
        """Defer signals, and drop the kept state."""
        interrupts.defer()
        self._deferring = True
        self._checkpoints.drop()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 (Lightning's)
        outputs: STEP_OUTPUT,  # noqa: ARG002
        batch: object,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Keep the state of the complete step, and write it if it is time."""
        if not trainer.is_global_zero:
            return
        # The state of the first process is that of all.
        self._checkpoints.save_checkpoint(checkpoint_of(trainer), self._path)
        now = time.monotonic()
        if trainer.global_step % self._every == 0 or now - self._written >= self._seconds:
            self._checkpoints.write()
            self._written = now

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int) -> None:  # noqa: ARG002
        """Deliver signals again, now that the last step is logged."""
        self._deliver()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's)
        """Write the state after the last step."""
        if trainer.is_global_zero:
            self._checkpoints.write()
        self._deliver()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002 (Lightning's)
        """Write the state after the last complete step, unless its tensors have changed."""
        if not self._deferring:
            interrupts.defer()  # a second signal must not end this
        self._deferring = False
        try:
            if trainer.is_global_zero and full_disk(exception) is None:
                # The training may have ended because of a fault of the disk or the device; then that error has to be reported.
                with contextlib.nullcontext() if isinstance(exception, KeyboardInterrupt) else contextlib.suppress(OSError, RuntimeError):
                    self._checkpoints.write()
        finally:
            interrupts.discard()

    def _deliver(self) -> None:
        if self._deferring:
            self._deferring = False
            interrupts.deliver()


def steps_kept(folder: Path) -> int:
    """Steps in a run's checkpoint; 0 if there is none, or it is damaged."""
    path = last_checkpoint(folder)
    saved = load_tensors(path) if path.is_file() else None
    return 0 if saved is None else saved["global_step"]


# --- the end of training --------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """The end of a training. A run that is resumed afterwards evaluates the adapter and does not train it again."""

    sha256: str
    """`adapter_hash` of the adapter in the run folder."""
    history: list[dict[str, int | float]]
    """Number and all terms of every step."""


def save_trained(folder: Path, header: Mapping[str, str], trained: Trained) -> None:
    """Record the end of training, once the adapter is in the run folder."""
    write_json(folder / CHECKPOINTS / _TRAINED, {_HEADER: dict(header), "adapter": trained.sha256, "history": trained.history})


def has_trained(folder: Path) -> bool:
    """Whether the training of a run has ended."""
    return (folder / CHECKPOINTS / _TRAINED).is_file()


def load_trained(folder: Path, header: Mapping[str, str]) -> Trained | None:
    """The record of the end of training; None before it.

    Raises:
        UserError: the record is damaged or of another run.
    """
    path = folder / CHECKPOINTS / _TRAINED
    if not path.is_file():
        return None
    what_to_do = "restore the right one, or delete it: the run then continues from its last checkpoint"
    kept = read_json_object(path, what_to_do, needed=(_HEADER, "adapter", "history"))
    if different := differences(kept[_HEADER], dict(header)):
        raise UserError(f"'{path}' is of another run ({'; '.join(different)}); {what_to_do}")
    return Trained(kept["adapter"], kept["history"])
