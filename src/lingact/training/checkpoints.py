"""Checkpoints of a training run, and the adapter that came out of it: whole or not there, and of this run or refused."""

import contextlib
import hashlib
import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from lingact.errors import UserError
from lingact.files.atomic import full_disk, write_atomically, write_json
from lingact.files.records import read_json_object
from lingact.models.finite import describe, nonfinite
from lingact.runtime import interrupts
from lingact.runtime.compat.lightning import checkpoint_of
from lingact.runtime.tracking import differences

CHECKPOINTS = "checkpoints"
"""Folder in the run's."""
_LAST, _TRAINED = "last.ckpt", "trained.json"
_HEADER = "lingact"
_FINITE_PARTS = ("state_dict", "optimizer_states")
"""Parts of a checkpoint that the training goes on with; callbacks may begin with infinite scores."""
_DIGEST = hashlib.sha256().digest_size


class RunCheckpoints(TorchCheckpointIO):
    """A Lightning plugin, because Lightning writes in the system's temporary folder and moves the file, which from disk to disk is a copy.

    A file is what `torch.save` writes, and behind it its sha256: torch notices few damages. `torch.load` can read it, too. One checkpoint is
    enough: only a fault of the disk can damage it, and without it the run starts over to the same result.

    Args:
        header: what the run depends on (`Run.header`). Loading into the module is not strict, since checkpoints hold the adapter alone; so of a
            checkpoint of another run it would take whatever fits.
    """

    def __init__(self, header: Mapping[str, str]) -> None:
        super().__init__()
        self.header = dict(header)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:  # noqa: ARG002 (Lightning's)
        """Write it beside its place, to the disk, and move it there.

        Raises:
            OSError: with the file's name; the checkpoint that was there still is.
        """
        content = io.BytesIO()
        torch.save(checkpoint | {_HEADER: self.header}, content)
        content.write(hashlib.sha256(content.getbuffer()).digest())
        write_atomically(Path(path), content.getbuffer())

    def load_checkpoint(self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:  # noqa: ARG002
        """Read tensors and plain values, never code, whatever `weights_only` says.

        Raises:
            UserError: it is cut short, damaged or of another run.
        """
        saved = _undamaged(Path(path))
        what_to_do = "put the right one back, or delete it: the run then starts over, to the same result"
        if saved is None:
            raise UserError(f"'{path}' is cut off, damaged or no checkpoint of train.py; {what_to_do}")
        checkpoint = torch.load(io.BytesIO(saved), map_location=map_location, weights_only=True)
        if different := differences(checkpoint[_HEADER], self.header):
            raise UserError(f"'{path}' is a checkpoint of another run ({'; '.join(different)}); {what_to_do}")
        if spoiled := nonfinite(_tensors({name: checkpoint.get(name) for name in _FINITE_PARTS})):
            raise UserError(f"'{path}': {describe(spoiled)}; training cannot go on from there. Delete it: the run then starts over")
        return checkpoint


def _undamaged(path: Path) -> memoryview | None:
    """What `torch.save` has written; None where its digest is of something else."""
    content = memoryview(path.read_bytes())
    saved, digest = content[:-_DIGEST], content[-_DIGEST:]
    return saved if hashlib.sha256(saved).digest() == digest else None


def _tensors(node: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a checkpoint with their places: weights, moments of the optimiser."""
    if isinstance(node, torch.Tensor):
        yield path, node
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in parts:
        yield from _tensors(value, f"{path}.{name}" if path else str(name))


def last_checkpoint(folder: Path) -> Path:
    """Where a run keeps its checkpoint, whether or not there is one yet."""
    return folder / CHECKPOINTS / _LAST


class LastStep(RunCheckpoints):
    """Holds the state behind the last whole step, and writes it when it is asked to.

    What Lightning hands over refers to the very tensors that are trained. These do not change before the next update, so holding it costs nothing,
    and it can still be written in the middle of the next step. Before that update it has to be forgotten.
    """

    def __init__(self, header: Mapping[str, str]) -> None:
        super().__init__(header)
        self._held: tuple[dict[str, Any], str | Path] | None = None
        self._on_disk = True

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None) -> None:  # noqa: ARG002 (Lightning's)
        """Hold it."""
        self._held, self._on_disk = (checkpoint, path), False

    def forget(self) -> None:
        """The tensors are about to change."""
        self._held = None

    def write(self) -> None:
        """Put on disk what is held, unless it is there already or nothing is held."""
        if self._held is not None and not self._on_disk:
            super().save_checkpoint(*self._held)
            self._on_disk = True


class Keeper(pl.Callback):
    """Keeps a checkpoint every so many steps, every so many minutes, at the last step, and when training is interrupted or fails.

    Signals wait from before a step's update until its state is held, so that no half of a step is ever kept.

    Args:
        checkpoints: also the trainer's plugin.
        path: of the checkpoint.
    """

    def __init__(self, checkpoints: LastStep, path: Path, *, every: int, minutes: float) -> None:
        self._checkpoints, self._path, self._every, self._seconds = checkpoints, path, every, 60 * minutes
        self._written = time.monotonic()
        self._holding = False

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:  # noqa: ARG002 (Lightning's)
        """From here on the state is neither the one nor the other."""
        interrupts.hold()
        self._holding = True
        self._checkpoints.forget()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """The step is whole."""
        if not trainer.is_global_zero:
            return
        # The state of the first process is that of all.
        self._checkpoints.save_checkpoint(checkpoint_of(trainer), self._path)
        now = time.monotonic()
        if trainer.global_step % self._every == 0 or now - self._written >= self._seconds:
            self._checkpoints.write()
            self._written = now

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """The step is logged, too."""
        self._release()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 (Lightning's)
        """The last step."""
        if trainer.is_global_zero:
            self._checkpoints.write()
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002 (Lightning's)
        """Keep the last whole step, if its tensors are still as they were."""
        if not self._holding:
            interrupts.hold()  # a second signal must not end this
        self._holding = False
        try:
            if trainer.is_global_zero and full_disk(exception) is None:
                # A fault of the disk or the device may be what ended the training; that is what has to be told.
                with contextlib.nullcontext() if isinstance(exception, KeyboardInterrupt) else contextlib.suppress(OSError, RuntimeError):
                    self._checkpoints.write()
        finally:
            interrupts.let_go()

    def _release(self) -> None:
        if self._holding:
            self._holding = False
            interrupts.release()


def steps_kept(folder: Path) -> int:
    """Steps in a run's checkpoint; 0 where there is none, or it is damaged."""
    path = last_checkpoint(folder)
    saved = _undamaged(path) if path.is_file() else None
    return 0 if saved is None else torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)["global_step"]


# --- what came out -------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """The end of a training: from here on its adapter is judged, wherever that is, and not trained again."""

    sha256: str
    """`adapter_hash` of the adapter in the run folder."""
    history: list[dict[str, Any]]
    """Number and every term of every step."""


def keep_trained(folder: Path, header: Mapping[str, str], trained: Trained) -> None:
    """Write it down, once the adapter lies in the run folder."""
    write_json(folder / CHECKPOINTS / _TRAINED, {_HEADER: dict(header), "adapter": trained.sha256, "history": trained.history})


def has_trained(folder: Path) -> bool:
    """Whether the training of a run has come to its end."""
    return (folder / CHECKPOINTS / _TRAINED).is_file()


def recall_trained(folder: Path, header: Mapping[str, str]) -> Trained | None:
    """What was written down; None before the end of the training.

    Raises:
        UserError: it is damaged or of another run.
    """
    path = folder / CHECKPOINTS / _TRAINED
    if not path.is_file():
        return None
    what_to_do = "put the right one back, or delete it: the run then goes on from its last checkpoint"
    kept = read_json_object(path, what_to_do, needed=(_HEADER, "adapter", "history"))
    if different := differences(kept[_HEADER], dict(header)):
        raise UserError(f"'{path}' is of another run ({'; '.join(different)}); {what_to_do}")
    return Trained(kept["adapter"], kept["history"])
