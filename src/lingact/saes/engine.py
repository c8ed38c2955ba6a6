"""Train several sets of SAEs at once: one forward pass feeds all layers and all sets."""

import time
from collections.abc import Mapping
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
from lingact.config.saes import SaeMix, SaeTraining
from lingact.data.tokens import Window
from lingact.errors import UserError
from lingact.models.adapters import base_behaviour
from lingact.models.finite import beyond
from lingact.models.lm import LanguageModel
from lingact.runtime import interrupts
from lingact.runtime.tensor_files import load_tensors, save_tensors
from lingact.saes.mix import Rows, Schedule
from lingact.saes.trainers import SetTrainer
from lingact.saes.whitening import partly_whitened

CHECKPOINT = "last.ckpt"
CALIBRATED_ON = 32
"""Windows of each language from which the scaling of inputs comes, the same for all sets."""
Places = Int[np.ndarray, " place"]
"""Places in a schedule."""


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
        rows = [row.tolist() for own in self.windows.values() for row in own[:CALIBRATED_ON]]
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


def train_sets(
    reader: Reader,
    sets: Mapping[str, SaeMix],
    training: SaeTraining,
    *,
    metadata: Mapping[str, Any],
    header: Mapping[str, str],
    folder: Path,
    start: Start | None = None,
) -> dict[str, SetTrainer]:
    """Train every set. An interrupted training goes on from its checkpoint, with the same result to the bit.

    Args:
        sets: name -> mix, in the order of the schedule; each has its seed.
        metadata: for the SAEs' files.
        header: what the training depends on; a checkpoint with another one is refused.
        folder: of the checkpoint.
        start: what to begin with; None: new SAEs.

    Returns:
        Trainers by name of the set; of sets that are refitted, `<set>_base` and `<set>_adapted`.

    Raises:
        UserError: residuals or a loss are not finite, or the checkpoint is of another training.
        KeyboardInterrupt: a checkpoint has been written.
    """
    sample = reader.sample()
    inputs = {layer: partly_whitened(sample[:, column], training.whitening) for column, layer in enumerate(reader.layers)}
    trainers: dict[str, SetTrainer] = {}
    routes: dict[str, tuple[int, bool]] = {}
    for column, (name, mix) in enumerate(sets.items()):
        for trained, adapted in trained_names(name, refit=start is not None and start.refit).items():
            saved = start.saes[name] if start is not None else None
            trainers[trained] = SetTrainer(training, mix, inputs, dict(metadata), str(reader.lm.device), saved)
            routes[trained] = (column, adapted)
    path, passes = folder / CHECKPOINT, reader.passes
    done = _load(path, trainers, dict(header)) if path.is_file() else 0
    with tqdm(total=sum(map(len, passes)) * reader.context, unit="tok", unit_scale=True, desc="SAEs", leave=False, dynamic_ncols=True) as bar:
        bar.update(sum(map(len, passes[:done])) * reader.context)
        bar.unpause()
        written = time.monotonic()
        try:
            while done < len(passes):
                with interrupts.deferred():  # no pass is half done
                    _feed(reader, passes[done], trainers, routes)
                    done += 1
                    if time.monotonic() - written > 60 * training.checkpoint_minutes:
                        _save(path, trainers, dict(header), done)
                        written = time.monotonic()
                bar.update(len(passes[done - 1]) * reader.context)
        except KeyboardInterrupt:
            _save(path, trainers, dict(header), done)
            raise KeyboardInterrupt(f"{done} of {len(passes)} forward passes, with all that was trained on them") from None
    for trainer in trainers.values():
        trainer.finish()
    return trainers


def trained_names(name: str, *, refit: bool) -> dict[str, bool]:
    """The names under which a set is trained, and whether that is on the adapted model."""
    return {f"{name}_base": False, f"{name}_adapted": True} if refit else {name: False}


def _feed(reader: Reader, places: Places, trainers: Mapping[str, SetTrainer], routes: Mapping[str, tuple[int, bool]]) -> None:
    for adapted in sorted({adapted for _, adapted in routes.values()}):
        residuals, row = reader.read(places, adapted=adapted)
        member = torch.from_numpy(reader.schedule.member[places])[row].to(residuals.device)
        for name, (column, on_adapted) in routes.items():
            if on_adapted == adapted:
                trainers[name].add(residuals[member[:, column]])


def _save(path: Path, trainers: Mapping[str, SetTrainer], header: dict[str, str], done: int) -> None:
    save_tensors({"header": header, "done": done, "sets": {name: trainer.state() for name, trainer in trainers.items()}}, path)


def _load(path: Path, trainers: Mapping[str, SetTrainer], header: dict[str, str]) -> int:
    """The number of passes that the checkpoint includes."""
    state = load_tensors(path)
    what_to_do = "restore the right one, or delete it: the run then starts over, with the same result"
    if state is None:
        raise UserError(f"'{path}' is truncated, damaged or not a checkpoint of SAEs; {what_to_do}")
    if state["header"] != header:
        raise UserError(f"'{path}' is a checkpoint of another run; {what_to_do}")
    for name, trainer in trainers.items():
        trainer.load(state["sets"][name])
    return state["done"]
