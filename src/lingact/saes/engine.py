"""Train several sets of SAEs at once: one forward pass feeds all layers and all sets."""

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor
from tqdm import tqdm

from lingact.activations.features import kept_residuals
from lingact.config.continued import trained_names
from lingact.config.saes import SaeMix, SaeTraining
from lingact.data.tokens import Window
from lingact.errors import UserError
from lingact.models.adapters import base_behaviour
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.runtime import interrupts
from lingact.runtime.distributed import all_gather, broadcast, broadcast_tensor, rank, world
from lingact.saes.checkpoints import Checkpoints
from lingact.saes.mix import Rows, Schedule
from lingact.saes.trainers import SetTrainer
from lingact.saes.whitening import partly_whitened

LOG_EVERY = 10
"""Forward passes."""
Log = Callable[[int, dict[str, float]], None]
"""Takes the number of passes and `loss/<set>/<layer>` and `dead/<set>/<layer>`."""
Places = Int[np.ndarray, " place"]
"""Places in a schedule."""
Residuals = Float[Tensor, "token layer d_model"]
Row = Int[Tensor, " token"]
"""Which of the places each token comes from."""


def calibration_windows(d_model: int, room: int, languages: int) -> int:
    """Windows of each language from which the scaling of inputs comes, the same for all sets: at least 32, and eight tokens for each dimension.

    Args:
        room: tokens of a window without BOS.
    """
    return max(32, -(-8 * d_model // (room * languages)))


@dataclass(frozen=True)
class Reader:
    """Reads windows of text with the model."""

    lm: LanguageModel
    layers: tuple[int, ...]
    windows: Mapping[str, Rows]
    """Language -> tokens of its windows, without BOS."""
    schedule: Schedule
    context: int
    """Tokens of a window."""
    batch_tokens: int
    """Tokens of a forward pass."""

    @property
    def passes(self) -> list[Places]:
        """The places that are read together, in order."""
        size, count = max(1, self.batch_tokens // self.context), len(self.schedule.window)
        return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]

    @torch.no_grad()
    def read(self, places: Places, *, adapted: bool = False) -> tuple[Float[Tensor, "token layer d_model"], Int[Tensor, " token"]]:
        """Residuals of the kept tokens at these places of the schedule, and which of the places each comes from.

        Args:
            adapted: with the adapter that the model carries; else as without it.

        Raises:
            UserError: residuals are not finite.
        """
        own = [self.windows[self.schedule.codes[self.schedule.language[place]]] for place in places]
        rows = [windows[self.schedule.window[place] % len(windows)].tolist() for windows, place in zip(own, places, strict=True)]
        with nullcontext() if adapted else base_behaviour(self.lm.model):
            return self._residuals(rows)

    @torch.no_grad()
    def sample(self) -> Float[Tensor, "token layer d_model"]:
        """Residuals of all languages in equal parts, as without an adapter."""
        size = max(1, self.batch_tokens // self.context)
        count = calibration_windows(self.lm.d_model, self.context - len(self.lm.tokens.prefix), len(self.windows))
        rows = [row.tolist() for own in self.windows.values() for row in own[:count]]
        with base_behaviour(self.lm.model):
            return torch.cat([self._residuals(rows[start : start + size])[0] for start in range(0, len(rows), size)])

    def _residuals(self, rows: list[list[int]]) -> tuple[Float[Tensor, "token layer d_model"], Int[Tensor, " token"]]:
        lm = self.lm
        batch = lm.tokens.collate([Window(number, lm.tokens.prefix + row, first=True) for number, row in enumerate(rows)])
        found, _ = kept_residuals(lm, batch, self.layers)
        residuals = torch.stack([found[layer] for layer in self.layers], dim=1)
        if not residuals.isfinite().all():
            lost = [layer for column, layer in enumerate(self.layers) if not residuals[:, column].isfinite().all()]
            dtype = str(next(lm.model.parameters()).dtype).removeprefix("torch.")
            raise UserError(f"residuals behind the layers {lost} are not finite in {dtype}. Most likely {beyond(dtype)}")
        return residuals, batch.kept_row


@dataclass(frozen=True)
class Start:
    """What sets that are trained further begin with."""

    saes: Mapping[str, Mapping[int, SAE[Any]]]
    """Set -> layer -> saved SAE."""
    refit: bool
    """Whether each is trained further twice: on the base model, and on the model with its adapter."""


def train_sets(  # noqa: PLR0913 (what is trained, on what, where it is kept and told)
    reader: Reader,
    sets: Mapping[str, SaeMix],
    training: SaeTraining,
    *,
    metadata: Mapping[str, Any],
    header: Mapping[str, str],
    folder: Path,
    start: Start | None = None,
    log: Log | None = None,
) -> dict[str, SetTrainer]:
    """Train every set. An interrupted training goes on from its checkpoint, with the same result to the bit.

    Args:
        sets: name -> mix, in the order of the schedule; each has its seed.
        metadata: for the SAEs' files.
        header: what the training depends on; a checkpoint with another one is refused.
        folder: of the checkpoint.
        start: what to begin with; None: new SAEs.
        log: is told every `LOG_EVERY` passes how far the sets are; None: nobody is.

    Returns:
        Trainers by name of the set; of sets that are refitted, `<set>_base` and `<set>_adapted`.

    Raises:
        UserError: residuals or a loss are not finite, or the checkpoint is of another training.
        KeyboardInterrupt: a checkpoint has been written.
    """
    sample = reader.sample()
    inputs = {layer: partly_whitened(sample[:, column], training.whitening) for column, layer in enumerate(reader.layers)}
    trainers: dict[str, SetTrainer] = {}
    routes: dict[str, _Route] = {}
    number = itertools.count()
    for column, (name, mix) in enumerate(sets.items()):
        for trained, adapted in trained_names(name, refit=start is not None and start.refit).items():
            saved = start.saes[name] if start is not None else None
            # SAEs take turns, so that each process has as many.
            own = [layer for layer in reader.layers if next(number) % world() == rank()]
            chosen = {layer: inputs[layer] for layer in own}
            trainers[trained] = SetTrainer(training, mix, chosen, dict(metadata), str(reader.lm.device), saved)
            routes[trained] = _Route(column, adapted, [reader.layers.index(layer) for layer in own])
    checkpoints, passes = Checkpoints(folder, dict(header)), reader.passes
    done = checkpoints.load(trainers)
    with tqdm(total=sum(map(len, passes)) * reader.context, unit="tok", unit_scale=True, desc="SAEs", leave=False, dynamic_ncols=True) as bar:
        bar.update(sum(map(len, passes[:done])) * reader.context)
        bar.unpause()
        written, kept, stopped = time.monotonic(), done, False
        try:
            with interrupts.deferred():  # a signal takes effect between two passes, in all processes at once
                while done < len(passes) and not stopped:
                    turn = passes[done : done + world()]
                    _feed(reader, turn, trainers, routes)
                    done += len(turn)
                    bar.update(sum(map(len, turn)) * reader.context)
                    if log is not None and done // LOG_EVERY > (done - len(turn)) // LOG_EVERY:
                        log(done, _progress(trainers))
                    stopped = any(all_gather(interrupts.pending()))
                    if stopped or broadcast(time.monotonic() - written > 60 * training.checkpoint_minutes):
                        checkpoints.save(trainers, done)
                        written, kept = time.monotonic(), done
            if stopped:  # by another process's signal
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{kept} of {len(passes)} forward passes, with all that was trained on them") from None
    for name, trainer in trainers.items():
        if routes[name].layers:
            trainer.finish()
    return trainers


def _progress(trainers: Mapping[str, SetTrainer]) -> dict[str, float]:
    """The progress of all sets, of all processes."""
    own = {}
    for name, trainer in trainers.items():
        for key, value in trainer.progress().items():
            what, _, layer = key.partition("/")
            own[f"{what}/{name}/{layer}"] = value
    return {key: value for each in all_gather(own) for key, value in each.items()}


@dataclass(frozen=True)
class _Route:
    """Which residuals a set is trained on."""

    column: int
    """Of the schedule."""
    adapted: bool
    layers: list[int]
    """Places of the layers whose SAEs this process trains."""


def _feed(reader: Reader, turn: list[Places], trainers: Mapping[str, SetTrainer], routes: Mapping[str, _Route]) -> None:
    """Read a pass in each process, and train on all of them in their order."""
    for adapted in sorted({route.adapted for route in routes.values()}):
        own = reader.read(turn[rank()], adapted=adapted) if rank() < len(turn) else None
        for source, places in enumerate(turn):
            residuals, row = _from_process(source, own, reader.lm.device)
            member = torch.from_numpy(reader.schedule.member[places])[row.cpu()].to(residuals.device)
            for name, route in routes.items():
                if route.adapted == adapted and route.layers:
                    trainers[name].add(residuals[member[:, route.column]][:, route.layers])


def _from_process(source: int, own: tuple[Residuals, Row] | None, device: torch.device) -> tuple[Residuals, Row]:
    """What a process has read, in every process."""
    if world() == 1:
        assert own is not None
        return own
    shape = broadcast(tuple(own[0].shape) if own is not None and rank() == source else None, source=source)
    assert shape is not None
    mine = own if rank() == source else None
    residuals = torch.empty(shape) if mine is None else mine[0].float().cpu().contiguous()
    row = torch.empty(shape[0], dtype=torch.int64) if mine is None else mine[1].long().cpu().contiguous()
    broadcast_tensor(residuals, source)
    broadcast_tensor(row, source)
    return residuals.to(device), row.to(device)
